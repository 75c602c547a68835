"""What the command line says of an exception: one line, a code and an exit code."""

from __future__ import annotations

import signal
from asyncio import CancelledError
from typing import NamedTuple

import click

from ..errors import SfasyncError, one_line, system_limit

EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_LOSS = 3


class Interrupted(Exception):  # noqa: N818 - not a failure: the user's wish
    """A signal ended the job.

    Args:
        number: The signal.
        untidy: What the job did not do before its end; nothing for a clean end.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int, untidy: str = "") -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}{'; ' if untidy else ''}{untidy}")
        self.number = number


class SomeFailed(Exception):  # noqa: N818 - what failed is in it
    """Of several things to be done, some failed; each was told when it did.

    Attributes:
        first: What the first one failed with. It gives the exit code.
    """

    def __init__(self, message: str, first: BaseException) -> None:
        super().__init__(message)
        self.first = first


class Failure(NamedTuple):
    """A failure as it is told to people and programs.

    Attributes:
        code: Stable short name.
        exit: Exit code of the process.
        message: One line.
        disk: Id of the disk concerned, if one is.
        offset: First byte concerned on it, if known.
        path: File or repository object concerned, if known.
    """

    code: str
    exit: int
    message: str
    disk: str | None = None
    offset: int | None = None
    path: str | None = None


def describe(error: BaseException) -> Failure:
    """The failure that an exception stands for. Of a group, the first cause counts."""
    cause = _first_cause(error)
    cause = system_limit(cause) or cause
    if isinstance(cause, SomeFailed):
        first = describe(cause.first)
        return first._replace(message=one_line(f"{cause}: {first.message}"))
    if isinstance(cause, SfasyncError):
        return Failure(
            code=cause.code,
            exit=cause.exit_code,
            message=one_line(str(cause)),
            disk=cause.disk,
            offset=cause.offset,
            path=cause.path,
        )
    if isinstance(cause, click.ClickException):
        return Failure(code="usage", exit=EXIT_USAGE, message=_usage_message(cause))
    if isinstance(cause, KeyboardInterrupt | click.Abort):
        cause = Interrupted(signal.SIGINT)
    if isinstance(cause, Interrupted):
        return Failure(code="interrupted", exit=128 + cause.number, message=str(cause))
    return Failure(
        code="internal",
        exit=EXIT_INTERNAL,
        message=one_line(f"internal error: {type(cause).__name__}: {cause}; this is a bug, -vv shows where"),
    )


def _first_cause(error: BaseException) -> BaseException:
    """Of a group the first error of ours, else the first that is no cancellation; anything else as it is."""
    leaves = list(_leaves(error))
    for wanted in (SfasyncError, Interrupted):
        for leaf in leaves:
            if isinstance(leaf, wanted):
                return leaf
    return next((leaf for leaf in leaves if not isinstance(leaf, CancelledError)), error)


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for member in error.exceptions for leaf in _leaves(member)]


def _usage_message(error: click.ClickException) -> str:
    """Click's message on one line, and where to read more."""
    message = one_line(" ".join(error.format_message().split()).rstrip("."))
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "sfasync"
    return f"{message} (see '{path} --help')"
