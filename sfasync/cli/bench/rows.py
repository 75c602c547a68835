"""What is measured: the table of rows."""

from __future__ import annotations

from ...units import GiB, TiB
from . import backups, copies, others
from .contest import Row

_NBDKIT = {"nbdkit": "nbdkit"}
_IMAGE = {**_NBDKIT, "mke2fs": "e2fsprogs"}
_QEMU = {"qemu-nbd": "qemu-utils", "qemu-img": "qemu-utils"}
_NBDCOPY = {"nbdcopy": "libnbd-bin"}
_RESTIC = {"restic": "restic", "nbdcopy": "libnbd-bin"}
_SHARED = "the server shares the cores with the client"
_RESTIC_IS = "restic encrypts and cuts chunks by content, sfasync does neither yet"

ROWS = {
    row.id: row
    for row in (
        Row(id="S1", hold=copies.plain, size=4 * GiB, tools=_NBDKIT, peers=_NBDCOPY, caveats=_SHARED),
        Row(
            id="S2",
            hold=copies.encrypted,
            size=2 * GiB,
            tools={**_NBDKIT, "openssl": "openssl"},
            peers=_NBDCOPY,
            caveats=f"{_SHARED}; certificates are verified",
        ),
        Row(id="S3", hold=copies.to_file, size=4 * GiB, tools=_NBDKIT, peers=_NBDCOPY, caveats=_SHARED),
        Row(
            id="S4",
            hold=copies.from_file,
            size=2 * GiB,
            tools=_NBDKIT,
            peers=_NBDCOPY,
            caveats=f"{_SHARED}; the file is in the page cache",
        ),
        Row(
            id="S5",
            hold=backups.first,
            size=2 * GiB,
            tools=_IMAGE,
            peers={**_RESTIC, "borg": "borgbackup", "qemu-img": "qemu-utils"},
            caveats=f"{_SHARED}; {_RESTIC_IS}; borg without encryption, fixed 1 MiB chunks, zstd 1; qemu-img with zstd",
        ),
        Row(
            id="S6",
            hold=backups.again,
            size=2 * GiB,
            tools=_IMAGE,
            peers=_RESTIC,
            caveats=f"{_SHARED}; {_RESTIC_IS}",
        ),
        Row(
            id="S7",
            hold=backups.restore,
            size=2 * GiB,
            tools=_IMAGE,
            peers=_RESTIC,
            caveats=f"{_RESTIC_IS}; repositories are in the page cache",
        ),
        Row(
            id="S9",
            hold=copies.delayed,
            size=GiB,
            tools=_NBDKIT,
            peers=_NBDCOPY,
            caveats=f"no option set; {_SHARED}, and a filter of it waits",
        ),
        Row(
            id="S10",
            hold=backups.memory,
            size=2 * GiB,
            tools={**_IMAGE, **_QEMU},
            caveats="16 disks have the size of the first together, the sparse ones 512 and 8192 times as much",
        ),
        Row(id="S11", hold=backups.fairness, size=2 * GiB, tools=_NBDKIT, caveats=_SHARED),
        Row(
            id="S12",
            hold=backups.scattered,
            size=8 * TiB,
            tools=_QEMU,
            caveats=f"{_SHARED}; a quarter of each piece is random",
        ),
        Row(
            id="S14",
            hold=others.startup,
            size=0,
            scales=False,
            peers={"restic": "restic"},
            caveats="restic is a program that was compiled",
        ),
        Row(
            id="S15",
            hold=others.incremental,
            size=0,
            scales=False,
            caveats="the disk is made up in the process, so its bytes cost some CPU",
        ),
    )
}
