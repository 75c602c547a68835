"""From a request of HTTP to an answer: who calls, whether it was asked before, what goes wrong, and the envelope."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ...errors import SfasyncError
from . import platform, recovery, resources, servers, snapshots
from .envelope import Answer, Refusal, enveloped
from .site import Call, Operation, Site

_OPERATIONS = (
    *platform.OPERATIONS,
    *servers.OPERATIONS,
    *snapshots.OPERATIONS,
    *resources.OPERATIONS,
    *recovery.OPERATIONS,
)

_LONGEST_BODY = 64 << 20
_REMEMBERED_SECONDS = 900.0  # "X-Client-Token gives idempotency for 15 minutes"
_HUGE, _HUGE_PIECE = 1 << 30, 1 << 20
_DEPTH = 100_000
_RETRY_AFTER = {"Retry-After": "1"}

_UNTIMELY = {"unauthorized": 401, "rate-limited": 429, "unavailable": 503}


def application(site: Site) -> Starlette:
    """The interface as an ASGI application."""
    remembered = _Remembered()
    routes = [
        Route(operation.path, _Endpoint(site, operation, remembered).answer, methods=[operation.method])
        for operation in sorted(_OPERATIONS, key=lambda operation: operation.path.count("{"))  # fixed paths first
    ]
    return Starlette(routes=routes, exception_handlers={404: _no_such_path, 405: _no_such_path})


class _Endpoint:
    """Answers one operation."""

    def __init__(self, site: Site, operation: Operation, remembered: _Remembered) -> None:
        self._site = site
        self._operation = operation
        self._remembered = remembered

    async def answer(self, request: Request) -> Response:
        """What a request is answered with."""
        path = _path_of(request)
        try:
            body = await _body_of(request)
            call = Call(
                method=request.method,
                path=path,
                ids=request.path_params,
                query=dict(request.query_params),
                headers={name.lower(): value for name, value in request.headers.items()},
                body=body,
            )
            self._check(call)
            return self._spoiled(path, await self._answered(call))
        except Refusal as refusal:
            envelope = enveloped(path, None, code=refusal.status, message=str(refusal))
            return _json(envelope, refusal.status, refusal.headers)
        except (SfasyncError, OSError) as error:
            return _json(enveloped(path, None, code=500, message=str(error)), 500)

    def _check(self, call: Call) -> None:
        """Who calls, and whether the lab is to answer as if something were wrong.

        Raises:
            Refusal: The call goes no further.
        """
        due = self._site.misbehaviour.due
        if self._operation.open:
            return
        if due("token-expired", call.path):
            self._site.accounts.expire_tokens()
        for name, location in (
            ("redirect-http", f"http://{call.headers.get('host', '')}{call.path}"),
            ("redirect-host", f"https://elsewhere.invalid{call.path}"),
        ):
            if due(name, call.path):
                raise Refusal(307, "moved", headers={"Location": location})
        for name, status in _UNTIMELY.items():
            if due(name, call.path):
                raise Refusal(status, "as the lab was told", headers=_RETRY_AFTER if status == 429 else None)
        if due("echo-credentials", call.path):
            accounts = self._site.accounts
            raise Refusal(500, f"{call.headers.get('authorization')} {accounts.password} {accounts.secret_key}")
        if not self._site.accounts.allows(call.method, call.path, call.headers, call.body):
            raise Refusal(401, "the authentication has failed")

    async def _answered(self, call: Call) -> Answer:
        token = call.headers.get("x-client-token")
        if token is None or call.method not in ("POST", "PUT"):
            return await self._operation.handler(self._site, call)
        return await self._remembered.answered(token, call, self._operation, self._site)

    def _spoiled(self, path: str, answer: Answer) -> Response:
        """The answer as it is sent, with what the lab was told to do wrong."""
        if isinstance(answer.data, bytes):
            return Response(answer.data, answer.status, media_type="application/octet-stream")
        data = answer.data
        due = self._site.misbehaviour.due
        if isinstance(data, dict) and "next_page_num" in data and due("endless-pages", path):
            data = data | {"next_page_num": str(data["page_num"] + 1)}
        if isinstance(data, dict) and "resource_id" in data and due("traversal-id", path):
            data = data | {"resource_id": "../../x"}
        if self._operation.open:
            return _json(enveloped(path, data), answer.status)
        if due("huge-body", path):
            return StreamingResponse(_huge(), media_type="application/json")
        if due("deep-json", path):
            return Response("[" * _DEPTH + "]" * _DEPTH, media_type="application/json")
        if due("truncated-json", path):
            whole = msgspec.json.encode(enveloped(path, data))
            return Response(whole[: len(whole) // 2], answer.status, media_type="application/json")
        return _json(enveloped(path, data), answer.status)


class _Remembered:
    """Answers to calls that carried an ``X-Client-Token``: the same call again gets the same answer."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, bytes, asyncio.Future[Answer]]] = {}

    async def answered(self, token: str, call: Call, operation: Operation, site: Site) -> Answer:
        """The answer to a call.

        Raises:
            Refusal: Another call had the same token, or as of the operation; a refusal is not remembered.
        """
        now = time.monotonic()
        self._kept = {each: kept for each, kept in self._kept.items() if now - kept[0] < _REMEMBERED_SECONDS}
        what = hashlib.sha256(b"\0".join((call.method.encode(), call.path.encode(), call.body))).digest()
        if token in self._kept:
            _, before, answer = self._kept[token]
            if before != what:
                raise Refusal(429, "the idempotency check has failed")
            return await asyncio.shield(answer)
        answer = asyncio.ensure_future(operation.handler(site, call))
        self._kept[token] = (now, what, answer)
        try:
            return await asyncio.shield(answer)
        except Exception:
            del self._kept[token]
            raise


def _path_of(request: Request) -> str:
    """The path as it was sent, which is what was signed."""
    raw: bytes = request.scope["raw_path"]
    return raw.partition(b"?")[0].decode("latin-1")


async def _body_of(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _LONGEST_BODY:
            raise Refusal(413, "the body is too long")
    return bytes(body)


def _json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers=headers, media_type="application/json")


async def _huge() -> AsyncIterator[bytes]:
    yield b'{"code": 0, "message": "'
    for _ in range(_HUGE // _HUGE_PIECE):
        yield b"x" * _HUGE_PIECE
    yield b'", "data": {}}'


async def _no_such_path(request: Request, error: Exception) -> Response:
    return _json({"code": 404, "data": None, "message": "there is no such path"}, 404)
