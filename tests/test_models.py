"""Options are refused when they are made, with the name of what is wrong; records add up."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfasync import DiskRecord, DiskStatistics, ExportAddress, Limits, Manifest, Timeouts, TlsPolicy, UsageError, models
from sfasync.models import BackupResult, Problem, VerifyResult
from sfasync.units import KiB, MiB


@pytest.mark.parametrize(
    ("make", "arguments", "named"),
    [
        (Limits, {"memory": 16 * MiB - 1}, "memory"),
        (Limits, {"requests": 0}, "requests"),
        (Limits, {"requests": 257}, "requests"),
        (Limits, {"connections": 0}, "connections"),
        (Limits, {"connections": 17}, "connections"),
        (Limits, {"disks": 0}, "disks"),
        (Limits, {"disks": 1025}, "disks"),
        (Limits, {"rate": 64 * KiB - 1}, "rate"),
        (Timeouts, {"connect": 0}, "connect"),
        (Timeouts, {"stall": -1.0}, "stall"),
        (Timeouts, {"request": 0.0}, "request"),
        (Timeouts, {"close": 0}, "close"),
        (TlsPolicy, {"style": "maybe"}, "'maybe'"),
        (TlsPolicy, {"ca_file": Path("ca.pem"), "ca_text": "-----BEGIN"}, "not both"),
        (ExportAddress, {}, "either a host or a Unix socket"),
        (ExportAddress, {"host": "a", "socket": Path("b")}, "either a host or a Unix socket"),
    ],
)
def test_what_is_out_of_range_is_refused(make: Callable[..., object], arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        make(**arguments)


def test_the_ends_of_the_ranges_are_inside() -> None:
    Limits(memory=16 * MiB, requests=1, connections=1, disks=1, rate=64 * KiB)
    Limits(memory=1 << 40, requests=256, connections=16, disks=1024, rate=1 << 40)


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        (ExportAddress(host="storage"), "storage:10809"),
        (ExportAddress(host="10.0.0.1", port=1), "10.0.0.1:1"),
        (ExportAddress(host="fe80::1"), "[fe80::1]:10809"),
        (ExportAddress(socket=Path("/run/a.sock")), "/run/a.sock"),
    ],
)
def test_a_peer_has_one_name(address: ExportAddress, peer: str) -> None:
    assert address.peer == peer


def test_how_tls_begins() -> None:
    assert ExportAddress(host="a").tls_style is None
    assert ExportAddress(host="a", tls=TlsPolicy()).tls_style == "starttls"
    assert ExportAddress(host="a", tls=TlsPolicy(style="direct")).tls_style == "direct"


def test_certificates_as_text_stay_out_of_reprs() -> None:
    assert "-----BEGIN" not in repr(ExportAddress(host="a", tls=TlsPolicy(ca_text="-----BEGIN CERTIFICATE-----")))


def disk(name: str, statistics: DiskStatistics = DiskStatistics()) -> DiskRecord:  # noqa: B008  # it is frozen
    return DiskRecord(id=name, size=1, root="", tree="", mode="full", statistics=statistics)


def test_a_backup_adds_up_its_disks() -> None:
    disks = (
        disk("a", DiskStatistics(bytes_read=1, bytes_new=20, bytes_stored=300)),
        disk("b", DiskStatistics(bytes_read=4, bytes_new=50)),
    )
    result = BackupResult(id="", vm="", parent=None, disks=disks, limited_by="source", seconds=0.0)
    assert (result.bytes_read, result.bytes_new, result.bytes_stored) == (5, 70, 300)


def test_a_manifest_knows_its_disks() -> None:
    disks = (disk("a"), disk("b"))
    manifest = Manifest(
        id="", repository="", seq=1, vm="", vm_name="", time=0.0, platform="plain", version="0", disks=disks
    )
    assert manifest.disk("b") is disks[1]
    assert manifest.disk("c") is None


def test_no_problems_means_all_is_well() -> None:
    facts: dict[str, Any] = {"backups": 1, "objects": 1, "blobs": 1, "bytes_read": 1, "data": True, "seconds": 0.0}
    facts |= {"known": (), "quarantined": 1, "all_read_since": None, "warnings": ("it could not be remembered",)}
    assert VerifyResult(problems=(), leftovers=("something",), **facts).ok
    assert not VerifyResult(problems=(Problem(object="a", problem="it is missing"),), leftovers=(), **facts).ok


def test_type_checkers_see_the_names_that_can_be_had() -> None:
    tree = ast.parse(Path(models.__file__).read_text())
    seen = next(node for node in tree.body if isinstance(node, ast.If))
    names = {alias.asname for node in seen.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    offered = {name for names in vars(models)["_MODULES"].values() for name in names}
    assert names == offered
    for name in offered:
        assert getattr(models, name) is not None
    with pytest.raises(AttributeError, match=r"'sfasync\.models' has no attribute 'nothing'"):
        _ = models.nothing  # type: ignore[attr-defined] # that is the test
