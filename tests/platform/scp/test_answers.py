"""What is made of answers, of whatever is sent for one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.errors import PlatformError
from sfasync.platform.scp.answers import (
    CbtDisk,
    CbtStatus,
    ChangedAreas,
    Resource,
    Server,
    ServerDisk,
    SnapshotDetails,
    SnapshotDisk,
    snapshot_details,
)
from sfasync.platform.scp.envelope import Reply, decoded, opened
from sfasync.platform.scp.http import Answer, Headers

from .support import SNAPSHOT

GiB = 1 << 30

DETAILS: dict[str, Any] = {
    "id": SNAPSHOT,
    "name": "sfasync-1",
    "type": "VS",
    "created_at": "2023-07-03T21:28:38+08:00",
    "checkpoint_id": "4294967299",
    "vmconf": {
        "name": "web-01",
        "datastore_id": "1fd63ecb_vs_vol_rep3",
        "advanced_option": {"tpm_enabled": True, "encrypted": 0},
        "hardware_option": {
            "bios": {"bios_type": "CUSTOM"},
            "disks": [{"device_id": "ide0", "size_gb": 20}, {"device_id": "ide1", "size_gb": 0.5}],
        },
    },
}


def details(**changes: Any) -> SnapshotDetails:
    members = {name: value for name, value in (DETAILS | changes).items() if value is not ...}
    return snapshot_details(msgspec.Raw(msgspec.json.encode(members)), "snapshot")


def test_a_snapshot() -> None:
    snapshot = details()
    assert snapshot.checkpoint_id == snapshot.checkpoint("ide1") == "4294967299"
    assert snapshot.disks == (
        SnapshotDisk(device_id="ide0", size=20 * GiB),
        SnapshotDisk(device_id="ide1", size=GiB // 2),
    )
    assert (snapshot.bios_type, snapshot.tpm_enabled, snapshot.encrypted) == ("CUSTOM", True, False)
    assert snapshot.datastore_id == "1fd63ecb_vs_vol_rep3"


def test_the_configuration_is_kept_as_it_came() -> None:
    conf = b'{ "name" : "w\\u0065b",\n  "unknown": [1e3, {"a":null}], "hardware_option":{"disks":[]} }'
    snapshot = snapshot_details(msgspec.Raw(b'{"id": "s", "vmconf":' + conf + b"}"), "snapshot")
    assert snapshot.config == conf
    assert snapshot.disks == ()


@pytest.mark.parametrize("name", ["checkPointID", "checkPointId", "checkpointID", "CheckPoint_ID"])
@pytest.mark.parametrize("value", ["21474836484", 21474836484])
def test_spellings_of_a_checkpoint(name: str, value: str | int) -> None:
    assert details(checkpoint_id=..., **{name: value}).checkpoint_id == "21474836484"


@pytest.mark.parametrize("value", ["0", 0, "", None, ...])
def test_no_checkpoint(value: object) -> None:
    assert details(checkpoint_id=value).checkpoint_id is None


def test_checkpoints_by_disk() -> None:
    snapshot = details(disk_checkpoint_ids=[{"checkpointID": 5, "id": "ide0"}, {"checkpointID": "0", "id": "ide1"}])
    assert snapshot.checkpoint("ide0") == "5"
    assert snapshot.checkpoint("ide1") == "4294967299"


@pytest.mark.parametrize(
    "changes",
    [
        {"vmconf": ...},
        {"vmconf": None},
        {"vmconf": []},
        {"vmconf": {"hardware_option": []}},
        {"vmconf": {"hardware_option": {"disks": [{"device_id": "../../x"}]}}},
        {"vmconf": {"hardware_option": {"disks": [{"device_id": 7}]}}},
        {"vmconf": {"hardware_option": {"disks": [{"size_gb": 7}]}}},
        {"vmconf": {"hardware_option": {"disks": [{"device_id": "a"}, {"device_id": "a"}]}}},
        {"id": "../../x"},
        {"id": ...},
        {"checkpoint_id": "1e3"},
        {"checkpoint_id": -1},
        {"checkpoint_id": str(1 << 64)},
        {"checkpoint_id": "9" * 1000},
        {"checkpoint_id": "\u0661"},
        {"disk_checkpoint_ids": [{"checkpointID": 5, "id": "../ide0"}]},
    ],
    ids=str,
)
def test_snapshots_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(PlatformError) as failure:
        details(**changes)
    assert str(failure.value).isprintable()


def test_a_configuration_that_nobody_could_read_later() -> None:
    for conf in (
        b'{"a": "\xff"}',
        b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}",
        b"[" * 10**6,
        b'["' + b"x" * (1 << 20) + b'"]',
    ):
        with pytest.raises(PlatformError):
            snapshot_details(msgspec.Raw(b'{"id": "s", "vmconf":' + conf + b"}"), "snapshot")


@pytest.mark.parametrize(
    ("told", "size"),
    [
        ({"size_mb": 20480}, 20 * GiB),
        ({"size_mb": "20480.0"}, 20 * GiB),
        ({"size_mb": 1.5, "size_gb": 7}, 3 << 19),
        ({"size_gb": 20}, 20 * GiB),
        ({}, None),
        ({"size_mb": None}, None),
        ({"size_mb": 0}, None),
        ({"size_mb": -1}, None),
        ({"size_mb": 1e300}, None),
    ],
    ids=str,
)
def test_sizes(told: dict[str, Any], size: int | None) -> None:
    raw = msgspec.json.encode({"id": "ide0", **told})
    disk: ServerDisk = decoded(raw, ServerDisk, "servers")
    assert disk.size == size


def test_tracking_of_disks() -> None:
    status = CbtStatus(is_enabled=True, disks=(CbtDisk(id="ide0", is_enabled=False),))
    assert (status.tracked("ide0"), status.tracked("ide1")) == (False, True)
    assert not CbtStatus(is_enabled=False, disks=(CbtDisk(id="ide0", is_enabled=True),)).tracked("ide0")


# --- anything at all -------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KINDS: list[type[Any]] = [Server, Resource, ChangedAreas, CbtStatus]


@given(st.binary(max_size=200), st.integers(100, 599), st.sampled_from(KINDS))
def test_any_bytes_are_an_answer_or_a_platform_error(body: bytes, status: int, kind: type[Any]) -> None:
    reply = opened(Answer(status, Headers(), body))
    if reply.refusal is None:
        _typed_or_refused(reply, kind)


@given(JSON, st.sampled_from(KINDS))
def test_any_json_is_an_answer_or_a_platform_error(value: object, kind: type[Any]) -> None:
    for body in (value, {"code": 0, "data": value}, {"errcode": "", "data": [value]}):
        _typed_or_refused(opened(Answer(200, Headers(), msgspec.json.encode(body))), kind)


@given(st.dictionaries(st.sampled_from(sorted(DETAILS)), JSON), st.dictionaries(st.text(max_size=8), JSON, max_size=3))
def test_any_snapshot_is_one_or_a_platform_error(known: dict[str, Any], unknown: dict[str, Any]) -> None:
    try:
        details(**{**unknown, **known})
    except PlatformError as error:
        assert str(error).isprintable()


def _typed_or_refused(reply: Reply, kind: type[Any]) -> None:
    try:
        assert isinstance(reply.data(kind, "operation"), kind)
    except PlatformError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 400
