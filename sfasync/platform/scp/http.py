"""One exchange of HTTP/1.1 with the one server that may have our token.

Nothing here follows a redirect, keeps a cookie, reads a proxy or a password from the environment, or unpacks what was
packed: a request goes to the configured origin, byte for byte as it was signed, and what comes back is at most as long
as was agreed. HTTP/2 would write the names of headers in small letters, with which a platform was seen to refuse us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

import httpcore2

from ..._version import VERSION
from ...units import MiB
from .network import Network
from .settings import ScpTimeouts
from .trust import Trust

MAX_BODY: Final = 16 * MiB
"""Bytes of an answer."""

_CONNECTIONS: Final = 8
_HEADERS: Final = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "User-Agent": f"sfasync/{VERSION}",
}
_IDLE_SECONDS: Final = 30.0
_NOT_SENT = (httpcore2.ConnectError, httpcore2.ConnectTimeout)


class Headers(Mapping[str, str]):
    """Headers of an answer, by name in any case; of one that is there twice, the first."""

    def __init__(self, headers: Iterable[tuple[str, str]] = ()) -> None:
        self._values: dict[str, str] = {}
        for name, value in headers:
            self._values.setdefault(name.lower(), value)

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answered.

    Attributes:
        status: Of HTTP.
        headers: What goes with it.
        body: All of it.
    """

    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)


class InterruptedExchange(Exception):  # noqa: N818 - no error of ours: whoever asked decides what it means
    """There is no answer, or only part of one.

    Attributes:
        sent: Whether the server may have the request.
        again: Whether the same request may fare better.
    """

    def __init__(self, reason: str, *, sent: bool, again: bool = True) -> None:
        super().__init__(reason)
        self.sent = sent
        self.again = again


class Server:
    """The server behind an origin; connections are kept and used again.

    Args:
        origin: ``https://HOST[:PORT]``.
        trust: What is believed of its certificate.
        hostname: The name that the certificate must carry; None for the host of the origin.
        timeouts: When to give up.
    """

    def __init__(self, origin: str, trust: Trust, hostname: str | None, timeouts: ScpTimeouts) -> None:
        self._origin = origin
        self._url = httpcore2.URL(origin)
        self._timeouts = timeouts
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=trust.context,
            max_connections=_CONNECTIONS,
            keepalive_expiry=_IDLE_SECONDS,
            http1=True,
            http2=False,
            network_backend=Network(trust.fingerprint),
        )
        self._extensions: dict[str, object] = {"timeout": {"connect": timeouts.connect}}
        if hostname is not None:
            self._extensions["sni_hostname"] = hostname

    def __repr__(self) -> str:
        return f"<Server {self._origin}>"

    async def __aenter__(self) -> Server:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    async def exchange(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """Send a request and read the whole answer. Cancelling closes the connection.

        Args:
            method: Of HTTP.
            target: Path and query, as they go on the wire.
            headers: What goes with it, in this spelling.
            body: What is sent.

        Raises:
            InterruptedExchange: There is no whole answer, or it is longer than 16 MiB.
            TlsError: The server is not who it should be.
        """
        request = httpcore2.Request(
            method,
            httpcore2.URL(
                scheme=self._url.scheme, host=self._url.host, port=self._url.port, target=target.encode("ascii")
            ),
            headers=self._headers(method, headers, body),
            content=body or None,
            extensions=self._extensions,
        )
        try:
            async with asyncio.timeout(self._timeouts.request):
                response = await self._pool.handle_async_request(request)
                try:
                    told = _told(response.headers)
                    return Answer(response.status, told, await _body(response, told))
                finally:
                    await response.aclose()
        except TimeoutError:
            raise InterruptedExchange(f"no whole answer came in {self._timeouts.request:g} s", sent=True) from None
        except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError) as error:
            # The chain ends here: what such an error says may be the server's own words.
            raise InterruptedExchange(_reason(error), sent=not isinstance(error, _NOT_SENT)) from None

    def _headers(self, method: str, headers: Mapping[str, str], body: bytes) -> list[tuple[bytes, bytes]]:
        """All headers, in the order in which they are sent."""
        told = {"Host": self._origin.removeprefix("https://"), **_HEADERS, **headers}
        if body or method in ("POST", "PUT"):
            told["Content-Length"] = str(len(body))
        return [(name.encode("ascii"), value.encode("ascii")) for name, value in told.items()]


def _told(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


async def _body(response: httpcore2.Response, headers: Headers) -> bytes:
    """The body as it was sent; more than allowed is not read."""
    if headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise InterruptedExchange("the answer is packed, which was not asked for", sent=True, again=False)
    body = bytearray()
    async for piece in response.aiter_stream():
        body += piece
        if len(body) > MAX_BODY:
            raise InterruptedExchange(f"the answer is longer than {MAX_BODY // MiB} MiB", sent=True, again=False)
    return bytes(body)


def _reason(error: Exception) -> str:
    """What happened, in words that are ours."""
    if isinstance(error, httpcore2.ConnectError | httpcore2.ConnectTimeout):
        return str(error)
    if isinstance(error, httpcore2.ProtocolError):
        return "the connection was closed in the middle, or what came is not HTTP"
    return "the connection was lost"
