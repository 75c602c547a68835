"""The NBD servers of the demo, on this machine only."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ...models import ExportAddress, TlsPolicy
from ...programs import free_port, running

TOOLS = {
    "nbdkit": "nbdkit",
    "nbd-server": "nbd-server",
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "openssl": "openssl",
    "mkfs.ext4": "e2fsprogs",
}
"""Programs that the demo starts, and the Debian packages that bring them."""


@asynccontextmanager
async def nbdkit_over_tls(image: Path, certificates: Path, tls: TlsPolicy) -> AsyncIterator[ExportAddress]:
    """nbdkit, which serves a raw file and accepts verified TLS only."""
    port = free_port()
    ready = image.with_suffix(".nbdkit")
    command = ("nbdkit", "--foreground", "--ipaddr", "127.0.0.1", "--port", str(port), "--pidfile", ready)
    options = ("--tls=require", f"--tls-certificates={certificates}", "file", image)
    async with running([*command, *options], ready.exists):
        yield ExportAddress(host="localhost", port=port, tls=tls)


@asynccontextmanager
async def qemu_nbd(image: Path) -> AsyncIterator[ExportAddress]:
    """qemu-nbd, which serves the disk in a qcow2 file on a Unix socket."""
    path = image.with_suffix(".sock")
    ready = image.with_suffix(".qemu-nbd")
    command = (
        "qemu-nbd",
        "--persistent",
        "--shared=8",
        f"--socket={path}",
        f"--pid-file={ready}",
        "--format=qcow2",
        image,
    )
    async with running(command, ready.exists):
        yield ExportAddress(socket=path)


@asynccontextmanager
async def nbd_server(image: Path) -> AsyncIterator[ExportAddress]:
    """nbd-server, which serves a raw file as the export ``logs`` on a Unix socket."""
    path = image.with_suffix(".sock")
    config = image.with_suffix(".conf")
    config.write_text(f"[generic]\nunixsock = {path}\n[logs]\nexportname = {image}\nflush = true\n")
    # It goes to the background by itself; a shell waits in its place, to be ended or to see us gone, and ends it.
    script = 'trap : TERM; nbd-server -C "$1" -p "$1.pid" || exit; read -r _; kill "$(cat "$1.pid")"'
    async with running(("sh", "-c", script, "sh", config), lambda: _accepts(path)):
        yield ExportAddress(socket=path, export="logs")


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fsencode(path)) == 0
