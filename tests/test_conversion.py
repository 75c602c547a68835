"""Tables become records or errors that name the key."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.conversion import Converter, join
from sfasync.credentials import AccessKey, Credentials, Password
from sfasync.errors import ConfigurationError, UsageError
from sfasync.secrets import SecretFile, SecretSource
from sfasync.units import Size

CANARY = "s3cret-canary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    port: int = 10809
    style: Literal["direct", "starttls"] = "starttls"

    def __post_init__(self) -> None:
        if self.port < 1:
            raise UsageError("port must be more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    url: str
    timeout: float = 1.0
    allowed: bool = False
    size: Size | None = None
    ca_file: Path | None = None
    networks: tuple[str, ...] = ()
    paths: Mapping[str, str] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    vms: Mapping[str, Inner] = field(default_factory=dict)
    credentials: Credentials | None = None
    anything: Mapping[str, object] = field(default_factory=dict)


def converter(directory: Path = Path("/etc")) -> Converter:
    return Converter(directory, lambda source: f"from {source}")


def convert(**values: object) -> Outer:
    return converter().record({"url": "u", **values}, Outer, "p")


def test_what_is_not_said_keeps_its_default() -> None:
    assert convert() == Outer(url="u")


def test_values_become_what_their_types_say() -> None:
    assert convert(
        timeout=2,
        allowed=True,
        size="64M",
        ca_file="ca.pem",
        networks=["a", "b"],
        paths={"x": "y"},
        inner={"port": 1, "style": "direct"},
        vms={"a b": {"port": 2}},
        anything={"n": [1]},
    ) == Outer(
        url="u",
        timeout=2.0,
        allowed=True,
        size=64 << 20,
        ca_file=Path("/etc/ca.pem"),
        networks=("a", "b"),
        paths={"x": "y"},
        inner=Inner(port=1, style="direct"),
        vms={"a b": Inner(port=2)},
        anything={"n": [1]},
    )


def test_paths() -> None:
    assert convert(ca_file="/abs").ca_file == Path("/abs")
    assert convert(ca_file="~/x").ca_file == Path.home() / "x"
    assert convert(size=5).size == 5


def test_credentials() -> None:
    asked: list[SecretSource] = []

    def secret(source: SecretSource) -> str:
        asked.append(source)
        return CANARY

    for table, made in (
        ({"access_key": "a", "secret_key": {"file": "f"}}, AccessKey("a", CANARY)),
        ({"user": "u", "password": {"file": "f"}}, Password("u", CANARY)),
    ):
        outer = Converter(Path("/etc"), secret).record({"url": "u", "credentials": table}, Outer, "p")
        assert outer.credentials == made
        assert CANARY not in repr(outer)
    assert asked == [SecretFile(Path("/etc/f"))] * 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"urll": "x"}, "p.urll: this key is not known; did you mean 'url'?"),
        ({"inner": {"prt": 1}}, "p.inner.prt: this key is not known; did you mean 'port'?"),
        ({"inner": {"zzz": 1}}, "p.inner.zzz: this key is not known; there are port, style"),
        ({"inner": {"a b\n": 1}}, r'p.inner."a b\n": this key is not known; there are port, style'),
        ({"inner": 7}, "p.inner: expected a table, got an integer"),
        ({"inner": datetime.date(2026, 1, 1)}, "p.inner: expected a table, got a date or time"),
        ({"inner": {"port": "x"}}, "p.inner.port: Expected int, got str"),
        ({"inner": {"port": True}}, "p.inner.port: Expected int, got bool"),
        ({"inner": {"port": 0}}, "p.inner: port must be more than 0"),
        ({"inner": {"style": "tls"}}, "p.inner.style: expected one of 'direct', 'starttls'"),
        ({"inner": {"style": ["direct"]}}, "p.inner.style: expected one of 'direct', 'starttls'"),
        ({"vms": {"a.b": {"port": []}}}, 'p.vms."a.b".port: Expected int, got array'),
        ({"vms": []}, "p.vms: expected a table, got an array"),
        ({"networks": ["a", 7]}, "p.networks[1]: Expected str, got int"),
        ({"networks": "a"}, "p.networks: Expected array, got str"),
        ({"size": "much"}, "p.size: 'much' is not a size; write for example 512K, 64M or 1.5G"),
        ({"size": 1.5}, "p.size: Expected int, got float"),
        ({"ca_file": ""}, "p.ca_file: expected the path of a file"),
        ({"ca_file": 1}, "p.ca_file: Expected str, got int"),
        ({"credentials": {}}, "p.credentials.access_key: this key is missing"),
        ({"credentials": {"user": "u"}}, "p.credentials.password: this key is missing"),
        (
            {"credentials": {"user": "u", "secret_key": {"fd": 3}}},
            "p.credentials.secret_key: this key is not known; there are password, user",
        ),
    ],
)
def test_errors_name_the_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        convert(**values)
    assert str(caught.value) == message


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^p\.url: this key is missing$"):
        converter().record({}, Outer, "p")


def test_a_secret_in_the_file_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigurationError, match=r"^p\.credentials\.secret_key: a secret does not stand in") as caught:
        convert(credentials={"access_key": "a", "secret_key": CANARY})
    assert CANARY not in str(caught.value)


def test_keys_as_toml_writes_them() -> None:
    assert join("a", "b-1_C") == "a.b-1_C"
    assert join("", "b") == "b"
    assert join("a", "my prod") == 'a."my prod"'
    assert join("a", "") == 'a.""'


_KEYS: Any = st.sampled_from(
    [*Outer.__slots__, *Inner.__slots__, "access_key", "secret_key", "user", "password", "file", "fd", "command", "\n"]
)
_TOML = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.dates(),
        st.sampled_from(["prompt", "64M", "9" * 400, "1" * 18 + "p"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEYS, inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(_KEYS, _TOML, max_size=6))
def test_any_table_becomes_a_record_or_a_typed_error(found: dict[str, object]) -> None:
    try:
        converter().record(found, Outer, "p")
    except ConfigurationError as error:
        assert str(error).startswith("p")
        assert str(error).isprintable()
