"""Turns what a TOML file says into the records it describes: strictly, and naming the key that is wrong.

A table becomes a dataclass, its keys the fields. msgspec converts single values; the tables are walked here, because
msgspec passes over keys that a dataclass does not have, and a mistyped ``ca_file`` must not go unseen.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from .credentials import AccessKey, Credentials, Password
from .errors import ConfigurationError, UsageError, printable
from .secrets import SecretSource, placed, secret_source
from .units import SIZE, parse_size

_T = TypeVar("_T")

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_UNIONS: Final = (Union, types.UnionType)
_TABLES: Final = (Mapping, dict)
_LISTS: Final = (tuple, list, Sequence)


def join(key: str, name: str) -> str:
    """The key of something within a table, as TOML writes it: ``platforms."my prod".url``."""
    safe = name if _BARE.fullmatch(name) else '"' + printable(name) + '"'
    return f"{key}.{safe}" if key else safe


def table(found: object, key: str) -> Mapping[str, object]:
    """A value that must be a table.

    Raises:
        ConfigurationError: It is none.
    """
    if not isinstance(found, Mapping):
        raise ConfigurationError(f"{key}: expected a table, got {_kind(found)}")
    return found


def suggestion(name: str, known: Sequence[str]) -> str:
    """What was perhaps meant by a name that is not known, for the end of a message."""
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean '{close[0]}'?" if close else f"; there are {', '.join(sorted(known))}" if known else ""


@dataclass(frozen=True, slots=True)
class Converter:
    """Converts tables of one file.

    Attributes:
        directory: What paths are relative to.
        secret: Called with each place of a secret; gives the secret.
    """

    directory: Path
    secret: Callable[[SecretSource], str]

    def record(self, found: object, kind: type[_T], key: str) -> _T:
        """A table as a dataclass.

        Args:
            found: The table.
            kind: The dataclass.
            key: Where the table is in the file.

        Raises:
            ConfigurationError: It does not fit; the message begins with the key that is wrong.
        """
        values = table(found, key)
        fields = {field.name: field for field in dataclasses.fields(cast(Any, kind)) if field.init}
        hints = get_type_hints(kind, include_extras=True)
        for name in values:
            if name not in fields:
                raise ConfigurationError(f"{join(key, name)}: this key is not known{suggestion(name, list(fields))}")
        secret = {name for name, field in fields.items() if issubclass(kind, Credentials) and not field.repr}
        converted = {
            name: self._secret(value, join(key, name))
            if name in secret
            else self._value(value, hints[name], join(key, name))
            for name, value in values.items()
        }
        missing = [name for name, field in fields.items() if name not in values and _is_required(field)]
        if missing:
            raise ConfigurationError(f"{join(key, missing[0])}: this key is missing")
        try:
            return kind(**converted)
        except UsageError as error:
            raise ConfigurationError(f"{key}: {error}" if key else str(error)) from error

    def _value(self, found: object, hint: Any, key: str) -> object:
        """A value as its type says."""
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return self._size(found, key) if SIZE in arguments[1:] else self._value(found, arguments[0], key)
        if origin in _UNIONS:  # with None, which TOML has no word for
            arguments = tuple(argument for argument in arguments if argument is not types.NoneType)
            if len(arguments) == 1:
                return self._value(found, arguments[0], key)
        elif dataclasses.is_dataclass(hint):
            return self.record(found, cast(type[Any], hint), key)
        elif hint is Credentials:
            return self._credentials(found, key)
        elif hint is object:
            return found
        elif hint is Path:
            return self._path(found, key)
        elif origin in _TABLES:
            return {
                name: self._value(value, arguments[1], join(key, name)) for name, value in table(found, key).items()
            }
        elif origin in _LISTS and isinstance(found, list):
            return tuple(self._value(value, arguments[0], f"{key}[{number}]") for number, value in enumerate(found))
        elif origin is Literal and found not in arguments:
            raise ConfigurationError(f"{key}: expected one of {', '.join(map(repr, arguments))}")
        return _single(found, hint, key)

    def _size(self, found: object, key: str) -> int:
        if not isinstance(found, str):
            return cast(int, _single(found, int, key))
        try:
            return parse_size(found)
        except ValueError as error:
            raise ConfigurationError(f"{key}: {printable(str(error))}") from error

    def _path(self, found: object, key: str) -> Path:
        text = cast(str, _single(found, str, key))
        try:
            return placed(text, self.directory)
        except UsageError as error:
            raise ConfigurationError(f"{key}: {error}") from error

    def _credentials(self, found: object, key: str) -> Credentials:
        names = set(table(found, key))
        return self.record(found, Password if names & {"user", "password"} else AccessKey, key)

    def _secret(self, found: object, key: str) -> str:
        try:
            return self.secret(secret_source(found, self.directory, key))
        except UsageError as error:
            raise ConfigurationError(f"{key}: {error}") from error


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _single(found: object, hint: Any, key: str) -> object:
    try:
        return cast(object, msgspec.convert(found, hint))
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{key}: {printable(str(error).replace('`', ''))}") from error


def _kind(found: object) -> str:
    """What TOML calls the type of a value."""
    names = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "an array"}
    return names.get(type(found), "a date or time")
