"""Removes what a run of ours has made on the platform, and nothing else.

A run that ends as it should is undone by the same steps as one whose process died: what was made last goes first, and
each step is written down when the platform has shown that the thing is gone. What cannot be removed stays in the
journal, for the next one to try.

A thing whose id is not known, because the process died between asking for it and being answered, is found by its name,
or by asking for it once more with the token of the first request: within 15 minutes the platform then tells what it has
made, and makes nothing new unless the first request never arrived. A lease that is older has run out by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from ...errors import BusyError, PlatformError, SfasyncError, one_line, printable
from ...models import Leftover
from ...tasks import finish
from .api import ResourceKind, ScpApi
from .journal import Entry, Journal, Run
from .making import never_made

log = logging.getLogger("sfasync")

DESCRIPTION: Final = "made by sfasync for the time of a backup or a restore"

_TOKEN_LIFE: Final = 14 * 60.0
_UNDO: Final = 900.0
"""Seconds: merging a snapshot into its disk takes its time."""
_UNDO_CANCELLED: Final = 4.0  # cancelling a job ends it within 5 s
_UNDO_SILENT: Final = 5.0
"""Seconds for each thing of a platform that gives no answer: it was waited for before, and the journal keeps it."""

_ENDED: Final = ("expired", "cancelled", "released", "failed")


@asynccontextmanager
async def undone(api: ScpApi, journal: Journal) -> AsyncIterator[Run]:
    """A run, which is undone at the end of the block.

    Cancelled, it asks the platform to remove things and waits 4 s for that; what is not confirmed stays in the journal.

    Raises:
        PlatformError: The block went well, but something could not be removed.
        StorageError: The journal cannot be written.
    """
    run = await journal.begin()
    try:
        yield run
    except BaseException as error:
        seconds = _UNDO_CANCELLED if isinstance(error, asyncio.CancelledError) else _UNDO
        for problem in await _problems(api, run, seconds):
            log.warning("%s", problem)
            error.add_note(f"also: {problem}")
        raise
    problems = await _problems(api, run, _UNDO)
    if problems:
        raise PlatformError("; ".join(problems))


async def _problems(api: ScpApi, run: Run, seconds: float) -> list[str]:
    """Undo a run; what could not be removed, as sentences."""
    things = ", ".join(_named(entry) for entry in reversed(run.entries))
    try:
        leftovers = await finish(undo(api, run), seconds, hurried=_UNDO_CANCELLED)
    except TimeoutError:
        return [
            f"the platform did not confirm in {seconds:g} s that all is removed ({things}); 'sfasync cleanup' asks it "
            "again"
        ]
    except SfasyncError as error:
        return [str(error)]
    return [
        f"{leftover.kind} {leftover.id} was not removed ({leftover.problem}); 'sfasync cleanup' tries again"
        for leftover in leftovers
        if not leftover.removed
    ]


async def undo(api: ScpApi, run: Run) -> list[Leftover]:
    """Remove everything of a run, what was made last first, and end it; tells what was there."""
    try:
        return [await undo_entry(api, run, entry) for entry in reversed(run.entries)]
    finally:
        await run.end()


async def undo_entry(api: ScpApi, run: Run, entry: Entry) -> Leftover:
    """Remove one thing of a run, or tell why it cannot be."""
    problem = ""
    patience = _UNDO_SILENT if api.silent else None
    try:
        async with asyncio.timeout(patience):
            await remove(api, run, entry)
    except TimeoutError:
        problem = f"the platform, which gave no answer before, did not confirm it in {patience:g} s"
    except SfasyncError as error:
        problem = one_line(str(error))
    return leftover_of(entry, removed=not problem, problem=problem)


def leftover_of(entry: Entry, *, removed: bool = False, problem: str = "") -> Leftover:
    """An entry, as it is told to people."""
    return Leftover(kind=entry.kind, id=_identity(entry), vm=entry.vm, removed=removed, problem=problem)


def _identity(entry: Entry) -> str:
    return entry.id or entry.name or "of unknown id"


def _named(entry: Entry) -> str:
    return f"{entry.kind} {printable(_identity(entry))}"


async def remove(api: ScpApi, run: Run, entry: Entry) -> None:
    """Remove one thing of a run; returns when it is gone, and noted to be.

    Raises:
        SfasyncError: It is not.
    """
    if entry.kind == "backup resource":
        await _remove_resource(api, run, entry)
    elif entry.kind == "snapshot":
        await _remove_snapshot(api, run, entry)
    else:
        await _remove_server(api, run, entry)
    await run.gone(entry)


async def _remove_resource(api: ScpApi, run: Run, entry: Entry) -> None:
    if not entry.id:
        age = time.time() - entry.at
        if age > max(entry.seconds, _TOKEN_LIFE):
            return
        if age > _TOKEN_LIFE:
            raise PlatformError(f"its id is not known; it ends by itself in {entry.seconds - age:.0f} s at most")
        kind: ResourceKind = "restore" if entry.name == "restore" else "backup"
        try:
            created = await api.create_resource(entry.vm, kind, entry.seconds, token=entry.token)
        except (PlatformError, BusyError) as error:
            if never_made(error):
                return
            raise
        await run.made(entry, _known(created.id), created.task_id)
    await _made(api, entry)
    with _gone_already():
        await api.wait(await api.delete_resource(entry.id))
        resource = await api.resource(entry.id)
        if resource.status not in _ENDED:
            raise PlatformError(f"the platform was asked to, and it is still {printable(resource.status)}")


async def _remove_snapshot(api: ScpApi, run: Run, entry: Entry) -> None:
    with _gone_already():
        await _made(api, entry)
        if not entry.id:
            identity = await _snapshot_of_unknown_id(api, entry)
            if identity is None:
                return
            await run.made(entry, identity)
        with _gone_already():
            await api.wait(await api.delete_snapshot(entry.vm, entry.id))
        if any(snapshot.id == entry.id for snapshot in await api.snapshots(entry.vm)):
            raise PlatformError("the platform was asked to, and it is still there")


async def _snapshot_of_unknown_id(api: ScpApi, entry: Entry) -> str | None:
    """The id of a snapshot that may have been made; None if it was not."""
    found = await named_snapshot(api, entry.vm, entry.name)
    if found is not None or time.time() - entry.at > _TOKEN_LIFE:
        return found
    try:
        created = await api.create_snapshot(entry.vm, entry.name, DESCRIPTION, token=entry.token)
    except (PlatformError, BusyError) as error:
        if never_made(error):
            return None
        raise
    await api.wait(created.task_id)
    return created.id or await named_snapshot(api, entry.vm, entry.name)


async def _remove_server(api: ScpApi, run: Run, entry: Entry) -> None:
    if not entry.id and not await _server_of_unknown_id(api, run, entry):
        return
    await _made(api, entry)
    with _gone_already():
        await api.wait(await api.delete_server(entry.id, for_good=True))


async def _server_of_unknown_id(api: ScpApi, run: Run, entry: Entry) -> bool:
    """Find out the id of a VM that may have been made; False if it was not."""
    if time.time() - entry.at > _TOKEN_LIFE:
        raise PlatformError(
            f"its id is not known; look for a VM of the name '{printable(entry.name)}' that is off, and remove it by "
            "hand"
        )
    try:
        created = await api.create_server_from_config(entry.body or {}, token=entry.token)
    except (PlatformError, BusyError) as error:
        if never_made(error):
            return False
        raise
    await run.made(entry, _known(created.id), created.task_id)
    return True


async def named_snapshot(api: ScpApi, server_id: str, name: str) -> str | None:
    """The id of a snapshot by the name that only we gave it; None if there is none."""
    return next((snapshot.id for snapshot in await api.snapshots(server_id) if snapshot.name == name), None)


async def _made(api: ScpApi, entry: Entry) -> None:
    """Wait for the task that makes a thing: before, it cannot be removed, and after, it would be there."""
    if entry.task:
        await api.ended(entry.task)
        entry.task = ""


def _known(identity: str | None) -> str:
    if identity is None:
        raise PlatformError("the platform does not tell its id")
    return identity


@contextmanager
def _gone_already() -> Iterator[None]:
    """What is not there any more, or whose VM is not, needs no removing."""
    try:
        yield
    except PlatformError as error:
        if error.status != 404:
            raise
