"""A configuration file says what it means, or what is wrong with it and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.config import Configuration
from sfasync.credentials import AccessKey, Credentials
from sfasync.errors import ConfigurationError
from sfasync.models import Limits, TlsPolicy

CANARY = "s3cret-canary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of a platform that needs credentials."""

    url: str
    credentials: Credentials | None = None


def load(directory: Path, text: str) -> Configuration:
    path = directory / "sfasync.toml"
    path.write_text(text)
    return Configuration.load(path)


def problem(directory: Path, text: str) -> str:
    """What is said of a file that cannot be used; without the file's name, which every message begins with."""
    with pytest.raises(ConfigurationError) as caught:
        load(directory, text)
    path = directory / "sfasync.toml"
    assert caught.value.path == str(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    configuration = load(tmp_path, "")
    assert configuration == Configuration(path=tmp_path / "sfasync.toml")
    assert configuration.limits == Limits()
    assert Configuration.load("/dev/null").tls is None


def test_limits_repositories_and_trust(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    configuration = load(
        tmp_path,
        """
        [limits]
        memory = "256M"
        rate = 1048576
        disks = 2
        [tls]
        ca_file = "ca.pem"
        [repositories.default]
        path = "backups"
        [repositories."off site"]
        path = "/mnt/off"
        """,
    )
    assert configuration.limits == Limits(memory=256 << 20, rate=1 << 20, disks=2)
    assert configuration.tls == TlsPolicy(ca_file=tmp_path / "ca.pem")
    assert configuration.repository() == str(tmp_path / "backups")
    assert configuration.repository("off site") == "/mnt/off"
    assert configuration.repository("./off site") == "./off site"
    assert Configuration().repository() is None
    assert Configuration().repository("r") == "r"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("= 1", "is no TOML"),
        ("a = 1\na = 2", "is no TOML"),
        ("[limit]", "limit: this key is not known; did you mean 'limits'?"),
        ("limits = 1", "limits: expected a table, got an integer"),
        ("[limits]\nmemory = 1", "limits: limit 'memory' must be at least 16777216, not 1"),
        ("[limits]\nmemory = '1e9'", "limits.memory: '1e9' is not a size"),
        ("[tls]\nca_file = 'missing'", "tls: 'ca_file' is not there"),
        ("[tls]\nverify = false", "tls.verify: this key is not known"),
        ("[repositories]\ndefault = 'x'", "repositories.default: expected a table, got a string"),
        ("[repositories.a]\nurl = 'x'", "repositories.a.url: this key is not known; there are path"),
        ("[repositories.a]", "repositories.a.path: this key is missing"),
        ("[platforms]\nprod = 1", "platforms.prod: expected a table, got an integer"),
        ("a = " + "[" * 100_000, "is no TOML"),
        ("#" * (1 << 20) + "#", "more than 1048576 bytes"),
    ],
    ids=lambda text: text[:40],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    assert problem(tmp_path, text).startswith(message)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        Configuration.load(tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="Is a directory"):
        Configuration.load(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="is no TOML"):
        Configuration.load(tmp_path / "binary")


def test_a_file_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "open.toml"
    path.touch()
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match="chmod o-w"):
        Configuration.load(path)


# --- platforms -------------------------------------------------------------------------------------------------------


async def test_settings_of_a_platform(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(CANARY)
    secret.chmod(0o600)
    configuration = load(
        tmp_path,
        """
        [platforms.prod]
        type = "scp"
        url = "https://scp"
        credentials = { access_key = "AK", secret_key = { file = "secret" } }
        """,
    )
    assert configuration.kind_of("prod") == "scp"
    settings = await configuration.settings("prod", Settings)
    assert settings == Settings(url="https://scp", credentials=AccessKey("AK", CANARY))
    assert CANARY not in repr(configuration) + repr(settings)


async def test_nobody_is_asked_before_the_rest_is_right(tmp_path: Path) -> None:
    mark = tmp_path / "asked"
    configuration = load(
        tmp_path,
        f"""
        [platforms.prod]
        type = "scp"
        credentials = {{ access_key = "AK", secret_key = {{ command = "touch '{mark}'" }} }}
        """,
    )
    with pytest.raises(ConfigurationError, match=r"platforms\.prod\.url: this key is missing"):
        await configuration.settings("prod", Settings)
    assert not mark.exists()


async def test_a_secret_that_cannot_be_had(tmp_path: Path) -> None:
    configuration = load(
        tmp_path,
        """
        [platforms.prod]
        type = "scp"
        url = "https://scp"
        credentials = { access_key = "AK", secret_key = { file = "missing" } }
        """,
    )
    with pytest.raises(ConfigurationError, match=r"sfasync\.toml: platforms\.prod: secret file .*missing cannot be"):
        await configuration.settings("prod", Settings)


async def test_a_secret_in_the_file(tmp_path: Path) -> None:
    configuration = load(
        tmp_path,
        f"""
        [platforms.prod]
        url = "https://scp"
        credentials = {{ access_key = "AK", secret_key = "{CANARY}" }}
        """,
    )
    assert CANARY not in repr(configuration)
    with pytest.raises(ConfigurationError, match=r"platforms\.prod\.credentials\.secret_key") as caught:
        await configuration.settings("prod", Settings)
    assert CANARY not in str(caught.value)


def test_platforms_that_are_not_there(tmp_path: Path) -> None:
    configuration = load(tmp_path, "[platforms.prod]\n[platforms.lab]\ntype = 7")
    for name, message in (
        ("prd", "no platform 'prd'; did you mean 'prod'?"),
        ("zzz", "no platform 'zzz'; there are lab, prod"),
        ("prod", r"platforms\.prod\.type: this key is missing"),
        ("lab", r"platforms\.lab\.type: this key is missing, or is no string"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            configuration.kind_of(name)
    with pytest.raises(ConfigurationError, match="no platform 'prod': no configuration file"):
        Configuration().kind_of("prod")


@given(st.text(st.sampled_from("[]{}=.\"'\n limtsreposorepath07#\\\0é"), max_size=60))
def test_any_text_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text)
    try:
        Configuration.load(path)
    except ConfigurationError as error:
        assert str(error).isprintable()


def test_a_path_is_never_a_name(tmp_path: Path) -> None:
    configuration = load(tmp_path, '[repositories."./backups"]\npath = "/mnt/elsewhere"\n')
    assert configuration.repository("./backups") == "./backups"
