"""The handshake over a real connection: connect, greet, TLS, options, all within one deadline."""

from __future__ import annotations

import asyncio
import ssl
from typing import Generic, TypeVar

from ..errors import ConnectError, ConnectionLostError, DeadlineError, SfasyncError, printable
from ..models import ExportAddress
from ..nbd.handshake import Handshake
from ..tls import TlsLayer, server_name
from ..trust import pinned
from .stream import Stream, connect

_T = TypeVar("_T")


async def negotiate(
    address: ExportAddress, handshake: Handshake[_T], *, context: ssl.SSLContext | None, timeout: float
) -> tuple[Stream, _T]:
    """Connect and run a handshake to its end. Cancelling leaves nothing behind.

    Args:
        address: Whom to connect to.
        handshake: What to say; made for TLS if and only if the address has it.
        context: What TLS believes, from `client_context`; None for a plain address.
        timeout: Seconds for everything together.

    Returns:
        The open stream, whose receiver is to be exchanged before the loop is given back, and what was negotiated.

    Raises:
        ConnectError: Nobody answers at the address.
        TlsError: TLS is lacking, refused or demanded, or the server is not who it should be.
        NbdError: The server refuses, breaks the protocol, hangs up, or takes too long.
    """
    negotiation = _Negotiation(address, handshake, context)
    stream = negotiation.stream
    connected = False
    try:
        async with asyncio.timeout(timeout):
            await connect(stream, address)
            connected = True
            negotiation.begin()
            result = await negotiation.result
    except TimeoutError as error:
        negotiation.give_up()
        if not connected:
            raise ConnectError(f"cannot connect to {stream.peer}: no answer within {timeout:g} s") from error
        raise DeadlineError(f"{stream.peer}: {handshake.stage} did not come within {timeout:g} s") from error
    except BaseException:
        negotiation.give_up()
        raise
    return stream, result


class _Negotiation(Generic[_T]):
    """The receiver of a stream during the handshake."""

    def __init__(self, address: ExportAddress, handshake: Handshake[_T], context: ssl.SSLContext | None) -> None:
        self.stream = Stream(printable(address.peer), self)
        self.result: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._address = address
        self._handshake = handshake
        self._context = context

    def begin(self) -> None:
        """The connection is there; where TLS comes with its first byte, this is ours.

        Raises:
            TlsError: The name cannot be one in a certificate.
        """
        if self._handshake.wants_tls:
            self._start_tls()

    def give_up(self) -> None:
        """Nobody waits for the result any more."""
        self.stream.abort()
        if not self.result.cancel() and not self.result.cancelled():
            self.result.exception()  # seen, so that the loop does not report it as forgotten

    def next_buffer(self) -> memoryview:
        return self._handshake.next_buffer()

    def received(self, count: int) -> None:
        self._handshake.received(count)
        self._go_on()
        if self._handshake.wants_tls:
            self._start_tls()

    def secured(self) -> None:
        self._handshake.tls_started()
        self._go_on()

    def resumed(self) -> None:
        """Nothing waits to be written: the few bytes of a handshake are written at once."""

    def lost(self, error: SfasyncError | None) -> None:
        if self.result.done():
            return
        if error is None or isinstance(error, ConnectionLostError):
            error = self._handshake.closed()
        self.result.set_exception(error)

    def _go_on(self) -> None:
        self.stream.write(self._handshake.outgoing())
        if self._handshake.done and not self.result.done():
            self.result.set_result(self._handshake.result)

    def _start_tls(self) -> None:
        assert self._context is not None, "TLS without a context"
        assert self._address.tls is not None, "TLS without a policy"
        layer = TlsLayer(
            self.stream.peer, self._context, server_name(self._address), fingerprint=pinned(self._address.tls)
        )
        self.stream.start_tls(layer)
