"""A job ends with its block, tells its error once, and is cancelled by those who may."""

from __future__ import annotations

import asyncio

import pytest

from sfasync.errors import SourceError
from sfasync.jobs import Job
from sfasync.progress import Reporter


class Work:
    """Does nothing until it is let go; then gives a number or fails."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.go = asyncio.Event()
        self.cancelled = False
        self._failure = failure

    async def run(self, reporter: Reporter) -> int:
        reporter.enter("running")
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self._failure is not None:
            raise self._failure
        return 7


async def begun(work: Work) -> Job[int]:
    job = Job(work.run, None)
    await asyncio.sleep(0)
    assert job.progress().state == "running"
    return job


async def test_a_result_and_the_states_on_the_way() -> None:
    work = Work()
    states: list[str] = []
    job = Job(work.run, lambda progress: states.append(progress.state))
    work.go.set()
    assert not job.done
    assert await job.result() == 7
    assert job.done
    assert await job.result() == 7
    assert states == ["running", "done"]
    assert repr(job) == "<Job done>"


async def test_cancelling_the_wait_for_the_result_cancels_the_job() -> None:
    work = Work()
    job = await begun(work)
    waiter = asyncio.create_task(job.result())
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert job.done
    assert work.cancelled
    assert job.progress().state == "cancelled"


async def test_cancelling_the_wait_for_the_end_leaves_the_job_alone() -> None:
    work = Work()
    job = await begun(work)
    waiter = asyncio.create_task(job.ended())
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert not job.done
    work.go.set()
    assert await job.result() == 7


async def test_leaving_the_block_waits_and_raises_an_error_that_nobody_has_seen() -> None:
    work = Work(SourceError("bad sector"))
    with pytest.raises(SourceError, match="bad sector"):
        async with await begun(work) as job:
            work.go.set()
    assert job.progress().state == "failed"


async def test_an_error_that_was_seen_is_not_raised_again() -> None:
    work = Work(SourceError("bad sector"))
    async with await begun(work) as job:
        work.go.set()
        with pytest.raises(SourceError):
            await job.result()


async def test_leaving_the_block_by_an_error_cancels_the_job_first() -> None:
    work = Work()
    with pytest.raises(KeyError):
        async with await begun(work) as job:
            raise KeyError("the caller's own")
    assert job.done
    assert work.cancelled


async def test_an_error_that_nobody_asks_for_is_no_forgotten_one(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(SourceError("bad sector"))
    job = await begun(work)
    ended: list[Job[int]] = []
    job.when_ended(ended.append)
    work.go.set()
    await job.ended()
    await asyncio.sleep(0)
    assert ended == [job]
    job.cancel()  # harmless
    del job, ended
    assert caplog.records == []
