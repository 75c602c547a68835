"""Every exception becomes one line, a code and an exit code."""

from __future__ import annotations

import asyncio
import errno
import signal

import click
import pytest

from sfasync.cli.failures import Failure, Interrupted, describe
from sfasync.errors import ConnectError, IntegrityError, StorageError, TlsError


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (MemoryError(), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (ImportError("x.so: failed to map segment from shared object"), "memory"),
        (RuntimeError("can't allocate lock"), "memory"),  # _threadmodule.c
        (RuntimeError("can't allocate read lock"), "memory"),  # bufferedio.c
        (OSError(errno.EMFILE, "Too many open files"), "files"),
        (OSError(errno.ENFILE, "Too many open files in system"), "files"),
    ],
)
def test_limits_of_the_system_are_no_bugs(error: Exception, what: str) -> None:
    failure = describe(ExceptionGroup("several", [error]))
    assert (failure.code, failure.exit) == ("system-limit", 21)
    assert what in failure.message


def test_facts_of_an_error_travel() -> None:
    error = IntegrityError("chunk is damaged", disk="vda", offset=4096, path="packs/ab")
    assert describe(error) == Failure(
        code="integrity", exit=22, message="chunk is damaged", disk="vda", offset=4096, path="packs/ab"
    )


def test_of_a_group_the_first_error_of_ours_counts() -> None:
    group = BaseExceptionGroup(
        "all",
        [
            asyncio.CancelledError(),
            ExceptionGroup("some", [ValueError("late"), TlsError("wrong name")]),
            StorageError("disk full"),
        ],
    )
    assert describe(group).code == "tls"


def test_a_group_of_strangers_tells_the_first() -> None:
    group = BaseExceptionGroup("all", [asyncio.CancelledError(), ValueError("odd")])
    failure = describe(group)
    assert (failure.code, failure.exit) == ("internal", 1)
    assert "ValueError: odd" in failure.message


def test_an_unexpected_exception_is_internal_and_one_line() -> None:
    failure = describe(RuntimeError("two\nlines"))
    assert (failure.code, failure.exit) == ("internal", 1)
    assert "\n" not in failure.message
    assert "-vv" in failure.message


@pytest.mark.parametrize(("number", "status"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_told_by_name(number: int, status: int) -> None:
    failure = describe(Interrupted(number))
    assert (failure.code, failure.exit) == ("interrupted", status)
    assert signal.Signals(number).name in failure.message


def test_ctrl_c_before_the_signals_are_taken() -> None:
    assert describe(KeyboardInterrupt()).exit == 130


def test_a_usage_error_is_one_line_with_a_hint() -> None:
    failure = describe(click.UsageError("Choose from:\n\ta\n\tb."))
    assert (failure.code, failure.exit) == ("usage", 2)
    assert failure.message == "Choose from: a b (see 'sfasync --help')"


def test_the_text_of_a_peer_cannot_break_the_line() -> None:
    assert "\n" not in describe(ConnectError("server said\nall is well")).message
