from __future__ import annotations

import pytest

from sfasync import TableResolver, vddk
from sfasync.errors import ArgumentError, UsageError

CANARY = "hunter2-canary"


@pytest.mark.parametrize("credentials", [vddk.AccessKey("AK", CANARY), vddk.Password("backup", CANARY)])
def test_secrets_are_not_shown(credentials: vddk.AccessKey | vddk.Password) -> None:
    access = vddk.Access(scp="scp.example", hci="hci.example", credentials=credentials)
    for shown in (repr(credentials), str(credentials), repr(access), f"{access}"):
        assert CANARY not in shown
    assert "scp.example" in repr(access)


@pytest.mark.parametrize("address", ["", f"https://user:{CANARY}@scp.example"])
def test_addresses_carry_no_secrets(address: str) -> None:
    with pytest.raises(ArgumentError, match="scp is the address of a host") as caught:
        vddk.Access(scp=address)
    assert CANARY not in str(caught.value)
    with pytest.raises(ArgumentError, match="hci is the address of a host"):
        vddk.Access(hci=address)


def test_somebody_has_to_know_where_the_disks_are() -> None:
    with pytest.raises(UsageError, match="give a resolver"):
        vddk.Access(scp="scp.example").endpoints()
    resolver = TableResolver()
    assert vddk.Access(resolver=resolver).endpoints() is resolver
