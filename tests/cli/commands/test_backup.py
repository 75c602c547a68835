"""`sfasync backup`"""

from __future__ import annotations

import os
import pty
import re
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ...support.certificates import make_certificates
from ...support.command import Ended, checked, finish, sfasync, start
from ...support.servers import Server, nbd_server, nbdkit, qemu_nbd

MiB = 1 << 20
PROMISE = 5.0  # seconds from a signal to the end


def failed(ended: Ended, status: int, code: str) -> dict[str, Any]:
    """The error of a command that failed as it should: one line, one object."""
    assert (ended.status, ended.last["code"]) == (status, code), ended.err
    assert len(ended.err.splitlines()) == 1
    return ended.last


def backups() -> int:
    count: int = sfasync("list", "--json").last["count"]
    return count


def read_until_moving(process: subprocess.Popen[str]) -> None:
    """Return when a backup run with --json has read something of its source."""
    assert process.stdout is not None
    for line in process.stdout:
        if checked(line)["read"]:
            return
    raise AssertionError("the backup ended before it had read anything")


# --- success ---------------------------------------------------------------------------------------------------------


def test_one_line_for_people(repository: Path, server: Server) -> None:
    ended = sfasync("backup", "web-01", "--disk", f"vda={server.uri}")
    assert (ended.status, ended.err) == (0, "")
    assert re.fullmatch(
        r"backup [0-9a-f]{12} of web-01: read [\d.]+ MiB, new [\d.]+ MiB, stored [\d.]+ MiB in .+ s\n", ended.out
    )


def test_a_result_for_programs(repository: Path, server: Server) -> None:
    result = sfasync("backup", "web-01", "--disk", f"vda={server.uri}", "--json").last
    (disk,) = result["disks"]
    assert (result["command"], result["vm"], result["parent"]) == ("backup", "web-01", None)
    assert (disk["id"], disk["size"], disk["mode"]) == ("vda", 16 * MiB + 512, "full")
    assert "first-backup" in disk["reasons"]
    assert disk["bytes_read"] == 5 * MiB + 4096  # and a hole of 4 KiB, too short to read around
    assert disk["bytes_new"] + disk["bytes_duplicate"] + disk["bytes_zero"] == disk["size"]
    assert 5 * MiB < disk["bytes_stored"] < 6 * MiB, "random data cannot be compressed"


def test_nothing_to_say_when_quiet(repository: Path, server: Server) -> None:
    ended = sfasync("backup", "web-01", "--disk", f"vda={server.uri}", "--quiet")
    assert (ended.status, ended.out, ended.err) == (0, "", "")


def test_several_disks_of_real_servers_over_tls(
    repository: Path, server: Server, disk: Path, certificates: Path, tmp_path: Path
) -> None:
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", disk, image], check=True)
    with (
        nbdkit("file", disk, tls=certificates, tcp=True) as remote,
        qemu_nbd(image, fmt="qcow2") as virtual,
        nbd_server(disk) as classic,
    ):
        uris = {"plain": server.uri, "tls": remote.uri, "qcow2": virtual.uri, "classic": classic.uri}
        arguments = [argument for name, uri in uris.items() for argument in ("--disk", f"{name}={uri}")]
        result = sfasync("backup", "web-01", *arguments, "--json").last
    assert [found["id"] for found in result["disks"]] == list(uris)
    stored = sum(found["bytes_stored"] for found in result["disks"])
    assert stored < 6 * MiB, "equal data is stored once"


def test_a_second_backup_stores_what_is_new(backup: str, server: Server) -> None:
    result = sfasync("backup", "vm", "--disk", f"vda={server.uri}", "--json").last
    assert result["parent"] == backup
    assert result["disks"][0]["bytes_new"] == 0
    assert result["disks"][0]["bytes_stored"] < MiB


def test_a_rate_is_kept(repository: Path, server: Server) -> None:
    began = time.monotonic()
    ended = sfasync("backup", "vm", "--disk", f"vda={server.uri}", "--limit-rate", "4M")
    assert ended.status == 0
    assert time.monotonic() - began > 0.7, "5 MiB at 4 MiB/s"


def test_details_for_the_curious(repository: Path, server: Server) -> None:
    ended = sfasync("backup", "vm", "--disk", f"vda={server.uri}", "-vv")
    assert ended.status == 0
    assert all(line.startswith("sfasync: ") for line in ended.err.splitlines())


def test_a_reader_of_progress_that_has_gone_changes_nothing(repository: Path, server: Server) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("backup", "vm", "--disk", f"vda={server.uri}", "--json", stdout=writer)
    os.close(writer)
    ended = finish(process)
    assert (ended.status, ended.err) == (0, "")
    assert backups() == 1


# --- failures, in the order of checks --------------------------------------------------------------------------------


