"""The steps of the demo, in order."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...engine import Engine
from ...errors import IntegrityError
from ...lab import Lab, MachineSpec
from ...models import BackupResult
from ...nbd.uri import format_uri
from ...platform.scp.platform import ScpPlatform
from ...programs import require_tools, run_tool
from ...store.repository import Repository
from ...units import MiB, format_seconds, format_size
from ...workers import Workers
from ..records import SHORT, local_time, size_of
from .disks import Recipe, make_disk

TOOLS = {"qemu-storage-daemon": "qemu-system-common", "qemu-img": "qemu-utils", "mkfs.ext4": "e2fsprogs"}
"""Programs that the demo starts, and the Debian packages that bring them."""

_VM = "web-01"

_DISKS = {
    "ide0": Recipe(seed=1, size=1024 * MiB, programs=96 * MiB, logs=64 * MiB),
    "ide1": Recipe(seed=2, size=512 * MiB, programs=64 * MiB, logs=32 * MiB),
}

_CHANGE_AT = 300 * MiB
_CHANGE = 3 * MiB

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Stage:
    """What the steps work with.

    Attributes:
        images: Raw images of the disks as they were at first, by disk.
        lab: The platform, from inside.
        platform: The platform, as `sfasync` sees any other.
        repository: Where backups go.
        engine: What makes them.
        say: Takes a line.
    """

    images: Mapping[str, Path]
    lab: Lab
    platform: ScpPlatform
    repository: Repository
    engine: Engine
    say: Say


async def run(say: Say, *, keep: bool = False) -> None:
    """Show a full backup, a change, an incremental backup, a list, verification, a differential restore, comparison.

    Args:
        say: Called with each line.
        keep: Leave the repository where it is; the lab ends in any case.

    Raises:
        UsageError: A program is missing.
        SourceError: A program failed.
        IntegrityError: What was restored is not what was backed up.
        SfasyncError: As of the engine.
    """
    require_tools("the demo", TOOLS)
    began = time.monotonic()
    with _directory(keep) as directory:
        say(f"sfasync demo: a VM with two disks on a platform of this machine's own, in {directory}")
        async with _stage(directory, say) as stage:
            await _perform(stage)
        if keep:
            say(f"The repository is in {directory}; the lab has ended.")
    say(f"Done in {format_seconds(time.monotonic() - began)}.")


async def _perform(stage: _Stage) -> None:
    first = await _back_up(
        stage, "1. The first backup is full: all disks are frozen at one moment, and read over NBD inside TLS."
    )
    await _change(stage)
    await _back_up(
        stage,
        "3. The second backup reads what the platform says has changed, and a little more to see whether that is so.",
    )
    await _list(stage)
    await _verify(stage)
    await _restore(stage, first)
    await _compare(stage)
    _show_nothing_left(stage)


# --- steps -----------------------------------------------------------------------------------------------------------


async def _back_up(stage: _Stage, explanation: str) -> BackupResult:
    _headed(stage, explanation, f"sfasync backup {_VM} --platform lab")
    result = await stage.engine.backup_vm(_VM, platform=stage.platform)
    for disk in result.disks:
        facts = disk.statistics
        stage.say(
            f"   {disk.id:5} {disk.mode:11} read {format_size(facts.bytes_read):>10}, "
            f"new {format_size(facts.bytes_new):>10}, stored {format_size(facts.bytes_stored):>10}"
        )
    stage.say(f"   backup {result.id[:SHORT]} in {format_seconds(result.seconds)}")
    return result


async def _change(stage: _Stage) -> None:
    """Change a disk as its guest would."""
    stage.say("")
    stage.say(f"2. The guest writes {format_size(_CHANGE)} to its first disk.")
    await stage.lab.vm(_VM).disk("ide0").write(_CHANGE_AT, random.Random(4).randbytes(_CHANGE))  # noqa: S311 - any bytes


async def _list(stage: _Stage) -> None:
    _headed(
        stage, "4. Both backups are there, each whole by itself: there is no chain that could break.", "sfasync list"
    )
    for backup in await stage.repository.backups():
        stored = sum(disk.statistics.bytes_stored for disk in backup.disks)
        stage.say(
            f"   {backup.id[:SHORT]}  {backup.vm_name}  {local_time(backup.time)}  {size_of(backup.disks)} "
            f"on {len(backup.disks)} disks, stored {format_size(stored)}"
        )


async def _verify(stage: _Stage) -> None:
    explanation = "5. Every byte of the repository is read, and every digest computed again."
    _headed(stage, explanation, "sfasync verify --data")
    found = await stage.engine.verify(data=True)
    if not found.ok:
        raise IntegrityError(f"the repository is damaged: {found.problems[0].problem}", path=found.problems[0].object)
    stage.say(
        f"   no problems: {found.objects} objects, {format_size(found.bytes_read)} in {format_seconds(found.seconds)}"
    )


async def _restore(stage: _Stage, backup: BackupResult) -> None:
    _headed(
        stage,
        "6. The VM, switched off, gets its first backup back: only what has changed since is written.",
        f"sfasync lab power {_VM} off; sfasync restore {backup.id[:SHORT]} --platform lab --differential",
    )
    stage.lab.vm(_VM).switch(running=False)
    result = await stage.engine.restore_vm(backup.id, platform=stage.platform, differential=True)
    for disk in result.disks:
        written = disk.bytes_written + disk.bytes_zero
        stage.say(f"   {disk.id:5} {disk.mode:12} {format_size(written):>10} of {format_size(disk.size)} written")
    stage.lab.vm(_VM).switch(running=True)


async def _compare(stage: _Stage) -> None:
    stage.say("")
    stage.say("7. The disks are those of the first backup again: qemu-img compares every byte.")
    for disk, image in stage.images.items():
        async with stage.lab.vm(_VM).disk(disk).opened() as address:
            answer = await run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", image, format_uri(address))
        stage.say(f"   {disk:5} {answer.strip()}")


def _show_nothing_left(stage: _Stage) -> None:
    snapshots, resources = stage.lab.vm(_VM).snapshots, stage.lab.site.leases.all()
    exports = sum(len(lease.exports) for lease in resources)
    stage.say("")
    stage.say("8. Nothing is left on the platform.")
    stage.say("   $ sfasync lab status; sfasync lab down")
    stage.say(f"   {len(snapshots)} snapshots, {len(resources)} backup resources, {exports} exports")


def _headed(stage: _Stage, explanation: str, command: str) -> None:
    stage.say("")
    stage.say(explanation)
    stage.say(f"   $ {command}")


# --- the stage -------------------------------------------------------------------------------------------------------


@contextmanager
def _directory(keep: bool) -> Iterator[Path]:
    """A temporary directory, which also takes what the repository caches and the platform's client notes."""
    directory = Path(tempfile.mkdtemp(prefix="sfasync-demo-"))
    places = {"XDG_CACHE_HOME": directory / "cache", "XDG_STATE_HOME": directory / "state"}
    before = {name: os.environ.get(name) for name in places}
    os.environ.update({name: str(place) for name, place in places.items()})
    try:
        yield directory
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def _stage(directory: Path, say: Say) -> AsyncIterator[_Stage]:
    """A lab whose disks have content, and all that is needed to back them up."""
    disks = directory / "disks"
    disks.mkdir()
    images = await _make_images(disks)
    machine = MachineSpec(name=_VM, disks=tuple(recipe.size for recipe in _DISKS.values()))
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, disks, ignore_errors=True)  # the repository is all that may stay
        lab = await stack.enter_async_context(Lab([machine], directory=disks))
        repository = await stack.enter_async_context(await Repository.open(directory / "repository", create=True))
        engine = await stack.enter_async_context(Engine(repository))
        for disk, image in images.items():
            async with lab.vm(_VM).disk(disk).opened() as address:
                await engine.copy(image, address, destination_is_zero=True)
            say(f"   {disk:5} {format_size(_DISKS[disk].size):>10}  qcow2 image in a qemu-storage-daemon")
        say(f"   {lab.url}: the documented interface of a Sangfor Cloud Platform (sfasync lab up)")
        platform = await stack.enter_async_context(ScpPlatform(lab.settings))
        yield _Stage(images, lab, platform, repository, engine, say)


async def _make_images(directory: Path) -> dict[str, Path]:
    workers = Workers(1, "sfasync-demo")
    try:
        images = {disk: directory / f"{disk}.raw" for disk in _DISKS}
        for disk, recipe in _DISKS.items():
            await make_disk(images[disk], recipe, workers)
    finally:
        workers.close()
    return images
