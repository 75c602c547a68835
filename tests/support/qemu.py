"""QEMU with disks, as a platform meets it: a qemu-storage-daemon, and a whole QEMU whose guest never starts."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from sfasync.models import ExportAddress
from sfasync.platform.qemu.inventory import nodes
from sfasync.platform.qemu.monitor import open_monitor
from sfasync.platform.qemu.places import Places
from sfasync.platform.qemu.settings import QemuNbd, QemuSettings, QemuTimeouts, QemuVm
from sfasync.platform.qemu.sweep import Sweep

from .servers import Server, storage_daemon, system_emulator

TIMEOUTS = QemuTimeouts(connect=30.0, command=60.0, freeze=5.0)  # it answers nobody while it waits for a disk


@dataclass(frozen=True, slots=True)
class Machine:
    """A running QEMU.

    Attributes:
        server: The process.
        directory: Where its images are.
        sizes: Bytes of its disks, by id.
        settings: How the platform reaches it.
    """

    server: Server
    directory: Path
    sizes: Mapping[str, int]
    settings: QemuVm

    def image(self, disk: str) -> Path:
        return next(self.directory.glob(f"{disk}.*"))

    def address(self, disk: str) -> ExportAddress:
        """Where the guest's side of a disk can be written."""
        return ExportAddress(socket=self.server.socket, export=disk)

    def uri(self, disk: str) -> str:
        return f"nbd+unix:///{quote(disk)}?socket={quote(str(self.server.socket))}"

    def platform_settings(self, **changes: object) -> QemuSettings:
        """Settings with this one VM, called ``web-01``."""
        return QemuSettings(vms={"web-01": replace(self.settings, **changes)}, timeouts=TIMEOUTS)  # type: ignore[arg-type] # any of them


def create_image(path: Path, size: int) -> None:
    """Make an empty image; its suffix tells the format."""
    command: list[str | Path] = ["qemu-img", "create", "-q", "-f", path.suffix.removeprefix("."), path, str(size)]
    subprocess.run(command, check=True)


@contextmanager
def daemon(
    sizes: Mapping[str, int], *, formats: Mapping[str, str] | None = None, directory: Path | None = None
) -> Iterator[Machine]:
    """A qemu-storage-daemon that serves each disk to be written, under its id.

    Args:
        sizes: Bytes of each disk, by id.
        formats: ``qcow2`` or ``raw`` by disk; qcow2 where nothing is said.
        directory: Where images are, or are made if there are none; None for a new one.
    """
    with _images(sizes, formats or {}, directory) as place:
        args = []
        for disk in sizes:
            args += ["--blockdev", _node(place, disk)]
            args += ["--export", f"nbd,id=guest-{disk},node-name={disk},name={disk},writable=on"]
        with storage_daemon(*args, export=next(iter(sizes))) as server:
            yield _machine(server, place, sizes)


@contextmanager
def system(
    sizes: Mapping[str, int],
    *,
    formats: Mapping[str, str] | None = None,
    directory: Path | None = None,
    exported: bool = True,
    shared: bool = True,
) -> Iterator[Machine]:
    """A QEMU with the disks as devices of a guest that is not started.

    Args:
        sizes, formats, directory: As of `daemon`.
        exported: Whether the disks are served to be written as well.
        shared: Whether the devices allow others to write.
    """
    with _images(sizes, formats or {}, directory) as place:
        args = ["-object", "iothread,id=thread0"]
        for number, disk in enumerate(sizes):
            args += ["-blockdev", _node(place, disk)]
            thread = ",iothread=thread0" if number == 0 else ""  # one of them not in the main loop
            share = ",share-rw=on" if shared else ""
            args += ["-device", f"virtio-blk-pci,drive={disk},id={disk}{share}{thread}"]
        with system_emulator(*args, exports=list(sizes) if exported else ()) as server:
            yield _machine(server, place, sizes)


async def made_by_us(machine: Machine) -> list[str]:
    """Names of what is in a QEMU for the time of a job."""
    async with open_monitor("web-01", machine.settings, TIMEOUTS) as monitor:
        places = Places.of(machine.settings)
        found = await Sweep(monitor, "web-01", machine.settings, places, TIMEOUTS.clean).look()
    return [leftover.id for leftover in found]


async def bitmaps(machine: Machine, disk: str) -> list[str]:
    """Names of the bitmaps that a disk has."""
    async with open_monitor("web-01", machine.settings, TIMEOUTS) as monitor:
        found = await nodes(monitor)
    return [bitmap.name for node in found if node.node_name == disk for bitmap in node.dirty_bitmaps]


@contextmanager
def _images(sizes: Mapping[str, int], formats: Mapping[str, str], directory: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sfasync-qemu-") as temporary:  # not pytest's: paths of sockets are short
        place = directory or Path(temporary)
        for disk, size in sizes.items():
            path = place / f"{disk}.{formats.get(disk, 'qcow2')}"
            if not path.exists():
                create_image(path, size)
        yield place


def _node(place: Path, disk: str) -> str:
    path = next(place.glob(f"{disk}.*"))
    return f"driver={path.suffix[1:]},node-name={disk},discard=unmap,file.driver=file,file.filename={path}"


def _machine(server: Server, place: Path, sizes: Mapping[str, int]) -> Machine:
    assert server.qmp is not None, "both have a monitor"
    settings = QemuVm(socket=server.qmp, nbd=QemuNbd(socket=server.socket), directory=server.qmp.parent)
    return Machine(server, place, dict(sizes), settings)
