"""The guest's file systems are frozen for the moment of a snapshot, and thawed whatever happens."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sfasync import PlatformError, UsageError
from sfasync.platform.qemu.monitor import Monitor
from sfasync.platform.qemu.platform import QemuPlatform
from sfasync.platform.qemu.settings import QemuSettings, QemuVm
from sfasync.units import MiB
from tests.support.agent import Agent, guest_agent
from tests.support.qemu import TIMEOUTS, Machine, daemon, made_by_us

BOTH = ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with daemon({"vda": MiB}) as machine:
        yield machine


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        yield Path(place) / "agent"


@pytest.fixture
async def agent(socket: Path) -> AsyncIterator[Agent]:
    async with guest_agent(socket) as agent:
        yield agent


def settings(machine: Machine, socket: Path, quiesce: str, freeze: float = 5.0) -> QemuSettings:
    described = machine.platform_settings(agent=socket, quiesce=quiesce)
    return replace(described, timeouts=replace(TIMEOUTS, freeze=freeze))


@pytest.fixture
def transactions(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each transaction, whether the guest was frozen then."""
    seen: list[bool] = []
    execute = Monitor._execute

    async def look(monitor: Monitor, command: str, arguments: Mapping[str, object] | None) -> object:
        if command == "transaction":
            seen.append(agent.frozen)
        return await execute(monitor, command, arguments)

    monkeypatch.setattr(Monitor, "_execute", look)
    return seen


async def test_frozen_for_the_moment(machine: Machine, socket: Path, agent: Agent, transactions: list[bool]) -> None:
    async with QemuPlatform(settings(machine, socket, "require")) as platform, platform.snapshot("web-01"):
        assert agent.heard == BOTH
        assert not agent.frozen
    assert transactions == [True]


async def test_answers_to_others_are_skipped(machine: Machine, socket: Path, agent: Agent) -> None:
    agent.greeting = b'\xff{"return": {}}\n{"return": 7}\n'
    async with QemuPlatform(settings(machine, socket, "require")) as platform, platform.snapshot("web-01"):
        assert agent.heard == BOTH


async def test_a_guest_that_cannot_freeze(
    machine: Machine, socket: Path, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    agent.refuses.add("guest-fsfreeze-freeze")
    async with QemuPlatform(settings(machine, socket, "auto")) as platform, platform.snapshot("web-01"):
        assert "cannot be frozen for the snapshot" in caplog.text
        assert r"the guest\ndoes not want to" in caplog.text
    async with QemuPlatform(settings(machine, socket, "require")) as platform:
        with pytest.raises(PlatformError, match=r"cannot be frozen.*does not want to"):
            async with platform.snapshot("web-01"):
                pytest.fail("it was not frozen")
    assert agent.heard[-1] == "guest-fsfreeze-thaw", "who knows what an agent has frozen before it failed"
    assert await made_by_us(machine) == []


async def test_an_agent_that_freezes_and_does_not_say_so(machine: Machine, socket: Path, agent: Agent) -> None:
    agent.silent.append("guest-fsfreeze-freeze")
    async with QemuPlatform(settings(machine, socket, "auto", 0.3)) as platform, platform.snapshot("web-01"):
        assert not agent.frozen
    assert agent.heard == BOTH


async def test_nobody_there(machine: Machine, socket: Path) -> None:
    async with QemuPlatform(settings(machine, socket, "auto")) as platform, platform.snapshot("web-01") as view:
        await view.check()
    async with QemuPlatform(settings(machine, socket, "require")) as platform:
        with pytest.raises(PlatformError, match=r"cannot be frozen.*No such file"):
            async with platform.snapshot("web-01"):
                pytest.fail("nobody froze anything")


async def test_a_thaw_is_tried_again(machine: Machine, socket: Path, agent: Agent) -> None:
    agent.silent.append("guest-fsfreeze-thaw")
    described = settings(machine, socket, "auto")
    impatient = replace(described, timeouts=replace(described.timeouts, connect=0.5))
    async with QemuPlatform(impatient) as platform, platform.snapshot("web-01"):
        assert agent.heard == [*BOTH, "guest-fsfreeze-thaw"]


async def test_a_guest_that_stays_frozen_is_cried_out(machine: Machine, socket: Path, agent: Agent) -> None:
    agent.refuses.add("guest-fsfreeze-thaw")
    async with QemuPlatform(settings(machine, socket, "auto", 0.6)) as platform:
        with pytest.raises(PlatformError, match=r"FILE SYSTEMS MAY BE FROZEN STILL.*fsfreeze --unfreeze"):
            async with platform.snapshot("web-01"):
                pytest.fail("somebody has to look at the guest first")
    assert await made_by_us(machine) == []


async def test_cancelled_between_freeze_and_transaction(
    machine: Machine, socket: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = Monitor._execute

    async def wait(monitor: Monitor, command: str, arguments: Mapping[str, object] | None) -> object:
        if command == "transaction":
            assert agent.frozen
            task.cancel()
            await asyncio.sleep(0)
        return await execute(monitor, command, arguments)

    monkeypatch.setattr(Monitor, "_execute", wait)

    async def snapshot() -> None:
        async with QemuPlatform(settings(machine, socket, "require")) as platform, platform.snapshot("web-01"):
            pytest.fail("it was cancelled")

    task = asyncio.ensure_future(snapshot())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert agent.heard == BOTH
    assert await made_by_us(machine) == []


async def test_switched_off(machine: Machine, socket: Path, agent: Agent) -> None:
    async with QemuPlatform(settings(machine, socket, "off")) as platform, platform.snapshot("web-01"):
        assert agent.heard == []


def test_what_cannot_be_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'require' needs the socket of the 'agent'"):
        QemuVm(socket=tmp_path, quiesce="require")
    with pytest.raises(UsageError, match="quiesce 'sometimes' is none of auto, require, off"):
        QemuVm(socket=tmp_path, quiesce="sometimes")  # type: ignore[arg-type] # a wrong word
