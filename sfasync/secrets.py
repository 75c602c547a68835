"""Secrets, from where they are kept: a file, a command, a descriptor or a person.

Never from an argument or the environment, which other users and child processes can see, and never from the
configuration itself, which people copy and show. Each is one line of at most 4096 bytes; nothing here logs or shows it.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import stat
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from .errors import UsageError, printable
from .tasks import finish
from .workers import Workers

_T = TypeVar("_T")

_LIMIT: Final = 4096
_SECONDS: Final = 60.0
_PATIENCE: Final = 300.0
"""Seconds for somebody to type in."""

_END: Final = 2.0
_TERMINAL: Final = "/dev/tty"
_FORMS: Final = '{file = "..."}, {command = "..."}, {fd = N} or "prompt"'


# --- where secrets are kept ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A file that only its owner can read; also a pipe, as of a shell's ``<(command)``."""

    path: Path

    async def load(self) -> str:
        """The secret.

        Raises:
            UsageError: There is none, or others can read the file too.
        """
        name = f"secret file {printable(str(self.path))}"
        try:
            fd = await _opened(self.path)
        except TimeoutError:
            raise UsageError(f"{name} cannot be opened within {_SECONDS:g} s", path=str(self.path)) from None
        except OSError as error:
            raise UsageError(f"{name} cannot be read: {error.strerror}", path=str(self.path)) from error
        try:
            _refuse_shown(fd, name)
            return _secret(await _read(fd, name), name)
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class SecretCommand:
    """What a command writes to its standard output. It is started without a shell; its complaints go to our stderr."""

    arguments: tuple[str, ...]

    async def load(self) -> str:
        """The secret. Cancelling ends the command.

        Raises:
            UsageError: The command failed, took more than a minute, or gave none.
        """
        name = f"secret command {printable(self.arguments[0])}"
        reader, writer = os.pipe()
        try:
            try:
                process = await _started(self.arguments, writer)
            finally:
                os.close(writer)
            try:
                async with asyncio.timeout(_SECONDS):
                    printed = await _received(reader)
                    status = None if len(printed) > _LIMIT else await process.wait()
            finally:
                await finish(_end(process), _END)
        except TimeoutError:
            raise UsageError(f"{name} did not end within {_SECONDS:g} s") from None
        except (OSError, ValueError) as error:  # ValueError: a null byte
            raise UsageError(f"{name} cannot be run: {getattr(error, 'strerror', None) or error}") from error
        finally:
            os.close(reader)
        if status:
            raise UsageError(f"{name} failed with exit code {status}")
        return _secret(printed, name)


@dataclass(frozen=True, slots=True)
class SecretDescriptor:
    """A descriptor that whoever started us has opened; it is read to its end and closed."""

    fd: int

    async def load(self) -> str:
        """The secret; it can be had once.

        Raises:
            UsageError: There is none.
        """
        name = f"descriptor {self.fd}"
        try:
            given = os.get_inheritable(self.fd)  # what we have opened ourselves never is
        except OSError:
            given = False
        if not given:
            raise UsageError(f"{name} is not open; give it to the command: {self.fd}<FILE")
        try:
            return _secret(await _read(self.fd, name), name)
        finally:
            if self.fd > 2:
                os.close(self.fd)


@dataclass(frozen=True, slots=True)
class SecretPrompt:
    """Somebody at the terminal, who is asked and whose answer is not shown."""

    question: str

    async def load(self) -> str:
        """The secret. Cancelling, as with Ctrl-C, leaves the terminal as it was.

        Raises:
            UsageError: There is no terminal, or no answer within five minutes.
        """
        try:
            fd = os.open(_TERMINAL, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            raise UsageError(f"there is no terminal to ask for {self.question}; use {_FORMS}") from error
        try:
            with _without_echo(fd):
                os.write(fd, f"{printable(self.question)}: ".encode())
                answer = await _read(fd, "the terminal", line=True)
            return _secret(answer, "the answer")
        finally:
            os.close(fd)


SecretSource: TypeAlias = SecretFile | SecretCommand | SecretDescriptor | SecretPrompt


def secret_source(value: object, directory: Path, question: str) -> SecretSource:
    """Where a value of a configuration says that a secret is kept.

    Args:
        value: One of ``{file = "..."}``, ``{command = "..."}`` (words as in a shell, and no shell), ``{fd = N}`` and
            ``"prompt"``.
        directory: What the path of a file is relative to.
        question: What to ask somebody for.

    Raises:
        UsageError: It is something else, perhaps the secret itself: the message does not show it.
    """
    match value:
        case "prompt":
            return SecretPrompt(question)
        case {"file": str(path), **others} if not others:
            return SecretFile(placed(path, directory))
        case {"fd": int(fd), **others} if fd >= 0 and not isinstance(fd, bool) and not others:
            return SecretDescriptor(fd)
        case {"command": str(command), **others} if not others:
            return SecretCommand(_words(command))
        case str():
            raise UsageError(f"a secret does not stand in a configuration file; use {_FORMS}")
        case Mapping():
            raise UsageError(f"this is not where a secret can be; use {_FORMS}")
    raise UsageError(f"expected a place of a secret: {_FORMS}")


def placed(path: str, directory: Path) -> Path:
    """A path of a configuration file, with its ``~``; relative ones are relative to the directory.

    Raises:
        UsageError: It is none.
    """
    if not path or "\0" in path:
        raise UsageError("expected the path of a file")
    try:
        return directory / Path(path).expanduser()
    except RuntimeError as error:  # ~somebody
        raise UsageError(printable(str(error))) from error


def _words(command: str) -> tuple[str, ...]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"the command is malformed: {error}") from error
    if not words:
        raise UsageError("the command is empty")
    return tuple(words)


