"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import click

from ..units import parse_size
from .output import Output

_Command = Callable[..., int]

_SPAN = re.compile(r"(\d+)\s*([mhdw])")
_SPANS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


# --- types of values -------------------------------------------------------------------------------------------------


class Size(click.ParamType):
    """Bytes, as `units.parse_size` reads them; more than 0."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            size = parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if size < 1:
            self.fail("must be more than 0", param, ctx)
        return size


class Seconds(click.ParamType):
    """A finite number of seconds, 0 or more."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        if not math.isfinite(seconds) or seconds < 0:
            self.fail(f"{value!r} is not a number of seconds, 0 or more", param, ctx)
        return seconds


class Assignment(click.ParamType):
    """``ID=VALUE``, split at the first ``=``; neither side is empty."""

    name = "assignment"

    def __init__(self, what: str) -> None:
        self._what = what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, _, assigned = value.partition("=")
        if not key or not assigned:
            self.fail(f"{value!r} is not of the form {self._what}", param, ctx)
        return key, assigned


class Since(click.ParamType):
    """An instant in seconds since the epoch: a date, a date and time, or a span back from now (``36h``, ``7d``, ``2w``)."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            span = _SPAN.fullmatch(value)
            if span is not None:
                instant = datetime.now().astimezone() - timedelta(**{_SPANS[span[2]]: int(span[1])})
            else:
                instant = datetime.fromisoformat(value)
            return instant.timestamp()  # without a zone it is local time, as people mean it
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither a time (2026-01-31, 2026-01-31T18:00) nor a span (36h, 7d)", param, ctx)


def distinct(pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """``ID=VALUE`` pairs as a dictionary.

    Raises:
        click.UsageError: An id occurs twice.
    """
    values: dict[str, str] = {}
    for key, value in pairs:
        if key in values:
            raise click.UsageError(f"disk {key!r} is given twice")
        values[key] = value
    return values


# --- options ---------------------------------------------------------------------------------------------------------


def common(command: _Command) -> _Command:
    """``--json``, ``--quiet`` and ``-v``, set on the `Output` that the command gets as its first argument."""
    for option in (
        click.option(
            "-v",
            "verbosity",
            count=True,
            expose_value=False,
            callback=_into_output,
            help="Say what is being done; -vv for everything.",
        ),
        click.option(
            "--quiet",
            is_flag=True,
            expose_value=False,
            callback=_into_output,
            help="No progress, and nothing but errors and what was asked for.",
        ),
        click.option(
            "--json",
            is_flag=True,
            expose_value=False,
            callback=_into_output,
            help="Write one JSON object per line; the last is the result or the error.",
        ),
    ):
        command = option(command)
    return click.pass_obj(command)


def _into_output(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    assert parameter.name is not None, "each option of `common` is named after an attribute"
    setattr(context.find_object(Output), parameter.name, value)


def _needed(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str:
    if value is None:
        raise click.UsageError("no repository given: use --repo R or set SFASYNC_REPOSITORY")
    return value


repository = click.option(
    "--repo",
    "repository",
    metavar="R",
    envvar="SFASYNC_REPOSITORY",
    callback=_needed,
    help="The repository; SFASYNC_REPOSITORY if not given.",
)

memory = click.option(
    "--memory",
    type=Size(),
    metavar="SIZE",
    default="64M",
    show_default=True,
    help="Memory for data on its way, 16M or more.",
)

limit_rate = click.option(
    "--limit-rate",
    "rate",
    type=Size(),
    metavar="SIZE",
    help="Read no more than this in a second, over all disks.",
)
