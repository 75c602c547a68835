"""What the library logs is shown as far as it was asked for, each record on a line."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from sfasync.cli.logs import log_to
from sfasync.cli.output import Output

NAMES = ("sfasync", "asyncio")


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    before = {
        name: (logger := logging.getLogger(name), logger.handlers, logger.propagate, logger.level) for name in NAMES
    }
    yield
    for logger, handlers, propagate, level in before.values():
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def shown(capsys: pytest.CaptureFixture[str], *, verbosity: int = 0, quiet: bool = False) -> list[str]:
    """The lines that one record of each level makes, of the library and of asyncio."""
    output = Output()
    output.verbosity, output.quiet = verbosity, quiet
    log_to(output)
    for name in ("sfasync.transport.export", "asyncio"):
        for level in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger(name), level)("from %s", name.partition(".")[0])
    out, err = capsys.readouterr()
    assert out == ""
    return [line.removeprefix("sfasync: ") for line in err.splitlines()]


@pytest.mark.parametrize(
    ("verbosity", "quiet", "levels"),
    [
        (0, False, ["warning", "error"]),
        (1, False, ["info", "warning", "error"]),
        (0, True, ["error"]),
        (1, True, ["info", "warning", "error"]),
    ],
)
def test_levels_of_the_library(
    capsys: pytest.CaptureFixture[str], verbosity: int, quiet: bool, levels: list[str]
) -> None:
    assert shown(capsys, verbosity=verbosity, quiet=quiet) == [f"{level}: from sfasync" for level in levels]


@pytest.mark.parametrize("verbosity", [2, 5])
def test_everything_for_developers(capsys: pytest.CaptureFixture[str], verbosity: int) -> None:
    levels = ("debug", "info", "warning", "error")
    assert shown(capsys, verbosity=verbosity) == [f"{level}: from {name}" for name in NAMES for level in levels]


def test_a_record_is_one_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    log_to(Output())
    logging.getLogger("sfasync").warning("the server said %s", "\x1b[2Jall is well\nsfasync: done")
    assert capsys.readouterr().err == r"sfasync: warning: the server said \x1b[2Jall is well\nsfasync: done" "\n"


@pytest.mark.parametrize(("verbosity", "traceback"), [(1, False), (2, True)])
def test_tracebacks_are_for_developers(capsys: pytest.CaptureFixture[str], verbosity: int, traceback: bool) -> None:
    output = Output()
    output.verbosity = verbosity
    log_to(output)
    logging.getLogger("sfasync").error("a callback failed", exc_info=ValueError("inner"))
    err = capsys.readouterr().err
    assert err.startswith("sfasync: error: a callback failed\n")
    assert ("ValueError: inner" in err) is traceback