def test_the_repository_is_checked_before_the_source(tmp_path: Path) -> None:
    ended = sfasync("backup", "vm", "--disk", "vda=nbd://127.0.0.1:1/", "--repo", tmp_path / "missing", "--json")
    failed(ended, 10, "repository")


def test_a_repository_of_the_future(repository: Path, server: Server) -> None:
    (repository / "config").chmod(0o600)
    (repository / "config").write_bytes(b"written by nobody we know")
    ended = sfasync("backup", "vm", "--disk", f"vda={server.uri}", "--json")
    assert ended.status in (10, 22)
    failed(ended, ended.status, ended.last["code"])


def test_nobody_listens(repository: Path, tmp_path: Path) -> None:
    for uri in ("nbd://127.0.0.1:1/", f"nbd+unix:///?socket={tmp_path}/missing.sock", "nbd://no.such.host.invalid/"):
        ended = sfasync("backup", "vm", "--disk", f"vda={uri}", "--json")
        failed(ended, 20, "connect")
    assert backups() == 0


def test_an_unknown_export(repository: Path, disk: Path) -> None:
    with nbd_server(disk, export="known") as server:
        ended = sfasync("backup", "vm", "--disk", f"vda={server.uri.replace('known', 'unknown')}", "--json")
    failed(ended, 20, "export")


def test_an_export_of_no_size(repository: Path, server: Server) -> None:
    """Next to a good disk as well: it must not become an empty disk of a backup that counts as done."""
    with nbdkit("memory", "0") as empty:
        error = failed(
            sfasync("backup", "web-01", "--disk", f"a={server.uri}", "--disk", f"b={empty.uri}", "--json"), 20, "export"
        )
    assert error["disk"] == "b"
    assert "has a size of 0 bytes" in error["message"]
    assert backups() == 0


def test_a_disk_with_a_bad_sector(repository: Path, disk: Path, server: Server) -> None:
    with nbdkit("file", disk, "error-pread-rate=100%", filters=("error",)) as broken:
        ended = sfasync("backup", "vm", "--disk", f"good={server.uri}", "--disk", f"bad={broken.uri}", "--json")
    assert ended.status == 20
    assert "offset" in failed(ended, 20, "bad-block")
    assert backups() == 0


def test_a_disk_with_a_bad_sector_that_may_be_lost(repository: Path, disk: Path, tmp_path: Path) -> None:
    spot = MiB + 512
    read = f"end=$(($4 + $3)); [ $4 -gt {spot} ] || [ $end -le {spot} ] || {{ echo EIO bad >&2; exit 1; }}; "
    read += f"dd if={disk} iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none"
    with nbdkit("eval", f"get_size=stat -c %s {disk}", f"pread={read}") as broken:
        failed(sfasync("backup", "vm", "--disk", f"vda={broken.uri}", "--json"), 20, "bad-block")
        ended = sfasync("backup", "vm", "--disk", f"vda={broken.uri}", "--bad-blocks", "zero", "--json")
    assert ended.status == 3
    assert f"512 bytes could not be read and are zeros in the backup, at offset {spot}" in ended.err
    assert (ended.last["ok"], ended.last["bad_blocks"]) == (True, {"vda": [[spot, 512]]})
    assert ended.last["disks"][0]["retries"] > 0
    shown = sfasync("show", "vm@latest", "--json").last
    assert [file["name"] for file in shown["files"]] == ["bad-blocks.json"]
    assert shown["bad_blocks"] == {"vda": [[spot, 512]]}
    assert (
        f"512 bytes could not be read and are zeros in the backup, at offset {spot}" in sfasync("show", "vm@latest").out
    )
    restored = sfasync("restore", "vm@latest", "--to", tmp_path / "out", "--verify-after", "--json")
    assert restored.status == 0
    assert any("could not be read" in warning for warning in restored.last["warnings"])
    content = bytearray(disk.read_bytes())
    content[spot : spot + 512] = bytes(512)
    assert (tmp_path / "out" / "vda.raw").read_bytes() == content


