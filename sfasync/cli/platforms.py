"""The platforms that a command works on, as its options and the configuration file name them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..errors import SfasyncError, one_line
from .configuration import configuration
from .output import Output

if TYPE_CHECKING:
    from ..config import Configuration
    from ..interfaces import Platform
    from ..models import TransportMode


class PlatformChoice(NamedTuple):
    """Platforms of a configuration.

    Attributes:
        configuration: Describes them.
        names: Theirs, one at least.
    """

    configuration: Configuration
    names: tuple[str, ...]

    def open_one(self, *, transport: TransportMode | None) -> AbstractAsyncContextManager[Platform]:
        """The only one of them, for the time of the block; arguments as of `open_platform`."""
        from ..drivers import open_platform

        (name,) = self.names
        return open_platform(self.configuration, name, transport=transport)

    async def each(self, output: Output, work: Callable[[str, Platform], Coroutine[Any, Any, None]]) -> None:
        """Do something with each of them in turn; one that fails keeps nobody from the others.

        Raises:
            SfasyncError: The first failure; the others are told at once.
        """
        from ..drivers import open_platform

        first: SfasyncError | None = None
        for name in self.names:
            try:
                async with open_platform(self.configuration, name) as platform:
                    await work(name, platform)
            except SfasyncError as error:
                if first is not None:
                    output.note(f"platform {one_line(name)}: {error}")
                first = first or error
        if first is not None:
            raise first


def choose_platform(context: click.Context, parameter: click.Parameter, value: str | None) -> PlatformChoice | None:
    """The platform that an option names; None without one."""
    return None if value is None else choose_platforms(context, parameter, value)


def choose_platforms(_context: click.Context, _parameter: click.Parameter, value: str | None) -> PlatformChoice:
    """The platform that an option names, or all that there are."""
    configured = configuration()
    if configured is None:
        raise click.UsageError("there is no configuration file, which describes platforms: give one with --config")
    if value is not None:
        configured.kind_of(value)  # refuses a name that is not there
    elif not configured.platforms:
        raise click.UsageError(f"{configured.path} describes no platform")
    return PlatformChoice(configured, tuple(configured.platforms) if value is None else (value,))


def complete_platform(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of platforms for the shell."""
    with context.scope(cleanup=False):
        configured = configuration()
    return [name for name in (configured.platforms if configured else ()) if name.startswith(incomplete)]
