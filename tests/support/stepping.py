"""Cancels a piece of work before a chosen step of it, counted over all the tasks it starts.

    stepper = Stepper(40, 43)             # cancel before step 40, and once more before step 43
    task = await stepper.run(work)
    assert task.cancelled()

A step is one `send` or `throw` into a coroutine of a task: what happens between two turns of the loop. Whatever runs at
that moment, it is the whole work that is cancelled, as its caller would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final

LATEST: Final = 10.0
"""Seconds in which work must have ended."""


class Stepper:
    """Runs a piece of work once.

    Attributes:
        steps: How many there were.
        cancelled: How often the work was cancelled.
    """

    def __init__(self, *cancel_at: int) -> None:
        self.steps = 0
        self.cancelled = 0
        self._cancel_at = frozenset(cancel_at)
        self._work: asyncio.Task[Any] | None = None

    async def run(self, work: Callable[[], Coroutine[Any, Any, object]]) -> asyncio.Task[object]:
        """The task of the work, at its end."""
        loop = asyncio.get_running_loop()
        before = loop.get_task_factory()
        loop.set_task_factory(self._factory)
        try:
            self._work = loop.create_task(work())
            done, _ = await asyncio.wait([self._work], timeout=LATEST)
        finally:
            loop.set_task_factory(before)
        assert done, f"{self._work!r} has not ended"
        return self._work

    def step(self) -> None:
        """One of the coroutines is about to go on."""
        if self.steps in self._cancel_at and self._work is not None and self._work.cancel():
            self.cancelled += 1
        self.steps += 1

    def _factory(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, /, **options: Any
    ) -> asyncio.Task[Any]:  # the type that `set_task_factory` has differs between versions of Python
        return asyncio.Task(_Stepped(coroutine, self), loop=loop, **options)


class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine whose steps are counted."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], stepper: Stepper) -> None:
        self._coroutine = coroutine
        self._stepper = stepper

    def send(self, value: Any, /) -> Any:
        self._stepper.step()
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        self._stepper.step()
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()
