"""The NBD server of a QEMU, of which there is one at most, and what it serves of ours."""

from __future__ import annotations

import secrets

from ...errors import PlatformError
from ...models import ExportAddress
from .monitor import CommandError, Monitor
from .names import Kind
from .places import Places
from .settings import QemuVm


async def start_server(monitor: Monitor, vm: str, settings: QemuVm, places: Places) -> None:
    """See that there is a server: ours, or the one that was told.

    Raises:
        PlatformError: It cannot be started; or another one is running, nobody knows where.
    """
    nbd = settings.nbd
    if places.socket is not None:
        place: dict[str, object] = {"type": "unix", "data": {"path": str(places.socket)}}
        arguments: dict[str, object] = {"addr": place}
    elif nbd.credentials is not None:
        place = {"type": "inet", "data": {"host": nbd.host, "port": str(nbd.port)}}
        arguments = {"addr": place, "tls-creds": places.credentials}
        await monitor.run(
            "object-add",
            {
                "qom-type": "tls-creds-x509",
                "id": places.credentials,
                "endpoint": "server",
                "dir": str(nbd.credentials),
                "verify-peer": True,  # whoever gets in can list what is served, and read it
            },
        )
    else:
        return
    try:
        await monitor.run("nbd-server-start", arguments)
    except CommandError as error:
        if "already running" not in error.said:
            raise
        raise PlatformError(
            f"VM {vm!r}: an NBD server is running in this QEMU for other purposes, and there is one at most; "
            "tell where it is (nbd.socket, or nbd.host)"
        ) from error


async def serve(
    monitor: Monitor,
    settings: QemuVm,
    places: Places,
    number: int,
    node: str,
    *,
    writable: bool = False,
    bitmap: str | None = None,
) -> ExportAddress:
    """Export a node under a name that nobody guesses.

    Args:
        monitor: Of the VM.
        settings: Its settings.
        places: Its places.
        number: Of the disk.
        node: The node.
        writable: Whether it can be written.
        bitmap: A bitmap of the node, or of one below it, to be told as a metadata context.

    Raises:
        PlatformError: QEMU refuses.
    """
    name = f"sfasync-{secrets.token_hex(16)}"
    arguments: dict[str, object] = {
        "type": "nbd",
        "id": places.name(number, Kind.EXPORT),
        "node-name": node,
        "name": name,
        "writable": writable,
    }
    if bitmap is not None:
        arguments["bitmaps"] = [bitmap]
    await monitor.run("block-export-add", arguments)
    nbd = settings.nbd
    if nbd.host is not None:
        return ExportAddress(host=nbd.host, port=nbd.port, export=name, tls=nbd.tls)
    return ExportAddress(socket=nbd.socket or places.socket, export=name)
