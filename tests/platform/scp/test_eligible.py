from __future__ import annotations

from dataclasses import replace

import pytest

from sfasync.platform.scp.answers import Advanced, Server, Snapshot
from sfasync.platform.scp.eligible import busy, is_off, refusal, warnings

PLAIN = Server(id="1b54", name="web-01", type="hci", vmtype="vm", status="running", power_state="on")


def changed(**members: object) -> Server:
    return replace(PLAIN, **members)  # type: ignore[arg-type]  # names are those of the class


@pytest.mark.parametrize(
    "server",
    [
        PLAIN,
        changed(vmtype="derive"),
        changed(advance_param=Advanced(turbo_mode_enabled=False)),
        changed(application="desk", revert_mode=0),
        changed(type=None, vmtype=None),
    ],
)
def test_vms_of_users_can_be_backed_up(server: Server) -> None:
    external = Snapshot(id="s", type="external_qcow2")
    assert refusal(server, [external], encrypted_allowed=False) is None
    assert busy(server) is None


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (changed(type="vmware"), "type 'vmware'"),
        (changed(vmtype="dmp_mysql"), "'dmp_mysql' of the platform's own"),
        (changed(os_name="Backup Proxy"), "backup proxy"),
        (changed(advance_param=Advanced(turbo_mode_enabled=True)), "turbo"),
        (changed(application="desk", revert_mode=1), "desktop"),
        (changed(encrypted=True), "encrypted_allowed = true"),
        (changed(type="evil\n"), r"type 'evil\\n'"),
    ],
)
def test_others_cannot(server: Server, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        assert refusal(server, encrypted_allowed=False) is None, refusal(server, encrypted_allowed=False)


def test_snapshots_inside_disk_files_are_refused() -> None:
    reason = refusal(PLAIN, [Snapshot(id="s", type="qcow2")], encrypted_allowed=False)
    assert reason is not None
    assert "delete these first" in reason


def test_encrypted_vms_are_allowed_with_a_warning() -> None:
    server = changed(encrypted=True)
    assert refusal(server, encrypted_allowed=True) is None
    assert ["where its key is" in line for line in warnings(server)] == [True]


def test_warnings() -> None:
    assert warnings(PLAIN) == ()
    assert ["backup policy" in line for line in warnings(changed(backup_policy_enable=True))] == [True]


def test_what_is_neither_running_nor_stopped_is_busy() -> None:
    assert busy(changed(status="stopped")) is None
    assert busy(changed(status="migrating")) == "it is migrating, neither running nor stopped"
    assert busy(changed(instant_vm=True)) == "a quick recovery of it is going on"


def test_who_is_off() -> None:
    assert is_off(changed(status="stopped"))
    assert is_off(changed(status=None, power_state="off"))
    assert not is_off(PLAIN)
    assert not is_off(changed(status="running", power_state="off"))
