"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import click

from ..models import Limits, Retry, TransportMode
from ..units import parse_size
from .configuration import choose, configuration
from .output import Output
from .platforms import PlatformChoice, choose_platform, choose_platforms, complete_platform

if TYPE_CHECKING:
    from ..engine import Engine
    from ..interfaces import BackupStore, Platform
    from ..models import ExportAddress, TlsPolicy

_Command = Callable[..., int]

_SPAN = r"(\d{1,9})([mhdw])"
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
    span = re.fullmatch(_SPAN, text)
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
    span = re.fullmatch(_SPAN, text)
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


def distinct(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
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


def addresses(pairs: Iterable[tuple[str, str]]) -> dict[str, ExportAddress]:
    """Where each disk is, of ``ID=NBD-URI`` pairs.

    Raises:
        click.UsageError: A disk is named twice.
        UriError: A URI is none.
    """
    from ..nbd.uri import parse_uri

    return {disk: parse_uri(uri) for disk, uri in distinct(pairs).items()}


# --- options ---------------------------------------------------------------------------------------------------------


def common(command: _Command) -> _Command:
    """``--config``; and ``--json``, ``--quiet`` and ``-v`` for the `Output` that the command gets as first argument."""
    return click.pass_obj(
        _with(
            command,
            click.option(
                "--config",
                metavar="FILE",
                is_eager=True,  # other options look there
                expose_value=False,
                callback=choose,
                type=click.Path(),
                help="Configuration file; SFASYNC_CONFIG, or ~/.config/sfasync/sfasync.toml, if not given.",
            ),
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
        )
    )


def _into_output(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    assert parameter.name is not None, "each option of `common` is named after an attribute"
    setattr(context.find_object(Output), parameter.name, value)


def _repository_place(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str:
    configured = configuration()
    place = value if configured is None else configured.repository(value)
    if place is None:
        raise click.UsageError("no repository given: use --repo R or set SFASYNC_REPOSITORY")
    return place


repository = click.option(
    "--repo",
    "repository",
    metavar="R",
    envvar="SFASYNC_REPOSITORY",
    callback=_repository_place,
    help="The repository, or its name in the configuration file; SFASYNC_REPOSITORY, or default, if not given.",
)


platforms = click.option(
    "--platform",
    "platforms",
    metavar="P",
    callback=choose_platforms,
    shell_complete=complete_platform,
    help="Name of the platform in the configuration file; all of them, if not given.",
)


platform = click.option(
    "--platform",
    metavar="P",
    callback=choose_platform,
    shell_complete=complete_platform,
    help="Name of the platform in the configuration file that has the VM.",
)


transport_mode = click.option(
    "--transport",
    type=click.Choice(get_args(TransportMode)),
    help="With --platform: how its disks are reached, where there is a choice; otherwise as configured.",
)


# --- what moves disks ------------------------------------------------------------------------------------------------


class EngineOptions(NamedTuple):
    """How an engine is to work: as the command line says, then the configuration file.

    Attributes:
        limits, retry, tls: As of `Engine`.
    """

    limits: Limits
    retry: Retry = Retry()
    tls: TlsPolicy | None = None

    def engine(self, repository: BackupStore | None = None) -> Engine:
        """An engine that works so."""
        from ..engine import Engine

        return Engine(repository, limits=self.limits, retry=self.retry, tls=self.tls)

    @asynccontextmanager
    async def opened(
        self, place: str, platform: PlatformChoice | None = None, transport: TransportMode | None = None
    ) -> AsyncIterator[tuple[Engine, Platform | None]]:
        """An engine over a repository, and the platform if one is chosen, for the time of the block.

        The repository is opened first: what is wrong with it is told before anything is asked of a platform.
        """
        from ..store.repository import Repository
        from .allocator import keep_freed_memory

        keep_freed_memory()
        async with AsyncExitStack() as stack:
            repository = await stack.enter_async_context(await Repository.open(place))
            opened = None
            if platform is not None:
                opened = await stack.enter_async_context(platform.open_one(transport=transport))
            yield await stack.enter_async_context(self.engine(repository)), opened


def limits(command: _Command) -> _Command:
    """``--limit-rate`` and ``--memory``; the command gets them in `engine_options`."""

    @wraps(command)
    def with_limits(*args: Any, memory: int | None, rate: int | None, **others: Any) -> int:
        configured = configuration()
        given = {name: value for name, value in (("memory", memory), ("rate", rate)) if value is not None}
        limits = replace(configured.limits if configured else Limits(), **given)
        options = EngineOptions(limits=limits, tls=configured.tls if configured else None)
        return command(*args, engine_options=options, **others)

    return _with(
        with_limits,
        click.option(
            "--memory",
            type=size,
            metavar="SIZE",
            help="Memory for data on its way, 16M or more; the configuration's, or 64M, if not given.",
        ),
        click.option(
            "--limit-rate",
            "rate",
            type=size,
            metavar="SIZE",
            help="Read no more than this in a second, over all disks.",
        ),
    )


def transport(command: _Command) -> _Command:
    """As `limits`, and ``--retry`` and ``--connect-retry``."""

    @wraps(command)
    def with_retry(*args: Any, engine_options: EngineOptions, outage: float, patience: float, **others: Any) -> int:
        retry = Retry(outage=outage, connect=patience)
        return command(*args, engine_options=engine_options._replace(retry=retry), **others)

    return _with(
        with_retry,
        limits,
        click.option(
            "--connect-retry",
            "patience",
            type=seconds,
            metavar="SECONDS",
            default="0",
            show_default=True,
            help="How long to go on trying when nobody answers at the first connect.",
        ),
        click.option(
            "--retry",
            "outage",
            type=seconds,
            metavar="SECONDS",
            default="60",
            show_default=True,
            help="How long a server may be gone in the middle; 0 to give up with the connection.",
        ),
    )


def _with(command: _Command, *options: Callable[[_Command], _Command]) -> _Command:
    """The command with options; the last one is the first in its help."""
    for option in options:
        command = option(command)
    return command
