"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from ..units import parse_size
from .output import Output

_Command = Callable[..., int]

_SPAN = re.compile(r"(\d{1,9})([mhdw])")
_SPANS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


# --- values ----------------------------------------------------------------------------------------------------------


def size_or_zero(text: str) -> int:
    """Bytes, as `units.parse_size` reads them."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def size(text: str) -> int:
    """As `size_or_zero`, but more than 0."""
    parsed = size_or_zero(text)
    if parsed < 1:
        raise click.BadParameter("must be more than 0")
    return parsed


def seconds(text: str) -> float:
    """A finite number of seconds, 0 or more."""
    try:
        parsed = float(text)
    except ValueError:
        parsed = math.nan
    if not 0 <= parsed < math.inf:
        raise click.BadParameter(f"{text!r} is not a number of seconds, 0 or more")
    return parsed


def assignment(text: str) -> tuple[str, str]:
    """``ID=NBD-URI``, split at the first ``=``; neither side is empty."""
    disk, _, uri = text.partition("=")
    if not disk or not uri:
        raise click.BadParameter(f"{text!r} is not of the form ID=NBD-URI")
    return disk, uri


def instant(text: str) -> float:
    """Seconds since the epoch of a date, a date and time, or a span back from now: ``36h``, ``7d``, ``2w``."""
    span = _SPAN.fullmatch(text)
    try:
        if span is not None:
            return time.time() - int(span[1]) * _SPANS[span[2]]
        return datetime.fromisoformat(text).timestamp()  # without a zone it is local time, as people mean it
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither a time (2026-01-31, 2026-01-31T18:00) nor a span (36h, 7d)"
        ) from None


def age(text: str) -> float:
    """Seconds of a span: ``36h``, ``7d``, ``2w``."""
    span = _SPAN.fullmatch(text)
    if span is None:
        raise click.BadParameter(f"{text!r} is not a span of time (36h, 7d)")
    return float(int(span[1]) * _SPANS[span[2]])


def percentage(text: str) -> float:
    """More than 0, at most 100, with or without a percent sign."""
    try:
        parsed = float(text.removesuffix("%"))
    except ValueError:
        parsed = math.nan
    if not 0 < parsed <= 100:
        raise click.BadParameter(f"{text!r} is not a percentage, more than 0 and 100 at most")
    return parsed


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

retry = click.option(
    "--retry",
    "outage",
    type=seconds,
    metavar="SECONDS",
    default="60",
    show_default=True,
    help="How long a server may be gone in the middle; 0 to give up with the connection.",
)

connect_retry = click.option(
    "--connect-retry",
    "patience",
    type=seconds,
    metavar="SECONDS",
    default="0",
    show_default=True,
    help="How long to go on trying when nobody answers at the first connect.",
)

memory = click.option(
    "--memory",
    type=size,
    metavar="SIZE",
    default="64M",
    show_default=True,
    help="Memory for data on its way, 16M or more.",
)

limit_rate = click.option(
    "--limit-rate",
    "rate",
    type=size,
    metavar="SIZE",
    help="Read no more than this in a second, over all disks.",
)
