"""Waiting for tasks: how they go on and how they end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sfasync.errors import CbtExpiredError, PlatformError
from sfasync.platform.scp.api import ScpApi

from .support import CANARY, QUICK, TASK, FakePlatform, Reply, Request, answer, refusal

PLACE = f"GET /janus/20180725/tasks/{TASK}"


def task(status: str, progress: float | None = None, **members: Any) -> Reply:
    return answer({"task_id": TASK, "status": status, "progress": progress, **members})


async def wait(platform: FakePlatform, timeout: float | None = None) -> None:
    async with ScpApi(platform.settings(), pace=QUICK) as scp:
        done = await scp.wait(TASK, timeout)
        assert done is not None
        assert done.status == "finish"


async def test_a_task_that_ends_well(platform: FakePlatform) -> None:
    platform.on(PLACE, task("waiting", -2), task("doing", 0), refusal(503), task("doing", 99), task("finish", 100))
    await wait(platform)
    assert len(platform.came(PLACE)) == 5


async def test_there_may_be_no_task(platform: FakePlatform) -> None:
    async with ScpApi(platform.settings(), pace=QUICK) as scp:
        assert await scp.wait(None) is None
    assert platform.requests == []


async def test_tasks_that_fail(platform: FakePlatform) -> None:
    parts = {
        "sub_tasks": [
            {"status": "finish", "description": "fine"},
            {"status": "failure", "description": f"disk\nfull {CANARY}"},
        ]
    }
    for reply, message in (
        (
            task("failure", -1, action="snapshot", description="no space"),
            r"task 'snapshot' has failed.*: no space",
        ),
        (task("doing", -1), r"\(doing\)"),
        (task("failure", entities={"sub_tasks": [{"status": "failure"}] * 10_000}), r"\(failure\)$"),
        (task("failure", entities=["of", "another", "shape"]), r"\(failure\)"),
        (task("canceled"), r"\(canceled\)"),
        (task("failure", -1, entities=parts), r"disk\\nfull \*\*\*$"),
    ):
        platform.on(PLACE, task("doing", 5), reply)
        with pytest.raises(PlatformError, match=message) as failure:
            await wait(platform)
        assert str(failure.value).isprintable()


async def test_tracking_that_has_expired(platform: FakePlatform) -> None:
    platform.on(PLACE, task("failure", -1, description="The VM CBT has expired. Please reset it."))
    with pytest.raises(CbtExpiredError):
        await wait(platform)


async def test_a_task_that_takes_too_long(platform: FakePlatform) -> None:
    platform.on(PLACE, task("doing", 50))
    with pytest.raises(PlatformError, match=r"not done after 0\.01 s"):
        await wait(platform, 0.01)


async def test_a_status_that_nobody_knows_is_no_end(platform: FakePlatform) -> None:
    platform.on(PLACE, task("pausing", 50), task("finish", None))
    await wait(platform)


async def test_waiting_can_be_cancelled(platform: FakePlatform) -> None:
    asked = asyncio.Event()

    def handle(request: Request) -> Reply:
        asked.set()
        return task("doing", 50)

    platform.on(PLACE, handle)
    waiting = asyncio.ensure_future(wait(platform))
    await asked.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