def test_a_server_that_comes_late(repository: Path, disk: Path, tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    waiting = start(
        "backup", "vm", "--disk", f"vda=nbd+unix:///?socket={socket}", "--connect-retry", "30", "--json", "-v"
    )
    assert waiting.stderr is not None
    while "again in" not in waiting.stderr.readline():  # it has tried in vain
        assert waiting.poll() is None
    with nbdkit("file", disk) as server:
        assert server.socket is not None
        socket.symlink_to(server.socket)
        assert finish(waiting).status == 0


def test_a_server_without_tls(repository: Path, server: Server, certificates: Path) -> None:
    uri = server.uri.replace("nbd+unix", "nbds+unix") + f"&tls-certificates={certificates}"
    failed(sfasync("backup", "vm", "--disk", f"vda={uri}", "--json"), 13, "tls")


def test_a_server_that_demands_tls(repository: Path, disk: Path, certificates: Path) -> None:
    with nbdkit("file", disk, tls=certificates) as server:
        uri = server.uri.replace("nbds+unix", "nbd+unix").partition("&tls-certificates")[0]
        failed(sfasync("backup", "vm", "--disk", f"vda={uri}", "--json"), 13, "tls")


@pytest.mark.parametrize("fault", ["expired", "other host", "other authority"])
def test_a_certificate_that_cannot_be_believed(
    repository: Path, disk: Path, certificates: Path, tmp_path: Path, fault: str
) -> None:
    theirs = make_certificates(
        tmp_path / "theirs",
        expired=fault == "expired",
        hosts=("elsewhere.example",) if fault == "other host" else ("localhost", "127.0.0.1"),
    )
    believed = certificates if fault == "other authority" else theirs
    with nbdkit("file", disk, tls=theirs, tcp=True) as server:
        uri = f"nbds://127.0.0.1:{server.port}/?tls-certificates={believed}"
        failed(sfasync("backup", "vm", "--disk", f"vda={uri}", "--json"), 13, "tls")
    assert backups() == 0


def test_incremental_where_nothing_tracks_changes(backup: str, server: Server) -> None:
    ended = sfasync("backup", "vm", "--disk", f"vda={server.uri}", "--mode", "incremental", "--json")
    assert failed(ended, 23, "cbt")["disk"] == "vda"


def test_a_repository_that_cannot_grow(repository: Path, server: Server) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MiB, MiB))

    process = start("backup", "vm", "--disk", f"vda={server.uri}", "--json", preexec_fn=limited)
    ended = finish(process)
    assert ended.status == 21, ended.err
    failed(ended, 21, ended.last["code"])
    assert backups() == 0
    assert sfasync("backup", "vm", "--disk", f"vda={server.uri}").status == 0


# --- several at once -------------------------------------------------------------------------------------------------


def test_two_backups_of_a_vm_exclude_each_other(repository: Path, server: Server, slow_server: Server) -> None:
    slow = start("backup", "vm", "--disk", f"vda={slow_server.uri}", "--json")
    try:
        read_until_moving(slow)
        failed(sfasync("backup", "vm", "--disk", f"vda={server.uri}", "--json"), 11, "busy")
        assert sfasync("backup", "other", "--disk", f"vda={server.uri}").status == 0
        waiting = start("backup", "vm", "--disk", f"vda={server.uri}", "--wait", "60", "--json")
        slow.send_signal(signal.SIGTERM)
        assert finish(slow).status == 143
        assert finish(waiting).status == 0
    finally:
        slow.kill()


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_time_with_nothing_visible(
    repository: Path, server: Server, slow_server: Server, number: signal.Signals
) -> None:
    process = start("backup", "vm", "--disk", f"vda={slow_server.uri}", "--json")
    read_until_moving(process)
    began = time.monotonic()
    process.send_signal(number)
    ended = finish(process)
    assert time.monotonic() - began < PROMISE
    failed(ended, 128 + number, "interrupted")
    assert backups() == 0
    result = sfasync("verify", "--data", "--json").last
    assert (result["ok"], result["leftovers"]) == (True, 0)
    assert sfasync("backup", "vm", "--disk", f"vda={server.uri}").status == 0, "nothing stands in the way"


def test_a_killed_backup_stands_in_nobodys_way(repository: Path, server: Server, slow_server: Server) -> None:
    process = start("backup", "vm", "--disk", f"vda={slow_server.uri}", "--json")
    read_until_moving(process)
    process.kill()
    finish(process)
    assert backups() == 0
    assert sfasync("backup", "vm", "--disk", f"vda={server.uri}").status == 0
    assert sfasync("verify", "--data").status == 0


def test_progress_on_a_terminal(repository: Path, slow_server: Server) -> None:
    ours, theirs = pty.openpty()
    process = start(
        *("backup", "vm", "--disk", f"vda={slow_server.uri}"),
        stderr=theirs,
        env={"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    while b"running" not in shown or b"MiB of 128" not in shown:
        shown += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # how a terminal without another side ends on Linux
        pass
    os.close(ours)
    assert (ended.status, ended.out) == (130, "")
    assert b"stopping; once more stops at once" in shown
    assert shown.rstrip().endswith(b"sfasync: interrupted by SIGINT")
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l"), "the cursor is back"
    assert b"\x1b[3" not in shown, "no colour"


@pytest.mark.parametrize("audit", ["-1", "101%", "some"])
def test_an_audit_that_is_none_is_refused_before_anything_happens(audit: str, tmp_path: Path) -> None:
    place = ("--repo", str(tmp_path / "none"), "--disk", "vda=nbd://nowhere.invalid")
    ended = sfasync("backup", "vm", f"--audit={audit}", *place, "--json")
    failed(ended, 2, "usage")
    assert "a number of chunks, a percentage such as 5%, off" in ended.err
