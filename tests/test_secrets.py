"""Secrets come from where they are kept, in bounded time and size, and show up nowhere else."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfasync import secrets
from sfasync.errors import UsageError
from sfasync.secrets import SecretCommand, SecretDescriptor, SecretFile, SecretPrompt, secret_source

CANARY = "s3cret-canary"


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(CANARY + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def given(secret_file: Path) -> Iterator[int]:
    """A descriptor as a shell gives it: inheritable, and no longer ours once it is read."""
    fd = os.open(secret_file, os.O_RDONLY)
    os.set_inheritable(fd, True)
    yield fd
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
async def test_a_file(secret_file: Path, end: str) -> None:
    secret_file.write_bytes((CANARY + end).encode())
    assert await SecretFile(secret_file).load() == CANARY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
async def test_a_file_that_others_can_read_is_refused(secret_file: Path, mode: int) -> None:
    secret_file.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600"):
        await SecretFile(secret_file).load()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"s3cret-canary\nmore", "more than one line"),
        (b"s3cret-canary\n\n", "more than one line"),
        (b"s3cret-canary\0", "more than one line"),
        (b"s3cret-canary\xff", "not UTF-8"),
        (b"s3cret-canary" * 400, "more than 4096 bytes"),
    ],
)
async def test_a_file_with_something_else(secret_file: Path, content: bytes, problem: str) -> None:
    secret_file.write_bytes(content)
    with pytest.raises(UsageError, match=problem) as caught:
        await SecretFile(secret_file).load()
    assert CANARY not in str(caught.value)


async def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        await SecretFile(tmp_path / "missing").load()
    with pytest.raises(UsageError, match="Is a directory"):
        await SecretFile(tmp_path).load()


async def test_cancelling_leaves_no_file_open(secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    go_on = threading.Event()

    def slow(path: Path, flags: int) -> int:
        go_on.wait(10)
        opened.append(os.dup(1))
        return opened[0]

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", slow)
        loading = asyncio.create_task(SecretFile(secret_file).load())
        await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        go_on.set()
        while not opened:
            await asyncio.sleep(0.001)
    await closed(opened[0])


async def closed(fd: int) -> None:
    """Wait until nothing is open under this number."""
    for _ in range(1000):
        try:
            os.fstat(fd)
        except OSError:
            return
        await asyncio.sleep(0.001)
    pytest.fail("it is open still")


async def test_a_file_that_cannot_be_opened_in_time(secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", lambda *_: go_on.wait(10) and os.dup(1))
        patched.setattr(secrets, "_SECONDS", 0.05)
        with pytest.raises(UsageError, match="cannot be opened within"):
            await SecretFile(secret_file).load()
    go_on.set()


async def test_a_thread_never_reads_what_its_number_means_later(given: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The read of a mount that is away goes on when nobody waits for it any longer."""
    read, reading, go_on, came = os.read, [], threading.Event(), []

    def slow(fd: int, length: int) -> bytes:
        reading.append(fd)
        go_on.wait(10)
        came.append(read(fd, length))
        return came[0]

    monkeypatch.setattr(os, "read", slow)
    loading = asyncio.create_task(SecretDescriptor(given).load())
    while not reading:
        await asyncio.sleep(0.001)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    await closed(given)
    go_on.set()
    await closed(reading[0])
    assert came == [CANARY.encode() + b"\n"]


async def test_a_pipe_with_a_name(tmp_path: Path) -> None:
    """As of ``<(command)``: whoever writes may take a moment."""
    reader, writer = os.pipe()
    try:
        loading = asyncio.create_task(SecretFile(Path(f"/dev/fd/{reader}")).load())
        await asyncio.sleep(0.05)
        assert not loading.done()
        os.write(writer, CANARY.encode())
    finally:
        os.close(writer)
        os.close(reader)
    assert await loading == CANARY


# --- commands --------------------------------------------------------------------------------------------------------


