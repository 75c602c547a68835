"""One exchange of HTTP/1.1 with the one server that may have our token.

Nothing here follows a redirect, keeps a cookie, reads a proxy or a password from the environment, or unpacks what was
packed: a request goes to the configured origin, byte for byte as it was signed, and what comes back is at most as long
as was agreed. HTTP/2 would write the names of headers in small letters, with which a platform was seen to refuse us.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

import httpx2

from ..._version import VERSION
from ...errors import TlsError, printable
from ...units import MiB
from .settings import ScpTimeouts

MAX_BODY: Final = 16 * MiB
"""Bytes of an answer."""

_CONNECTIONS: Final = 8
_HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "User-Agent": f"sfasync/{VERSION}",
}
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answered.

    Attributes:
        status: Of HTTP.
        headers: Names in any case.
        body: All of it.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
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
        context: What is believed of its certificate.
        hostname: The name that the certificate must carry; None for the host of the origin.
        timeouts: When to give up.
    """

    def __init__(self, origin: str, context: ssl.SSLContext, hostname: str | None, timeouts: ScpTimeouts) -> None:
        self._origin = httpx2.URL(origin)
        self._timeouts = timeouts
        self._transport = httpx2.AsyncHTTPTransport(
            verify=context,
            trust_env=False,
            http1=True,
            http2=False,
            limits=httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
        )
        self._extensions: dict[str, object] = {
            "timeout": {
                "connect": timeouts.connect,
                "read": timeouts.request,
                "write": timeouts.request,
                "pool": timeouts.request,
            }
        }
        if hostname is not None:
            self._extensions["sni_hostname"] = hostname

    def __repr__(self) -> str:
        return f"<Server {self._origin}>"

    async def __aenter__(self) -> Server:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

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
        request = httpx2.Request(
            method,
            self._origin.copy_with(raw_path=target.encode("ascii")),
            headers={**_HEADERS, **headers},
            content=body,
            extensions=self._extensions,
        )
        assert request.url.raw_path == target.encode("ascii"), "what is signed is what is sent"
        try:
            async with asyncio.timeout(self._timeouts.request):
                response = await self._transport.handle_async_request(request)
                try:
                    return Answer(response.status_code, response.headers, await _body(response))
                finally:
                    await response.aclose()
        except TimeoutError:
            raise InterruptedExchange(f"no whole answer came in {self._timeouts.request:g} s", sent=True) from None
        except (httpx2.TransportError, ssl.SSLError) as error:
            reason = _tls_reason(error)
            if reason is not None:
                raise TlsError(f"{self._origin.host}: {reason}") from None
            # The chain ends here: what such an error says may be the server's own words.
            raise InterruptedExchange(_reason(error), sent=not isinstance(error, _NOT_SENT)) from None


async def _body(response: httpx2.Response) -> bytes:
    """The body as it was sent; more than allowed is not read."""
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise InterruptedExchange("the answer is packed, which was not asked for", sent=True, again=False)
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MAX_BODY:
            raise InterruptedExchange(f"the answer is longer than {MAX_BODY // MiB} MiB", sent=True, again=False)
    return bytes(body)


def _reason(error: Exception) -> str:
    if isinstance(error, httpx2.ConnectTimeout):
        return "no connection was made in time"
    if isinstance(error, httpx2.ConnectError):
        return f"no connection: {printable(str(error)) or 'refused'}"
    if isinstance(error, httpx2.PoolTimeout):
        return "too many calls are under way"
    if isinstance(error, httpx2.RemoteProtocolError):
        return "the connection was closed in the middle, or what came is not HTTP"
    return "the connection was lost"


def _tls_reason(error: BaseException) -> str | None:
    """What is wrong with TLS, if that is what the error comes from."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the server's certificate is not accepted: {printable(cause.verify_message)}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {printable((cause.reason or str(cause)).replace('_', ' ').lower())}"
        cause = cause.__cause__ or cause.__context__
    return None
