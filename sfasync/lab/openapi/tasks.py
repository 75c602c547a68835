"""The platform's tasks: work that goes on after its call was answered."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ...errors import PlatformError, SfasyncError
from ..hypervisor import Progress
from ..misbehaviour import Misbehaviour

_KEPT = 1000  # tasks before those that have ended are forgotten
_SLOW_SECONDS = 5.0

Work = Callable[[Progress], Coroutine[Any, Any, None]]
"""What a task does; it is given something that takes the percentage done."""


@dataclass(slots=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        id: Its id.
        action: What it does, for people.
        object_id: What it works on.
        object_name: The name of that.
        status: `waiting`, `doing`, `finish` or `failure`.
        progress: A percentage; -2 while it waits, -1 when it has failed.
        description: Why it failed.
        began: Seconds since the epoch.
        ended: Seconds since the epoch; 0 while it has not.
    """

    id: str
    action: str
    object_id: str
    object_name: str
    status: str = "waiting"
    progress: int = -2
    description: str = ""
    began: float = field(default_factory=time.time)
    ended: float = 0.0

    def shown(self) -> dict[str, Any]:
        """As a call for it is answered."""
        return {
            "task_id": self.id,
            "status": self.status,
            "progress": self.progress,
            "action": self.action,
            "description": self.description,
            "object_id": self.object_id,
            "object_name": self.object_name,
            "object_type": "server",
            "begin_time": _local(self.began),
            "end_time": _local(self.ended) if self.ended else "",
            "cancelable": 0,
            "entities": {"object_id": self.object_id, "sub_tasks_total": 0, "sub_tasks": []},
        }


class Tasks:
    """All tasks; those of one object come one after the other."""

    def __init__(self, misbehaviour: Misbehaviour) -> None:
        self._misbehaviour = misbehaviour
        self._tasks: dict[str, Task] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._locks: dict[str, asyncio.Lock] = {}

    def start(self, action: str, object_id: str, object_name: str, work: Work) -> Task:
        """Begin a task."""
        task = Task(id=str(uuid.uuid4()), action=action, object_id=object_id, object_name=object_name)
        if len(self._tasks) >= _KEPT:
            self._tasks = {known: each for known, each in self._tasks.items() if not each.ended}
        self._tasks[task.id] = task
        running = asyncio.create_task(self._run(task, work), name=f"lab: {action}")
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return task

    def find(self, task_id: str) -> Task | None:
        """The task of that id."""
        return self._tasks.get(task_id)

    def all(self) -> list[Task]:
        """The tasks that are known, the last first."""
        return list(reversed(self._tasks.values()))

    def of(self, object_id: str) -> list[Task]:
        """What is being done with an object."""
        return [task for task in self._tasks.values() if task.object_id == object_id and not task.ended]

    async def aclose(self) -> None:
        """End all that is being done."""
        for running in list(self._running):
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, task: Task, work: Work) -> None:
        def progress(percent: int) -> None:
            task.progress = percent

        try:
            async with self._locks.setdefault(task.object_id, asyncio.Lock()):
                task.status, task.progress = "doing", 0
                if self._misbehaviour.due("slow-task"):
                    await asyncio.sleep(_SLOW_SECONDS)
                await (_failing() if self._misbehaviour.due("failed-task") else work(progress))
                task.status, task.progress = "finish", 100
        except (SfasyncError, OSError) as error:
            task.status, task.progress, task.description = "failure", -1, str(error)
        finally:
            task.ended = time.time()


async def _failing() -> None:
    raise PlatformError("the task failed, as the lab was told")


def _local(seconds: float) -> str:
    """Local time without a zone, as the platform writes it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