# --- reading ---------------------------------------------------------------------------------------------------------


async def _opened(path: Path) -> int:
    """A descriptor of a file. Cancelling leaves none open.

    Raises:
        TimeoutError: What it is on does not answer.
        OSError: It cannot be opened.
    """
    opening = _begun(os.open, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    async with asyncio.timeout(_SECONDS):
        try:
            return await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_again)
            raise


def _close_again(opening: Future[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())


def _begun(function: Callable[..., _T], *args: object) -> Future[_T]:
    """A call in a thread of its own, which ends with it: nobody has to wait for a mount that is away."""
    workers = Workers(1, "sfasync-secret")
    try:
        return workers.submit(function, *args)
    finally:
        workers.close()


def _refuse_shown(fd: int, name: str) -> None:
    """As ssh does with private keys: our own file must be for us alone; others' files are others' business."""
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and status.st_mode & 0o077:
        raise UsageError(f"{name} can be read by other users; make it yours alone with chmod 600")


async def _read(fd: int, name: str, *, line: bool = False) -> bytes:
    """What a descriptor has until its end, or the line that somebody types; at most one byte more than a secret has.

    Raises:
        UsageError: It cannot be read, or nothing comes in time.
    """
    seconds = _PATIENCE if line else _SECONDS
    try:
        async with asyncio.timeout(seconds):
            if stat.S_ISREG(os.fstat(fd).st_mode):  # those cannot be waited for
                return await _read_in_thread(fd)
            return await _received(fd, line=line)
    except TimeoutError:
        raise UsageError(f"no secret came from {name} within {seconds:g} s") from None
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error


async def _read_in_thread(fd: int) -> bytes:
    own = os.dup(fd)  # the caller closes the other when it waits no longer, and its number may soon be another file's
    try:
        reading = _begun(os.read, own, _LIMIT + 1)
    except BaseException:
        os.close(own)
        raise
    reading.add_done_callback(lambda _: os.close(own))
    return await asyncio.wrap_future(reading)


async def _received(fd: int, *, line: bool = False) -> bytes:
    received = b""
    blocking = os.get_blocking(fd)
    os.set_blocking(fd, False)
    try:
        while len(received) <= _LIMIT and not (line and received.endswith(b"\n")):
            try:
                piece = os.read(fd, _LIMIT + 1 - len(received))
            except BlockingIOError:
                await _readable(fd)
                continue
            if not piece:
                break
            received += piece
    finally:
        os.set_blocking(fd, blocking)  # whoever gave it to us may share it
    return received


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


async def _started(arguments: Sequence[str], output: int) -> asyncio.subprocess.Process:
    """A process that writes there. Cancelling ends it, also when it has only just begun, and waits for its end."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(*arguments, stdin=asyncio.subprocess.DEVNULL, stdout=output)
    )
    try:
        await asyncio.wait({starting})
    except asyncio.CancelledError:
        await finish(_end_started(starting), _END)
        raise
    return starting.result()


async def _end_started(starting: asyncio.Future[asyncio.subprocess.Process]) -> None:
    with suppress(OSError, ValueError):  # it could not be run
        await _end(await starting)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextmanager
def _without_echo(terminal: int) -> Iterator[None]:
    before = termios.tcgetattr(terminal)
    silent = termios.tcgetattr(terminal)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
        os.write(terminal, b"\n")  # the one that was typed was not shown


def _secret(data: bytes, name: str) -> str:
    """The one line that there is, without its end.

    Raises:
        UsageError: There is none, or something else.
    """
    if len(data) > _LIMIT:
        raise UsageError(f"{name} has more than {_LIMIT} bytes; that is no secret of one line")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{name} has bytes that are not UTF-8") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise UsageError(f"{name} is empty")
    if any(character in text for character in "\r\n\0"):
        raise UsageError(f"{name} has more than one line")
    return text
