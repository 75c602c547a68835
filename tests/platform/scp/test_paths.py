"""Where operations are, and what may stand in a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.errors import PlatformError, UsageError
from sfasync.platform.scp.paths import HCI, OPERATIONS, Paths, answered_id, check_overrides, checked_id

from .support import RESOURCE, SERVER

RESOURCE_PATH = "/janus/20180725/backup-resources/{resource_id}"

EVIL = ["", "../../x", "a/b", "a?b", "a#b", "a b", "a%2fb", "..", "a..b", ".a", ":a", "ä", "a\n", "a" * 201, "a\0"]


def test_a_colon_stays_as_it_is_or_does_not() -> None:
    ids = {"resource_id": RESOURCE}
    assert Paths({}).fill(RESOURCE_PATH, ids) == f"/janus/20180725/backup-resources/{RESOURCE}"
    assert Paths({}, encode_colon=True).fill(RESOURCE_PATH, ids).endswith(RESOURCE.replace(":", "%3A"))


@pytest.mark.parametrize("evil", EVIL)
def test_ids_that_lead_elsewhere(evil: str) -> None:
    with pytest.raises(UsageError, match="is no server id"):
        Paths({}).fill("/janus/{server_id}", {"server_id": evil})
    with pytest.raises(PlatformError, match="answered with an id that cannot be one"):
        answered_id("server_id", evil)


@given(st.text())
def test_no_id_adds_to_a_path(text: str) -> None:
    try:
        checked_id("server_id", text)
    except UsageError as error:
        assert str(error).isprintable()
        return
    path = Paths({}).fill("/janus/{server_id}/x", {"server_id": text})
    assert path.count("/") == 3
    assert path.isascii()
    assert not set(path) & set("?#%")


def test_operators_correct_paths() -> None:
    overrides = {"servers": "/janus/20991231/servers", "snapshot": "/x/{snapshot_id}"}
    check_overrides(overrides)
    paths = Paths(overrides)
    assert paths.candidates("servers") == ("/janus/20991231/servers",)
    assert paths.fill(paths.candidates("snapshot")[0], {"server_id": SERVER, "snapshot_id": "s"}) == "/x/s"


@pytest.mark.parametrize(
    ("operation", "path", "message"),
    [
        ("no-such", "/x", "there is no operation 'no-such'"),
        ("servers", "x", "must begin with /"),
        ("servers", "https://evil.example/servers", "must begin with /"),
        ("servers", "//evil.example/servers", "must begin with /"),
        ("servers", "/x?y=1", "must begin with /"),
        ("servers", "/../x", "must begin with /"),
        ("servers", "/x/{server_id}", "no id in it"),
        ("server-delete", "/janus/servers", r"\{server_id\} in it"),
        ("snapshot-delete", "/janus/servers/{server_id}", r"\{snapshot_id\} in it"),
        ("server", "/janus/{server_id}/{task_id}", r"\{server_id\} in it"),
        ("server", "/janus/{server_id", "must begin with /"),
    ],
)
def test_paths_that_cannot_be_used(operation: str, path: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_overrides({operation: path})


def test_a_path_that_answered_is_the_one() -> None:
    paths = Paths({})
    first, second = paths.candidates("snapshot")
    paths.found("snapshot", second)
    assert paths.candidates("snapshot") == (second,)
    assert first in OPERATIONS["snapshot"].paths


def test_hardly_anything_is_known_of_a_cluster() -> None:
    paths = Paths({"servers": "/hci/vt/api/v1/vms"}, hci=True)
    assert set(HCI) == {"snapshot", "storage-attach", "rebase"} < set(OPERATIONS)
    assert paths.candidates("servers") == ("/hci/vt/api/v1/vms",)
    for operation in set(OPERATIONS) - set(HCI) - {"servers"}:
        with pytest.raises(PlatformError, match="is not supported on this platform"):
            paths.candidates(operation)


def test_every_path_of_ours_could_be_an_override() -> None:
    for name, operation in OPERATIONS.items():
        for path in operation.paths:
            check_overrides({name: path})
