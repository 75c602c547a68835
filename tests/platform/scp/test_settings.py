"""Settings: what a configuration file turns into, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sfasync.credentials import AccessKey
from sfasync.errors import UsageError
from sfasync.platform.scp.settings import Dialect, NbdSettings, ScpSettings, ScpTimeouts, SigningSettings


def test_a_file_converts() -> None:
    told = {
        "url": "https://scp.example:4430/",
        "fingerprint": "ab" * 32,
        "signing": {"variant": "v4", "region": "RegionOne"},
        "paths": {"servers": "/janus/20200725/servers"},
        "dialect": {"expired": ["CBT is over"], "upload": "raw"},
        "timeouts": {"task": 60},
        "nbd": {"host": "10.0.0.7", "port": 20809, "networks": ["10.0.0.0/24"], "hosts": {"host-1": "10.0.0.8"}},
        "keep_last_snapshot": True,
    }
    settings = msgspec.convert(told, ScpSettings)
    assert settings.origin == "https://scp.example:4430"
    assert settings.signing == SigningSettings(variant="v4", region="RegionOne")
    assert settings.nbd.networks == ("10.0.0.0/24",)
    assert settings.timeouts.task == 60.0
    assert settings.dialect.expired == ("CBT is over",)


@pytest.mark.parametrize("url", ["https://scp.example", "https://10.0.0.1:4430", "https://[fd00::1]/", "https://scp"])
def test_addresses(url: str) -> None:
    assert ScpSettings(url=url).origin == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "scp.example",
            "http://scp.example",
            "https://",
            "https://scp.example/janus",
            "https://a..b",
            "https://-a",
        ),
        *(
            "https://scp.example:0",
            "https://scp.example:65536",
            "https://scp.example:x",
            "https://[::1::]",
            "https://[]",
        ),
        *("https://user:secret@scp.example", "https://scp.example?x", "https://scp.example\n", f"https://{'a' * 64}"),
        *("https://scp.example#x", "https://bücher.example", "ftp://scp.example", "https://scp example"),
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="is no address of a platform") as failure:
        ScpSettings(url=url)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    "values",
    [
        {"page_size": 0},
        {"page_size": 101},
        {"lease_seconds": 59},
        {"lease_seconds": 7201},
        {"connections": 0},
        {"disks_per_host": 129},
        {"disks_per_datastore": 0},
        {"product": "vmware"},
        {"hostname": ""},
        {"hostname": ".scp"},
        {"hostname": "a b"},
        {"paths": {"no-such": "/x"}},
    ],
    ids=lambda values: str(*values.items()),
)
def test_values_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ScpSettings(url="https://scp.example", **values)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (SigningSettings, {"variant": "v5"}),
        (SigningSettings, {"fallback": "v7"}),
        (SigningSettings, {"region": "cn/south"}),
        (SigningSettings, {"service": ""}),
        (ScpTimeouts, {"request": 0}),
        (ScpTimeouts, {"task": float("inf")}),
        (ScpTimeouts, {"poll": float("nan")}),
        (Dialect, {"padding": "none"}),
        (Dialect, {"upload": "ftp"}),
        (NbdSettings, {"port": 0}),
        (NbdSettings, {"tls_style": "none"}),
        (NbdSettings, {"networks": ("10.0.0.0/33",)}),
        (NbdSettings, {"networks": ("10.0.0.1/24",)}),
    ],
)
def test_parts_that_cannot_be(kind: type[Any], values: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as failure:
        kind(**values)
    assert str(failure.value).isprintable()


def test_credentials_are_not_shown() -> None:
    settings = ScpSettings(url="https://scp.example", credentials=AccessKey("AK", "canary"))
    assert "canary" not in repr(settings)
