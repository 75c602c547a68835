"""The platforms that a configuration file can name; the code of each is loaded when one is opened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, Final, TypeAlias

from .config import Configuration
from .errors import ConfigurationError, UsageError, printable
from .interfaces import Platform
from .models import TransportMode

_Opening: TypeAlias = Coroutine[Any, Any, AbstractAsyncContextManager[Platform]]


@asynccontextmanager
async def open_platform(
    configuration: Configuration, name: str, *, transport: TransportMode | None = None
) -> AsyncIterator[Platform]:
    """A platform of the configuration, for the time of the block.

    Secrets are read now, and perhaps asked for at the terminal.

    Args:
        configuration: Describes it.
        name: Its name there.
        transport: What is spoken with its NBD service; None for what the configuration says.

    Raises:
        ConfigurationError: There is no such platform, or what is said of it cannot be used.
        UsageError: It gives no choice of transports, or needs a package that is not installed.
    """
    kind = configuration.kind_of(name)
    if kind not in _KINDS:
        raise ConfigurationError(
            f"platform '{printable(name)}' is of type '{printable(kind)}'; there are {', '.join(_KINDS)}"
        )
    async with await _KINDS[kind](configuration, name, transport) as platform:
        yield platform


async def _qemu(
    configuration: Configuration, name: str, transport: TransportMode | None
) -> AbstractAsyncContextManager[Platform]:
    from .platform.qemu.platform import QemuPlatform
    from .platform.qemu.settings import QemuSettings

    if transport is not None:
        raise UsageError("a platform of type 'qemu' gives no choice of transports: 'nbd' in its settings says where")
    return QemuPlatform(await configuration.settings(name, QemuSettings))


async def _scp(
    configuration: Configuration, name: str, transport: TransportMode | None
) -> AbstractAsyncContextManager[Platform]:
    from .platform.scp.platform import ScpPlatform
    from .platform.scp.settings import ScpSettings

    settings = await configuration.settings(name, ScpSettings)
    return ScpPlatform(settings if transport is None else replace(settings, transport=transport))


_KINDS: Final[dict[str, Callable[[Configuration, str, TransportMode | None], _Opening]]] = {
    "qemu": _qemu,
    "scp": _scp,
}
