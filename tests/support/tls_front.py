"""TLS from the first byte in front of a plain server, as a proxy such as stunnel provides it.

    with nbdkit("memory", "1G") as server, tls_front(server, certificates) as address: ...

It is a process of its own, so that a test can hold up its event loop; run as a program it is that process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sfasync.models import ExportAddress, TlsPolicy

from .servers import DIE_WITH_PARENT, START_TIMEOUT, Server


@contextlib.contextmanager
def tls_front(server: Server, certificates: Path, *, client_certificates: bool = False) -> Iterator[ExportAddress]:
    """The address at which a server is reached by direct TLS, on a port of 127.0.0.1.

    Args:
        server: A plain server on a Unix socket.
        certificates: The directory of the certificates used, and believed by the policy of the address.
        client_certificates: Whether clients have to show one; the policy of the address has none.
    """
    with tempfile.TemporaryDirectory(prefix="sfasync-front-") as directory:
        port = Path(directory, "port")
        process = subprocess.Popen(
            [
                *(*DIE_WITH_PARENT, sys.executable, "-m", __name__),
                *(str(server.socket), str(certificates), str(port), str(int(client_certificates))),
            ],
            stdin=subprocess.DEVNULL,
        )
        try:
            _wait(process, port)
            policy = TlsPolicy(style="direct", ca_file=certificates / "ca-cert.pem")
            yield ExportAddress(host="127.0.0.1", port=int(port.read_text()), tls=policy)
        finally:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not port.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the TLS front does not serve, status {process.returncode}")
        time.sleep(0.01)


# --- the process -----------------------------------------------------------------------------------------------------


async def _serve(upstream: str, certificates: Path, port: Path, client_certificates: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")
    if client_certificates:
        context.load_verify_locations(certificates / "ca-cert.pem")
        context.verify_mode = ssl.CERT_REQUIRED

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(upstream)
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))

    server = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
    hidden = port.with_suffix(".new")
    hidden.write_text(str(server.sockets[0].getsockname()[1]))
    hidden.rename(port)
    await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # ssl.SSLError is one: a client that just goes away
        while data := await reader.read(1 << 18):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), bool(int(sys.argv[4]))))
