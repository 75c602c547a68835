"""Conditions under which every test runs.

Each asynchronous test runs on asyncio's own loop in debug mode and on uvloop, or (`one_loop`) on the first. After each
test, no task, descriptor or thread may be left that was not there before. One that takes too long is interrupted. No
test sees the user's own cache, configuration or repository.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from itertools import count
from pathlib import Path

import pytest
import uvloop
from hypothesis import settings

from .support import timeouts
from .support.certificates import make_certificates

THREAD_TIMEOUT = 5.0

# A run of the tests says the same twice, and does not fail because a machine is slow; `make fuzz` looks farther.
settings.register_profile("test", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=5_000)
settings.load_profile("test")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(timeouts)
    # What a shell ignores for programs in its background, or nohup, every command that a test starts would as well.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)  # a handler does not outlive exec(2)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    both = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": both["asyncio"]} if item.get_closest_marker("one_loop") else both


@pytest.fixture(scope="session", autouse=True)
def _uvloop_is_warm() -> None:
    """libuv keeps one pipe for the whole process, opened by the first loop that runs."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of good certificates for localhost and 127.0.0.1."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for each test. `tmp_path_factory` looks through all that it has made: 3 minutes for 18,000."""
    root = tmp_path_factory.mktemp("homes")
    return (root / str(number) for number in count())


@pytest.fixture(autouse=True)
def own_environment(homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    home = next(homes)
    for name in ("cache", "state", "config"):
        (home / name).mkdir(parents=True)
        monkeypatch.setenv(f"XDG_{name.upper()}_HOME", str(home / name))
    for name in ("SFASYNC_REPOSITORY", "SFASYNC_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, own_environment: None) -> Iterator[None]:
    """Fail a test that leaves a task, a descriptor or a thread.

    Descriptors and threads are compared after the loop of the test is closed: this fixture is set up before it.
    """
    descriptors = _descriptors()
    threads = set(threading.enumerate())
    yield
    left = _threads_left(threads)
    assert not left, f"threads left: {left}"
    opened = {number: target for number, target in _descriptors().items() if descriptors.get(number) != target}
    assert not opened, f"descriptors left: {opened}"


@pytest.fixture(autouse=True)
def _tasks_checked(request: pytest.FixtureRequest, nothing_left_behind: None) -> None:
    if request.node.get_closest_marker("asyncio") is not None:
        request.getfixturevalue("no_task_left")


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left: {left}"


def _descriptors() -> dict[int, str]:
    """What each open descriptor of this process refers to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that read the directory
            continue
    return found


def _threads_left(before: set[threading.Thread]) -> list[str]:
    """Names of non-daemon threads that began since and do not end by themselves.

    An executor that was closed without waiting leaves its threads a moment to find out.
    """
    left = []
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon:
            thread.join(THREAD_TIMEOUT)
            if thread.is_alive():
                left.append(thread.name)
    return left
