"""Tasks of the platform: what was asked for has begun, and is done some time later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from ...errors import PlatformError
from ...tasks import Looks
from .client import ScpClient

DONE: Final = "finish"
_FAILED: Final = ("failure", "canceled")
_RUNNING: Final = ("waiting", "doing", "canceling")
_PROGRESS_FAILED: Final = -1
_FIRST_LOOK: Final = 0.25
_SUBTASKS: Final = 3
_ENTITIES_LIMIT: Final = 1 << 16
"""Bytes."""

_NOTHING: Final = msgspec.Raw(b"null")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubTask:
    """A part of a task."""

    status: str | None = None
    progress: float | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entities:
    """What a task is made of."""

    sub_tasks: tuple[SubTask, ...] | None = None


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A task.

    Attributes:
        status: ``waiting``, ``doing``, ``finish``, ``failure``, ``canceling``, ``canceled``.
        progress: Per cent; -2 while it waits, -1 when it has failed.
        action: What is done.
        description: What it is, or why it failed.
        object_id: What it is about.
        entities: More about that, and the tasks that it is made of, as far as the platform tells.
    """

    status: str
    progress: float | None = None
    action: str | None = None
    description: str | None = None
    object_id: str | None = None
    entities: msgspec.Raw = _NOTHING

    @property
    def failed(self) -> bool:
        """Whether it has ended, and badly."""
        return self.status in _FAILED or (self.status != DONE and self.progress == _PROGRESS_FAILED)

    @property
    def running(self) -> bool:
        """Whether it waits, or is being done."""
        return self.status in _RUNNING and not self.failed

    @property
    def reasons(self) -> str:
        """What the platform says about it and about those of its parts that failed."""
        failed = [part.description for part in self._parts() if part.status in _FAILED][:_SUBTASKS]
        return "; ".join(text for text in (self.description, *failed) if text)

    def _parts(self) -> tuple[SubTask, ...]:
        """The tasks that it is made of. Nothing but words hangs on them: of another shape, they are passed over."""
        if len(memoryview(self.entities)) > _ENTITIES_LIMIT:
            return ()
        try:
            return msgspec.json.decode(self.entities, type=Entities, strict=False).sub_tasks or ()
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return ()


async def wait(client: ScpClient, task_id: str, *, timeout: float, poll: float, failed: bool = False) -> Task:
    """The task, when it has ended well. Cancelling leaves it going on.

    Args:
        client: Asks.
        task_id: Which.
        timeout: Seconds that it may take.
        poll: Seconds between two looks; the first come sooner.
        failed: Whether one that has ended badly is as good.

    Raises:
        CbtExpiredError, PlatformError: It failed, was cancelled, or took longer.
        AuthenticationError, TlsError: As of `ScpClient.call`.
    """
    async for _ in Looks(_FIRST_LOOK, poll, seconds=timeout):
        task = await client.call("task", Task, ids={"task_id": task_id})
        if task.status == DONE:
            return task
        if task.failed and failed:
            return task
        if task.failed:
            raise client.failures.of_task(task.action or task_id, task.status, task.reasons)
    raise PlatformError(f"task {task_id} is not done after {timeout:g} s; the platform goes on with it")
