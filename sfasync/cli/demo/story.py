"""The steps of the demo, in order."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...engine import Engine
from ...errors import IntegrityError
from ...models import BackupResult, ExportAddress
from ...nbd.uri import format_uri
from ...programs import make_certificates, require_tools, run_tool
from ...store.repository import Repository
from ...transport.export import open_export
from ...units import MiB, format_seconds, format_size
from ...workers import Workers
from ..records import SHORT, local_time, size_of
from .disks import Recipe, make_disk
from .servers import TOOLS, nbd_server, nbdkit_over_tls, qemu_nbd

_VM = "web-01"

_DISKS = {
    "system": Recipe(seed=1, size=1024 * MiB, programs=96 * MiB, logs=64 * MiB),
    "data": Recipe(seed=2, size=512 * MiB, programs=64 * MiB, logs=32 * MiB),
    "logs": Recipe(seed=3, size=256 * MiB + 512, programs=0, logs=96 * MiB),
}

_CHANGE_AT = 300 * MiB
_CHANGE = 3 * MiB

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Stage:
    """What the steps work with.

    Attributes:
        directory: Where everything is.
        images: The files behind the servers, by disk, and their formats.
        disks: Where the servers are, by disk.
        say: Takes a line.
    """

    directory: Path
    images: Mapping[str, tuple[Path, str]]
    disks: Mapping[str, ExportAddress]
    say: Say


async def run(say: Say, *, keep: bool = False) -> None:
    """Show backup, change, second backup, list, verification, restore and comparison.

    Args:
        say: Called with each line.
        keep: Leave the repository and the restored disks where they are; the servers end in any case.

    Raises:
        UsageError: A program is missing.
        SourceError: A program failed.
        IntegrityError: What was restored is not what was backed up.
        SfasyncError: As of the engine.
    """
    require_tools("the demo", TOOLS)
    began = time.monotonic()
    with _directory(keep) as directory:
        say(f"sfasync demo: a VM with three disks, on three real NBD servers, in {directory}")
        async with (
            _stage(directory, say) as stage,
            await Repository.open(directory / "repository", create=True) as repository,
            Engine(repository) as engine,
        ):
            await _perform(stage, engine, repository)
        if keep:
            say(f"The repository and the restored disks are in {directory}; the servers have ended.")
    say(f"Done in {format_seconds(time.monotonic() - began)}.")


async def _perform(stage: _Stage, engine: Engine, repository: Repository) -> None:
    first = await _back_up(
        stage, engine, "1. The first backup reads only what the servers do not call zero, and compresses it."
    )
    before = await _change(stage)
    second = await _back_up(
        stage, engine, "3. The second backup is complete as well, but stores only blocks that the repository lacks."
    )
    await _list(stage, repository)
    await _verify(stage, engine)
    await _restore(stage, engine, second)
    await _restore_earlier(stage, engine, first, before)


# --- steps -----------------------------------------------------------------------------------------------------------


async def _back_up(stage: _Stage, engine: Engine, explanation: str) -> BackupResult:
    stage.say("")
    stage.say(explanation)
    disks = " ".join(f"--disk {shlex.quote(f'{disk}={format_uri(at)}')}" for disk, at in stage.disks.items())
    stage.say(f"   $ sfasync backup {_VM} {disks}")
    result = await engine.backup_vm(_VM, stage.disks)
    for disk in result.disks:
        facts = disk.statistics
        stage.say(
            f"   {disk.id:8} read {format_size(facts.bytes_read):>10}, zero {format_size(facts.bytes_zero):>10}, "
            f"new {format_size(facts.bytes_new):>10}, stored {format_size(facts.bytes_stored):>10}"
        )
    stage.say(f"   backup {result.id[:SHORT]} in {format_seconds(result.seconds)}")
    return result


async def _change(stage: _Stage) -> Path:
    """Change a disk as its guest would; returns a copy of the image as it was."""
    stage.say("")
    stage.say(f"2. The guest writes {format_size(_CHANGE)} to its disk 'system'.")
    image, _ = stage.images["system"]
    before = image.with_name("system-before.qcow2")
    shutil.copyfile(image, before)
    async with await open_export(stage.disks["system"]) as disk:
        await disk.write(_CHANGE_AT, random.Random(4).randbytes(_CHANGE))  # noqa: S311 - any bytes
        await disk.flush()
    return before


async def _list(stage: _Stage, repository: Repository) -> None:
    stage.say("")
    stage.say("4. Both backups are there, each whole by itself: there is no chain that could break.")
    stage.say("   $ sfasync list")
    for backup in await repository.backups(_VM):
        stored = sum(disk.statistics.bytes_stored for disk in backup.disks)
        stage.say(
            f"   {backup.id[:SHORT]}  {backup.vm}  {local_time(backup.time)}  {size_of(backup.disks)} "
            f"on {len(backup.disks)} disks, stored {format_size(stored)}"
        )


async def _verify(stage: _Stage, engine: Engine) -> None:
    stage.say("")
    stage.say("5. Every byte of the repository is read, and every digest computed again.")
    stage.say("   $ sfasync verify --data")
    found = await engine.verify(data=True)
    if not found.ok:
        raise IntegrityError(f"the repository is damaged: {found.problems[0].problem}", path=found.problems[0].object)
    stage.say(
        f"   no problems: {found.objects} objects, {format_size(found.bytes_read)} in {format_seconds(found.seconds)}"
    )


async def _restore(stage: _Stage, engine: Engine, backup: BackupResult) -> None:
    stage.say("")
    stage.say("6. The disks are restored to sparse files, each block checked before it is written.")
    stage.say(f"   $ sfasync restore {_VM}@latest --to {stage.directory / 'restored'}")
    target = stage.directory / "restored"
    result = await engine.restore_vm(f"{_VM}@latest", to=target)
    for restored in result.disks:
        allocated = (target / f"{restored.id}.raw").stat().st_blocks * 512
        stage.say(
            f"   {restored.id:8} {format_size(restored.size):>10} restored, {format_size(allocated):>10} of it on disk"
        )
    stage.say("   Compared with what the servers serve, byte by byte, by qemu-img:")
    for disk, (image, image_format) in stage.images.items():
        await _compare(stage, target / f"{disk}.raw", image, image_format)
    assert result.id == backup.id, "latest is the last one made"


async def _restore_earlier(stage: _Stage, engine: Engine, backup: BackupResult, before: Path) -> None:
    stage.say("")
    stage.say("7. The first backup still gives the disk as it was before the change.")
    target = stage.directory / "earlier"
    stage.say(f"   $ sfasync restore {backup.id[:SHORT]} --disk system --to {target}")
    await engine.restore_vm(backup.id, to=target, disks=["system"])
    await _compare(stage, target / "system.raw", before, "qcow2")


async def _compare(stage: _Stage, restored: Path, image: Path, image_format: str) -> None:
    # A server may hold the image open; reading beside it is safe, for nobody writes.
    answer = await run_tool("qemu-img", "compare", "-U", "-f", "raw", "-F", image_format, restored, image)
    stage.say(f"   {restored.name:12} {answer.strip()}")


# --- the stage -------------------------------------------------------------------------------------------------------


@contextmanager
def _directory(keep: bool) -> Iterator[Path]:
    """A temporary directory, which also takes the cache of the repository."""
    directory = Path(tempfile.mkdtemp(prefix="sfasync-demo-"))
    cache = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(directory / "cache")
    try:
        yield directory
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if cache is not None:
            os.environ["XDG_CACHE_HOME"] = cache
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def _stage(directory: Path, say: Say) -> AsyncIterator[_Stage]:
    """Disks with content, and servers for them."""
    images = await _make_images(directory)
    tls = await make_certificates(directory / "certificates")
    async with AsyncExitStack() as running:
        disks = {
            "system": await running.enter_async_context(qemu_nbd(images["system"][0])),
            "data": await running.enter_async_context(
                nbdkit_over_tls(images["data"][0], directory / "certificates", tls)
            ),
            "logs": await running.enter_async_context(nbd_server(images["logs"][0])),
        }
        for disk, server in (
            ("system", "qcow2 image, served by qemu-nbd on a Unix socket"),
            ("data", "raw image, served by nbdkit over TLS; its certificate is verified"),
            ("logs", "raw image, served by nbd-server on a Unix socket"),
        ):
            say(f"   {disk:8} {format_size(_DISKS[disk].size):>10}  {server}")
        yield _Stage(directory, images, disks, say)


async def _make_images(directory: Path) -> dict[str, tuple[Path, str]]:
    workers = Workers(1, "sfasync-demo")
    try:
        images = {disk: directory / f"{disk}.raw" for disk in _DISKS}
        for disk, recipe in _DISKS.items():
            await make_disk(images[disk], recipe, workers)
    finally:
        workers.close()
    qcow2 = directory / "system.qcow2"
    await run_tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", images["system"], qcow2)
    images["system"].unlink()
    return {"system": (qcow2, "qcow2"), "data": (images["data"], "raw"), "logs": (images["logs"], "raw")}
