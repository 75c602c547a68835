"""TLS of our own making over any stream of bytes: the machine that en- and decrypts. What it believes is in `trust`."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, cast

from .errors import TlsError, printable
from .models import ExportAddress

if TYPE_CHECKING:
    from .openssl import SecureSocket, Session


def server_name(address: ExportAddress) -> str:
    """The name that the certificate must carry: the policy's, or the host's, or `localhost` on a Unix socket."""
    assert address.tls is not None, "a plain address has no server name"
    return address.tls.hostname or address.host or "localhost"


class TlsLayer:
    """One TLS connection between two piles of bytes.

    Ciphertext goes in by `feed` and comes out by `take`; plain text goes in by `write` and comes out by `read_into`,
    straight into the memory it is for.

    Attributes:
        established: Whether the handshake is done and the server is who it should be.
    """

    def __init__(self, peer: str, context: ssl.SSLContext, hostname: str, fingerprint: str | None = None) -> None:
        """
        Args:
            peer: Names the server in messages.
            context: What is believed, from `client_context`.
            hostname: The name that the certificate must carry.
            fingerprint: What the certificate's SHA-256 must be, from `pinned`.
        """
        self.established = False
        self._peer = peer
        self._fingerprint = fingerprint
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        try:
            self._tls, self._session = _made(context, self._incoming, self._outgoing, hostname)
        except (ValueError, TypeError, ssl.SSLError) as error:  # ssl.py says TypeError to a zero byte
            raise TlsError(f"{peer}: '{printable(hostname)}' cannot be the name in a certificate") from error

    def feed(self, data: memoryview) -> None:
        """Take in ciphertext; the memory is free afterwards."""
        self._incoming.write(data)

    def take(self) -> bytes:
        """Ciphertext that has to be sent."""
        return self._outgoing.read()

    def handshake(self) -> bool:
        """Go on with the handshake; True when it is done and the server is verified.

        Raises:
            TlsError: It failed, or the server is not who it should be; `take` may hold an alert that tells the server.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLCertVerificationError as error:
            raise TlsError(
                f"{self._peer}: the server's certificate is not accepted: {printable(error.verify_message)}"
            ) from error
        except ssl.SSLError as error:
            raise self._failed(error) from error
        self._check_fingerprint()
        self.established = True
        return True

    def read_into(self, buffer: memoryview) -> int:
        """Decrypt into a non-empty buffer as much as there is and goes in; 0 when more ciphertext is needed.

        Raises:
            TlsError: The ciphertext is damaged.
            EOFError: The server ended TLS.
        """
        read = self._tls.read
        done, size = 0, len(buffer)
        try:
            while done < size:  # a record, 16 KiB at most, each time
                # With a buffer it gives a number; the stubs of the standard library say bytes.
                count = cast("int", read(size - done, buffer[done:]))
                if not count:
                    break
                done += count
            else:
                return done
        except ssl.SSLWantReadError:
            return done
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as error:
            raise self._failed(error) from error
        if not done:  # otherwise it is told again the next time
            raise EOFError
        return done

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt bytes for `take`; the memory is free afterwards."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._tls.write(rest) :]
        except ssl.SSLError as error:
            raise self._failed(error) from error

    @property
    def lendable(self) -> bool:
        """Whether a thread may have it: it can be reached, and nothing of it is on its way here."""
        under_way = self._incoming.pending or self._outgoing.pending
        return self.established and self._session is not None and not under_way

    def lend(self, connected: socket.socket) -> SecureSocket:
        """Let a thread drive it over a socket, until that is closed.

        Raises:
            OSError: OpenSSL has no memory; it was not lent.
        """
        assert self._session is not None, "a TLS session that cannot be reached was lent"
        assert self.lendable, "a TLS session was lent in the middle of something"
        return self._session.lend(connected, self._peer)

    def close(self) -> None:
        """Leave a close_notify for `take`, without waiting for the server's."""
        # It wants the server's answer, or the connection is broken: nothing depends on a polite end.
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()

    def _check_fingerprint(self) -> None:
        if self._fingerprint is None:
            return
        import hashlib  # with all of OpenSSL's digests, for the few who pin

        certificate = self._tls.getpeercert(binary_form=True)
        if certificate is None or hashlib.sha256(certificate).hexdigest() != self._fingerprint:
            raise TlsError(f"{self._peer}: the server's certificate has another fingerprint than the one pinned")

    def _failed(self, error: ssl.SSLError) -> TlsError:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return TlsError(f"{self._peer}: TLS failed: {printable(reason)}")


def _made(
    context: ssl.SSLContext, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, hostname: str
) -> tuple[ssl.SSLObject, Session | None]:
    """Python's object, and the session under it where that can be reached."""
    from .openssl import library  # for those who use TLS, as it loads ctypes

    def make() -> ssl.SSLObject:
        return context.wrap_bio(incoming, outgoing, server_hostname=hostname)

    known = library()
    return (make(), None) if known is None else known.made(make)
