"""Names of objects."""

from __future__ import annotations

import pytest

from sfasync.store import names
from sfasync.store.names import Annotated, Numbered

ID = bytes(range(16))
VM = "ab" * 16


def test_what_is_made_is_parsed() -> None:
    assert names.pack_key(ID) == "domains/default/packs/00/000102030405060708090a0b0c0d0e0f"
    assert names.parse_pack(names.pack_key(ID)) == ID
    assert names.parse_index(names.index_key(ID)) == ID
    assert names.backup_key(VM, 255) == f"domains/default/backups/{VM}/00000000000000ff"
    assert names.parse_backup(names.backup_key(VM, 255)) == Numbered(VM, 255)
    assert names.session_key(VM, 1) == f"domains/default/sessions/{VM}.0000000000000001"
    assert names.parse_session(names.session_key(VM, 1)) == Numbered(VM, 1)
    assert names.parse_end(names.end_key(VM, 1)) == Numbered(VM, 1)
    assert names.annotation_key(VM, 1, 255) == f"domains/default/annotations/{VM}/0000000000000001.000000ff"
    assert names.parse_annotation(names.annotation_key(VM, 1, 255)) == Annotated(VM, 1, 255)
    assert names.parse_tombstone(names.TOMBSTONES + ID.hex()) == ID


def test_a_session_is_not_its_end() -> None:
    assert names.parse_session(names.end_key(VM, 1)) is None
    assert names.parse_end(names.session_key(VM, 1)) is None


@pytest.mark.parametrize(
    "key",
    [
        "",
        "config",
        "domains/default/packs/00/0102030405060708090a0b0c0d0e0f10",  # in the wrong directory
        "domains/default/packs/00/000102030405060708090A0B0C0D0E0F",
        "domains/default/packs/00/000102030405060708090a0b0c0d0e0f ",
        "domains/default/packs/00/000102030405060708090a0b0c0d0e0f\n",
        "domains/default/packs/../../../config",
        "domains/other/packs/00/000102030405060708090a0b0c0d0e0f",
        "domains/default/packs/00/.tmp-0011223344556677",
        f"domains/default/backups/{VM}/0000000000000000",
        f"domains/default/backups/{VM}/ffffffffffffffff",
        f"domains/default/backups/{VM}/00000000000000f",
        f"domains/default/annotations/{VM}/0000000000000001.00000000",
        f"domains/default/annotations/{VM}/0000000000000000.00000001",
        f"domains/default/annotations/{VM}/0000000000000001",
        f"domains/default/sessions/{VM}.0000000000000001.2",
        f"domains/default/sessions/{VM}.{15 * chr(0x660)}1",
    ],
)
def test_other_names_are_not_ours(key: str) -> None:
    for parse in (names.parse_pack, names.parse_index, names.parse_backup, names.parse_session, names.parse_end):
        assert parse(key) is None
    assert names.parse_annotation(key) is None


def test_the_name_of_a_vm_depends_on_the_repository() -> None:
    first, second = names.vm_name(ID, "web-01"), names.vm_name(bytes(16), "web-01")
    assert len(first) == 32
    assert first != second
    assert first != names.vm_name(ID, "web-02")
    assert first == names.vm_name(ID, "web-01")
