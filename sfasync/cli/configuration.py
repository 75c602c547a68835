"""The configuration file of a command: which one it is, and what it says, from when that is first asked for.

Nothing is loaded for commands that have none.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..config import Configuration
    from ..models import ExportAddress

_FILE = "sfasync.configuration-file"
_LOADED = "sfasync.configuration"


def choose(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    """Note the file that ``--config`` names."""
    context.meta[_FILE] = value


def configuration() -> Configuration | None:
    """What the file of the command that is being run says; None where there is no file.

    Raises:
        ConfigurationError: It cannot be used.
    """
    meta: dict[str, Any] = click.get_current_context().meta
    if _LOADED not in meta:
        named: str | None = meta.get(_FILE)
        path = default_path() if named is None else named
        meta[_LOADED] = None if path is None else _load(path)
    loaded: Configuration | None = meta[_LOADED]
    return loaded


def trusting(address: ExportAddress) -> ExportAddress:
    """An address, with the configuration's idea of whom to believe if it has none."""
    configured = configuration()
    if address.tls is None or configured is None:
        return address
    return replace(address, tls=address.tls.completed(configured.tls))


def default_path() -> Path | None:
    """``SFASYNC_CONFIG``, or ``sfasync/sfasync.toml`` in the user's directory of configurations if it is there.

    That directory is as of the XDG Base Directory Specification: a path that is not absolute counts as none.
    """
    if named := os.environ.get("SFASYNC_CONFIG"):
        return Path(named)
    base = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not base.is_absolute():
        base = Path(os.path.expanduser("~"), ".config")  # stays relative for a user without a home
    place = base / "sfasync" / "sfasync.toml"
    return place if base.is_absolute() and place.exists() else None


def _load(path: str | Path) -> Configuration:
    from ..config import Configuration

    return Configuration.load(path)
