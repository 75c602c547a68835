"""The configuration file: repositories and platforms by name, limits, and whom to believe.

::

    [repositories.default]              # what --repo means if it is not given
    path = "/srv/backups"               # relative to this file

    [limits]
    memory = "256M"

    [platforms.prod]                    # --platform prod
    type = "scp"
    url = "https://scp.example"
    credentials = { access_key = "AK", secret_key = { file = "scp.secret" } }

`docs/howto/configuration.md` describes all of it. A key that is not known is refused, and nothing secret stands in it.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from .conversion import Converter, join, suggestion, table
from .errors import ConfigurationError, SfasyncError, UsageError, printable
from .models import Limits, TlsPolicy
from .secrets import SecretSource

_T = TypeVar("_T")

_FILE_LIMIT: Final = 1 << 20
_DEFAULT_REPOSITORY: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositorySettings:
    """A repository by name.

    Attributes:
        path: Where it is.
    """

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What a configuration file says; without one, what holds by default.

    Attributes:
        path: The file; None without one.
        limits: What an engine may use.
        tls: For exports over TLS whose address says neither whom to believe nor who we are.
        repositories: By name.
        platforms: By name, as they stand in the file; `settings` converts one. Not shown: somebody may have put a
            secret there, which is refused only then.
    """

    path: Path | None = None
    limits: Limits = field(default_factory=Limits)
    tls: TlsPolicy | None = None
    repositories: Mapping[str, RepositorySettings] = field(default_factory=dict)
    platforms: Mapping[str, Mapping[str, object]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Configuration:
        """Read a configuration file; blocks for that. Secrets are not read yet.

        Raises:
            ConfigurationError: It cannot be read, or what it says cannot be used; the message names file and key.
        """
        path = Path(path)
        try:
            return _configuration(path, _parsed(path))
        except ConfigurationError as error:
            raise _in_file(path, error) from error

    def repository(self, reference: str | None = None) -> str | None:
        """Where a repository is.

        Args:
            reference: A name of the file, or where it is, which is what anything with a slash means; None for the
                repository that is called ``default``.

        Returns:
            Its place; None if there is no default.
        """
        if reference is not None and "/" in reference:
            return reference
        named = self.repositories.get(_DEFAULT_REPOSITORY if reference is None else reference)
        return reference if named is None else str(named.path)

    def kind_of(self, platform: str) -> str:
        """The type of a platform, by its name.

        Raises:
            ConfigurationError: There is no such platform, or it has no type.
        """
        if platform not in self.platforms:
            problem = f"there is no platform '{printable(platform)}'{suggestion(platform, list(self.platforms))}"
            raise ConfigurationError(f"{problem}: no configuration file") if self.path is None else self._error(problem)
        kind = self.platforms[platform].get("type")
        if not isinstance(kind, str):
            raise self._error(f"{self._key(platform)}: this key is missing, or is no string")
        return kind

    async def settings(self, platform: str, kind: type[_T]) -> _T:
        """What the file says of a platform, with its secrets, which are read now, and perhaps asked for.

        Args:
            platform: Its name.
            kind: The dataclass that describes platforms of its type.

        Raises:
            ConfigurationError: It cannot be used, or a secret cannot be had. Nobody is asked for a secret before
                everything else is known to be right.
        """
        assert self.path is not None, "without a file there is no platform"
        key = join("platforms", platform)
        values = {name: value for name, value in self.platforms[platform].items() if name != "type"}
        sources: list[SecretSource] = []
        directory = self.path.absolute().parent

        def note(source: SecretSource) -> str:
            sources.append(source)
            return "a secret to come"

        try:
            Converter(directory, note).record(values, kind, key)
            secrets = {source: await source.load() for source in dict.fromkeys(sources)}
            return Converter(directory, secrets.__getitem__).record(values, kind, key)
        except ConfigurationError as error:
            raise _in_file(self.path, error) from error
        except SfasyncError as error:  # of a secret; it names where that should have come from
            raise self._error(f"{key}: {error}") from error

    def _key(self, platform: str) -> str:
        return join(join("platforms", platform), "type")

    def _error(self, problem: str) -> ConfigurationError:
        assert self.path is not None, "only a file says something wrong"
        return _in_file(self.path, ConfigurationError(problem))


# --- the file --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _TlsTable:
    """Whom to believe, and who we are; names and fingerprints of servers belong to their addresses."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def __post_init__(self) -> None:
        for name, path in asdict(self).items():
            if path is not None and not path.is_file():
                raise UsageError(f"'{name}' is not there: {printable(str(path))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tables:
    """The tables of a file."""

    limits: Limits = field(default_factory=Limits)
    tls: _TlsTable | None = None
    repositories: Mapping[str, RepositorySettings] = field(default_factory=dict)
    platforms: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def _parsed(path: Path) -> object:
    """What the file has, as TOML means it.

    Raises:
        ConfigurationError: It cannot be read, is no TOML, or may be written by everybody: it names commands to run.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
                raise ConfigurationError("everybody can write it, and it can name commands to run; use chmod o-w")
            text = file.read(_FILE_LIMIT + 1)
        if len(text) > _FILE_LIMIT:
            raise ConfigurationError(f"more than {_FILE_LIMIT} bytes are no configuration")
        return tomllib.loads(text.decode())
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOML's and UTF-8's errors are ValueErrors
        raise ConfigurationError(f"is no TOML: {printable(str(error))}") from error


def _configuration(path: Path, found: object) -> Configuration:
    def no_secret(_: SecretSource) -> str:
        raise AssertionError("only platforms have secrets")

    tables = Converter(path.absolute().parent, no_secret).record(found, _Tables, "")
    return Configuration(
        path=path,
        limits=tables.limits,
        tls=None if tables.tls is None else TlsPolicy(**asdict(tables.tls)),
        repositories=tables.repositories,
        platforms={name: table(value, join("platforms", name)) for name, value in tables.platforms.items()},
    )


def _in_file(path: Path, error: ConfigurationError) -> ConfigurationError:
    return ConfigurationError(f"{printable(str(path))}: {error}", path=str(path))
