"""The keeper of a lease, against a platform that says and does what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sfasync.errors import BusyError, PlatformError
from sfasync.platform.scp import lease
from sfasync.platform.scp.api import ScpApi
from sfasync.platform.scp.journal import Journal
from sfasync.platform.scp.lease import Lease, Tenure, leased
from sfasync.platform.scp.undo import undone
from sfasync.workers import Workers

from .support import QUICK, RESOURCE, SERVER, FakePlatform, Handler, Reply, answer, refusal

PLACE = "/janus/20180725/backup-resources"
ONE = f"{PLACE}/{RESOURCE}"


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(1, "test")
    yield workers
    workers.close()


@pytest.fixture
def fake(platform: FakePlatform) -> FakePlatform:
    return platform


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(lease, "_SHORTEST_PAUSE", 0.02)


def state(remaining: float | None, status: str = "running") -> Reply:
    return answer({"status": status, "remain_time": remaining, "server_id": SERVER, "host_id": "host-1"})


@asynccontextmanager
async def held(
    fake: FakePlatform, workers: Workers, tmp_path: Path, *states: Reply | Handler, seconds: int = 60
) -> AsyncIterator[Lease]:
    """A lease of which the platform says these things, the last one for ever; then it gives up all questions."""
    fake.on(f"POST {PLACE}", answer({"resource_id": RESOURCE}, 201))
    fake.on(f"GET {ONE}", *states)
    fake.on(f"PUT {ONE}", answer({}))

    def delete(_: object) -> Reply:
        fake.on(f"GET {ONE}", refusal(404))
        return answer({})

    fake.on(f"DELETE {ONE}", delete)
    async with (
        ScpApi(fake.settings(), pace=QUICK) as api,
        undone(api, Journal("https://scp.example", workers, tmp_path / "journal")) as run,
        leased(api, run, SERVER, "backup", seconds=seconds, timeout=5.0, also=nothing) as found,
    ):
        yield found
    assert list((tmp_path / "journal").iterdir()) == []


async def nothing() -> str | None:
    return None


async def reason_of(lease: Lease) -> str:
    async with asyncio.timeout(30):
        return await asyncio.shield(lease.lost)


async def test_it_is_waited_for_renewed_and_given_back(fake: FakePlatform, workers: Workers, tmp_path: Path) -> None:
    async with held(fake, workers, tmp_path, state(60, "pending"), state(60), state(20)) as lease:
        assert (lease.id, lease.host_id) == (RESOURCE, "host-1")
        async with asyncio.timeout(30):
            while len(fake.came(f"PUT {ONE}")) < 3:
                await asyncio.sleep(0.01)
        assert not lease.lost.done()
        assert fake.came(f"PUT {ONE}")[0].json == {"lock_time": 60}
    assert len(fake.came(f"DELETE {ONE}")) == 1


async def test_nobody_waits_for_a_platform_beyond_the_end(fake: FakePlatform, workers: Workers, tmp_path: Path) -> None:
    """It said that a second is left, and then nothing more."""
    async with held(fake, workers, tmp_path, state(1), refusal(503)) as lease:
        assert await reason_of(lease) == "the lease on the VM ran out and could not be renewed"


async def test_what_it_was_lost_by_is_told(fake: FakePlatform, workers: Workers, tmp_path: Path) -> None:
    for told, reason in [
        (state(60, "expired"), "the backup resource is expired"),
        (state(60, "released"), "the backup resource is released"),
        (state(-1), "the time of the backup resource is over"),
        (refusal(404), "the platform has no such backup resource any more"),
    ]:
        async with held(fake, workers, tmp_path, state(60), told) as lease:
            assert await reason_of(lease) == reason


async def test_a_keeper_that_fails_loses_the_lease(
    fake: FakePlatform, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object, __: float) -> bool:
        raise ZeroDivisionError

    async with held(fake, workers, tmp_path, state(60)) as lease:
        monkeypatch.setattr(Tenure, "due", broken)
        assert await reason_of(lease) == "nobody looks after the lease on the VM any more"


async def test_one_that_is_not_given(fake: FakePlatform, workers: Workers, tmp_path: Path) -> None:
    for told, error in [(state(60, "occupied"), BusyError), (state(60, "failed"), PlatformError)]:
        with pytest.raises(error):
            async with held(fake, workers, tmp_path, told):
                pytest.fail("it was given")
        assert len(fake.came(f"DELETE {ONE}")) == 1
        fake.requests.clear()


async def test_one_whose_id_was_never_told_is_found_by_its_token(
    fake: FakePlatform, workers: Workers, tmp_path: Path
) -> None:
    """The platform's answer is lost; asked again with the same token it tells what it has made."""

    def lost(_: object) -> Reply:
        fake.on(f"POST {PLACE}", answer({"resource_id": RESOURCE}, 201))
        return Reply(b"{}", 500)

    fake.on(f"POST {PLACE}", lost)
    fake.on(f"GET {ONE}", refusal(404))
    fake.on(f"DELETE {ONE}", answer({}))
    journal = Journal("https://scp.example", workers, tmp_path / "journal")
    with pytest.raises(PlatformError):
        async with (
            ScpApi(fake.settings(), pace=QUICK) as api,
            undone(api, journal) as run,
            leased(api, run, SERVER, "backup", seconds=60, timeout=5.0, also=nothing),
        ):
            pytest.fail("there is no lease")
    first, second = fake.came(f"POST {PLACE}")
    assert first.header("X-Client-Token") == second.header("X-Client-Token")
    assert first.body == second.body
    assert list((tmp_path / "journal").iterdir()) == []
