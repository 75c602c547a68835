"""The NBD servers that are measured with; each listens on a Unix socket of its own unless said."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

from ...programs import free_port, make_certificates, run_tool, running
from .contest import SFASYNC


@asynccontextmanager
async def nbdkit(sockets: Path, *arguments: str | Path) -> AsyncIterator[str]:
    """An nbdkit with these arguments; gives its URI."""
    with tempfile.TemporaryDirectory(dir=sockets) as place:
        path, ready = Path(place, "s"), Path(place, "pid")
        command = ("nbdkit", "--foreground", "--unix", path, "--pidfile", ready, *arguments)
        async with running(command, ready.exists):
            yield _uri(path)


@asynccontextmanager
async def nbdkit_over_tls(sockets: Path, *arguments: str | Path) -> AsyncIterator[str]:
    """The same over TCP, with TLS and a certificate that the URI lets a client verify."""
    with tempfile.TemporaryDirectory(dir=sockets) as place:
        certificates, ready = Path(place, "certificates"), Path(place, "pid")
        await make_certificates(certificates)
        port = free_port()
        options = ("--ipaddr", "127.0.0.1", "--port", str(port), "--pidfile", ready)
        tls = ("--tls=require", f"--tls-certificates={certificates}")
        async with running(("nbdkit", "--foreground", *options, *tls, *arguments), ready.exists):
            yield f"nbds://localhost:{port}/?tls-certificates={quote(str(certificates))}"


@asynccontextmanager
async def qemu_nbd(
    sockets: Path, image: Path, *, writable: bool = False, tables_at_once: int | None = None
) -> AsyncIterator[str]:
    """A qemu-nbd that serves a qcow2 image; what is written to it need not survive anything.

    Args:
        sockets: Where its socket may be.
        image: The image.
        writable: Whether it can be written.
        tables_at_once: Bytes of the image's tables that are read with one call (``l2-cache-entry-size``); None for
            qemu's 4 KiB.
    """
    with tempfile.TemporaryDirectory(dir=sockets) as place:
        path, ready = Path(place, "s"), Path(place, "pid")
        access = "--cache=unsafe" if writable else "--read-only"
        options = ("--persistent", access, "--shared=16", f"--socket={path}", f"--pid-file={ready}")
        name = str(image).replace(",", ",,")
        opening = f"driver=qcow2,file.driver=file,file.filename={name}"
        if tables_at_once is not None:
            opening += f",l2-cache-entry-size={tables_at_once}"
        async with running(("qemu-nbd", *options, "--image-opts", opening), ready.exists):
            yield _uri(path)


async def fill(uri: str, image: Path) -> None:
    """Give a server that keeps its disk in memory the content of an image."""
    await run_tool(*map(str, (*SFASYNC, "copy", "--quiet", image, uri)))


def _uri(socket: Path) -> str:
    return f"nbd+unix:///?socket={quote(str(socket))}"
