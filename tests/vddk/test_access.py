from __future__ import annotations

import pytest

from sfasync import TableResolver, vddk
from sfasync.errors import ArgumentError, UsageError
from sfasync.platform.scp.settings import ScpSettings

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


async def test_somebody_has_to_know_where_the_disks_are() -> None:
    with pytest.raises(UsageError, match="give a resolver"):
        vddk.Access(hci="hci.example").endpoints()
    with pytest.raises(UsageError, match=r"no credentials for https://scp\.example"):
        vddk.Access(scp="scp.example").endpoints()
    resolver = TableResolver()
    async with vddk.Access(scp="scp.example", resolver=resolver).endpoints() as found:
        assert found is resolver


def test_the_platform_is_named_once() -> None:
    settings = ScpSettings(url="https://scp.example:4430/")
    assert vddk.Access(settings=settings).scp == "https://scp.example:4430"
    with pytest.raises(ArgumentError, match="leave scp out"):
        vddk.Access(scp="scp.example", settings=settings)