async def test_a_command() -> None:
    assert await SecretCommand((sys.executable, "-c", f"print({CANARY!r})")).load() == CANARY


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (f"print({CANARY!r}); raise SystemExit(7)", "failed with exit code 7"),
        ("", "is empty"),
        ("print('x' * 5000)", "more than 4096 bytes"),
        ("while True: print('x' * 5000)", "more than 4096 bytes"),
    ],
)
async def test_a_command_that_gives_none(script: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        await SecretCommand((sys.executable, "-c", script)).load()
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("arguments", [("/nonexistent/pass",), ("a\0b",)])
async def test_a_command_that_cannot_be_run(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="cannot be run") as caught:
        await SecretCommand(arguments).load()
    assert "\0" not in str(caught.value)


@pytest.fixture
def hanging(tmp_path: Path) -> tuple[SecretCommand, Path]:
    """A command that gives nothing, and the file in which it writes its process id."""
    mark = tmp_path / "pid"
    return SecretCommand(("sh", "-c", f"echo $$ >{mark}.new; mv {mark}.new {mark}; exec sleep 60")), mark


def is_gone(mark: Path) -> bool:
    """Whether the process that wrote its id is no more."""
    try:
        os.kill(int(mark.read_text()), 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_command_that_hangs_is_ended(
    hanging: tuple[SecretCommand, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, mark = hanging
    monkeypatch.setattr(secrets, "_SECONDS", 1.0)
    with pytest.raises(UsageError, match="did not end within 1 s"):
        await command.load()
    assert not mark.exists() or is_gone(mark)  # the machine may be slow


async def test_a_cancelled_command_is_ended(hanging: tuple[SecretCommand, Path]) -> None:
    command, mark = hanging
    loading = asyncio.create_task(command.load())
    while not mark.exists():
        await asyncio.sleep(0.01)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert is_gone(mark)


@pytest.mark.parametrize("turns", range(3))
async def test_a_command_that_is_cancelled_as_it_starts(turns: int, tmp_path: Path) -> None:
    left = tmp_path / "left"
    loading = asyncio.create_task(SecretCommand(("sh", "-c", f"sleep 0.1; echo >{left}")).load())
    for _ in range(turns):
        await asyncio.sleep(0)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    await asyncio.sleep(0.3)  # a process that goes on needs less
    assert not left.exists()


# --- descriptors -----------------------------------------------------------------------------------------------------


async def test_a_descriptor(given: int) -> None:
    assert await SecretDescriptor(given).load() == CANARY


async def test_descriptors_of_our_own_are_left_alone(secret_file: Path) -> None:
    fd = os.open(secret_file, os.O_RDONLY)
    with pytest.raises(UsageError, match="is not open"):
        await SecretDescriptor(fd).load()
    os.close(fd)
    with pytest.raises(UsageError, match="is not open"):
        await SecretDescriptor(fd).load()


async def test_a_descriptor_to_which_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_SECONDS", 0.1)
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    with pytest.raises(UsageError, match="no secret came"):
        await secrets.SecretDescriptor(reader).load()
    os.close(writer)


# --- people ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The other side of a terminal that is ours for the time of the test."""
    here, there = pty.openpty()
    monkeypatch.setattr(secrets, "_TERMINAL", os.ttyname(there))
    yield here
    os.close(here)
    os.close(there)


def echoes(terminal: int) -> bool:
    return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)


async def shown(terminal: int) -> bytes:
    return await asyncio.to_thread(os.read, terminal, 4096)


async def test_somebody_is_asked(terminal: int) -> None:
    loading = asyncio.create_task(SecretPrompt("platforms.prod.password").load())
    assert await shown(terminal) == b"platforms.prod.password: "
    assert not echoes(terminal)
    os.write(terminal, CANARY.encode() + b"\n")
    assert await loading == CANARY
    assert await shown(terminal) == b"\r\n"
    assert echoes(terminal)


async def test_somebody_who_gives_up(terminal: int) -> None:
    loading = asyncio.create_task(SecretPrompt("password").load())
    await shown(terminal)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert echoes(terminal)


async def test_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_TERMINAL", "/nonexistent/tty")
    with pytest.raises(UsageError, match="no terminal to ask for password"):
        await SecretPrompt("password").load()


# --- places ----------------------------------------------------------------------------------------------------------


def test_places(tmp_path: Path) -> None:
    assert secret_source("prompt", tmp_path, "question") == SecretPrompt("question")
    assert secret_source({"file": "a"}, tmp_path, "") == SecretFile(tmp_path / "a")
    assert secret_source({"file": "/a"}, tmp_path, "") == SecretFile(Path("/a"))
    assert secret_source({"file": "~/a"}, tmp_path, "") == SecretFile(Path.home() / "a")
    assert secret_source({"fd": 0}, tmp_path, "") == SecretDescriptor(0)
    assert secret_source({"command": "pass show 'a b'"}, tmp_path, "") == SecretCommand(("pass", "show", "a b"))


@pytest.mark.parametrize(
    "value",
    [
        CANARY,
        "",
        7,
        [CANARY],
        {},
        {"file": ""},
        {"file": "a\0b"},
        {"file": "~nobody-of-that-name/a"},
        {"file": 7},
        {"fd": -1},
        {"fd": True},
        {"command": ""},
        {"command": "'"},
        {"value": CANARY},
        {"file": "a", "fd": 3},
    ],
)
def test_no_place(value: object, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        secret_source(value, tmp_path, "question")
    assert CANARY not in str(caught.value)
    assert "\0" not in str(caught.value)
