"""A small HTTPS server that answers as a test says, and keeps what it was sent, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from cryptography.hazmat.primitives.asymmetric import padding, rsa

from sfasync.credentials import Credentials, Password
from sfasync.models import Retry
from sfasync.platform.scp.settings import ScpSettings, ScpTimeouts

from ...support.certificates import server_context

SERVER = "1b54ff34-0000-4000-8000-000000000001"
SNAPSHOT = "2c65aa45-0000-4000-8000-000000000002"
RESOURCE = "8d061111-0000-4000-8000-000000000003:cb2a2222-0000-4000-8000-000000000004"
TASK = "3d76bb56-0000-4000-8000-000000000005"
CANARY = "s3cret/canary+password"

QUICK = Retry(delay=0.001, max_delay=0.002)
TIMEOUTS = ScpTimeouts(connect=5.0, request=5.0, retry=5.0, blocked=0.01, task=5.0, poll=0.001)


@dataclass(frozen=True, slots=True)
class Request:
    """What came.

    Attributes:
        method, path: Of the request line; the path without the query.
        query: What stood behind it.
        head: Everything before the body.
        body: The body.
    """

    method: str
    path: str
    query: dict[str, str]
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header in exactly this spelling."""
        found = re.search(rb"\r\n" + re.escape(name.encode()) + rb": ([^\r]*)", self.head)
        return None if found is None else found[1].decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back.

    Attributes:
        body: Sent as it is.
        status: Of HTTP.
        headers: Besides the length.
        times: How often the body is repeated.
        raw: Sent instead of everything else; then the connection is closed.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    raw: bytes | None = None


Handler = Callable[[Request], "Reply | Awaitable[Reply]"]


def answer(data: Any, status: int = 200, **headers: str) -> Reply:
    """Data in the envelope that most versions have."""
    body = json.dumps({"code": 0, "data": data, "message": ""}).encode()
    return Reply(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def refusal(status: int, message: str = "", **headers: str) -> Reply:
    """A refusal as the platform writes it."""
    body = json.dumps({"code": status, "data": None, "message": message}).encode()
    return Reply(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def pages(items: list[Any], size: int = 100) -> Handler:
    """A list that is handed out page by page."""

    def handle(request: Request) -> Reply:
        number = int(request.query["page_num"])
        piece = items[number * size : (number + 1) * size]
        following = str(number + 1) if (number + 1) * size < len(items) else ""
        return answer({"data": piece, "total_size": len(items), "page_num": number, "next_page_num": following})

    return handle


class FakePlatform:
    """Answers by method and path; asked for anything else it says 404.

    Attributes:
        handlers: By ``GET /path``.
        requests: All that came.
        port: Where it listens.
    """

    def __init__(self, directory: Path) -> None:
        self.handlers: dict[str, Handler] = {}
        self.requests: list[Request] = []
        self.port = 0
        self.directory = directory
        self._talks: set[asyncio.Task[None]] = set()

    def on(self, place: str, *replies: Reply | Handler) -> None:
        """Give these replies one after the other, the last one for ever."""
        left = list(replies)

        def handle(request: Request) -> Reply | Awaitable[Reply]:
            reply = left.pop(0) if len(left) > 1 else left[0]
            return reply(request) if callable(reply) else reply

        self.handlers[place] = handle

    def came(self, place: str) -> list[Request]:
        """The requests for a place."""
        return [request for request in self.requests if f"{request.method} {request.path}" == place]

    def settings(self, credentials: Credentials | None = None, **values: Any) -> ScpSettings:
        """Settings of a client for this platform."""
        values.setdefault("ca_file", self.directory / "ca-cert.pem")
        values.setdefault("timeouts", TIMEOUTS)
        return ScpSettings(
            url=f"https://localhost:{self.port}",
            credentials=credentials or Password("backup", CANARY),
            **values,
        )

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            self._talks.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        line = head.split(b"\r\n", 1)[0].decode()
        method, target, _ = line.split(" ")
        path, _, query = target.partition("?")
        told = re.search(rb"\r\nContent-Length: ([0-9]+)", head)
        body = await reader.readexactly(int(told[1])) if told else b""
        request = Request(method, path, {k: v[0] for k, v in parse_qs(query).items()}, head, body)
        self.requests.append(request)
        handler = self.handlers.get(f"{method} {path}")
        reply = refusal(404, "no such path") if handler is None else handler(request)
        if not isinstance(reply, Reply):
            reply = await reply
        if reply.raw is not None:
            writer.write(reply.raw)
            await writer.drain()
            return False
        length = {} if "Transfer-Encoding" in reply.headers else {"Content-Length": str(len(reply.body) * reply.times)}
        headers = {**length, **reply.headers}
        said = f"HTTP/1.1 {reply.status} Said\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
        writer.write(said.encode() + b"\r\n")
        for _ in range(reply.times):
            writer.write(reply.body)
            await writer.drain()
        return True

    async def stop_talking(self) -> None:
        for task in tuple(self._talks):
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)


async def silence(request: Request) -> Reply:
    """No answer, ever."""
    await asyncio.Event().wait()
    raise AssertionError("it is cancelled")


@asynccontextmanager
async def fake_platform(certificates: Path, *, login: bool = True) -> AsyncIterator[FakePlatform]:
    """A platform that listens, and knows the account of `FakePlatform.settings`."""
    platform = FakePlatform(certificates)
    server = await asyncio.start_server(platform.talk, "127.0.0.1", 0, ssl=server_context(certificates))
    platform.port = server.sockets[0].getsockname()[1]
    if login:
        platform.on("GET /janus/public-key", public_key())
        platform.on("POST /janus/authenticate", token("token-1"))
    try:
        yield platform
    finally:
        server.close()
        await platform.stop_talking()
        await server.wait_closed()


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    """The key of the platform."""
    return rsa.generate_private_key(65537, 2048)


def public_key() -> Reply:
    """Its modulus, as the platform writes it."""
    return answer({"public_key": f"{rsa_key().public_key().public_numbers().n:X}\n"})


def decrypted(request: Request, form: padding.AsymmetricPadding | None = None) -> str:
    """The password in a request to log in."""
    sealed = request.json["auth"]["passwordCredentials"]["password"]
    return rsa_key().decrypt(bytes.fromhex(sealed), form or padding.PKCS1v15()).decode()


def token(value: str, expires: str | None = "2099-01-01T00:00:00Z") -> Reply:
    """The answer to a login."""
    return answer({"access": {"token": {"id": value, "expires": expires}, "user": {"id": "u"}}}, 201)
