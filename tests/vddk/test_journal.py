"""What a crashed process leaves is found, and only that."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from sfasync import vddk
from sfasync.errors import StorageError
from sfasync.models import EndpointRequest, ExportAddress
from sfasync.nbd.uri import parse_uri
from sfasync.vddk.access import Access
from sfasync.vddk.journal import Entry, Journal, directory

from ..support.servers import DIE_WITH_PARENT, nbdkit
from .support import VM, Lender, cancelled_at_every_step, journal

PROGRAM = """
import asyncio, sys
from sfasync import TableResolver, vddk

async def main(uri, vm, scp):
    vddk.init()
    resolver = TableResolver({(vm, "ide0"): uri})
    access = vddk.Access(scp=scp, credentials=vddk.AccessKey("AK", "canary"), resolver=resolver)
    connection = await vddk.connect(
        access, mode="nbd", vm_id=vm, snapshot_id="s1", server_id="uuid", resource_id="a:b"
    )
    await vddk.open(connection, "ide0")
    print("open", flush=True)
    await asyncio.get_running_loop().create_future()

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def other_process(uri: str, scp: str = "scp.example") -> Iterator[subprocess.Popen[str]]:
    """A process that has a disk open."""
    command = [*DIE_WITH_PARENT, sys.executable, "-c", PROGRAM, uri, VM, scp]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def entry(scp: str | None = "scp.example", disk_id: str | None = "ide0") -> Entry:
    return Entry(
        pid=1,
        scp=scp,
        hci=None,
        vm_id=VM,
        disk_id=disk_id,
        snapshot_id="s1",
        server_id=None,
        resource_id=None,
        mode="nbd",
    )


# --- processes that die ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("initialised")
async def test_what_a_killed_process_had_open_is_cleaned_up() -> None:
    with nbdkit("memory", "1M") as server:
        lender = Lender(parse_uri(server.uri))
        access = vddk.Access(scp="scp.example", resolver=lender)
        with other_process(server.uri) as process:
            assert len(journal()) == 2
            assert await vddk.cleanup(access) == 0, "it lives"
            assert "canary" not in "".join(path.read_text() for path in journal())
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert await vddk.cleanup(vddk.Access(scp="other.example", resolver=lender)) == 0, "not ours"
        assert len(journal()) == 2
        assert await vddk.cleanup(access) == 2
        request = EndpointRequest(vm_id=VM, disk_id="ide0", snapshot_id="s1", server_id="uuid", resource_id="a:b")
        assert lender.released == [request]
        assert journal() == []
        assert await vddk.cleanup(access) == 0


@pytest.mark.usefixtures("initialised")
async def test_cleanup_leaves_what_this_process_has_open() -> None:
    with nbdkit("memory", "1M") as server:
        lender = Lender(parse_uri(server.uri))
        access = vddk.Access(scp="scp.example", resolver=lender)
        connection = await vddk.connect(access, mode="nbd", vm_id=VM)
        disk = await vddk.open(connection, "ide0")
        with other_process(server.uri) as process:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert len(journal()) == 4
        assert await vddk.cleanup(access) == 2
        assert await vddk.read(disk, 0, 1) == bytes(512)
        await vddk.close(disk)
        await vddk.disconnect(connection)


@pytest.mark.usefixtures("initialised")
async def test_two_that_clean_up_at_once() -> None:
    with nbdkit("memory", "1M") as server:
        with other_process(server.uri) as process:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        access = vddk.Access(scp="scp.example", resolver=Lender(parse_uri(server.uri)))
        assert sum(await asyncio.gather(*(vddk.cleanup(access) for _ in range(4)))) >= 2


# --- files -----------------------------------------------------------------------------------------------------------


async def test_entries_are_for_their_owner_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "new"))
    mask = os.umask(0)
    try:
        with closing(Journal()) as book:
            registration = await book.register(entry())
            for path, mode in [(directory(), 0o700), (directory() / registration.key, 0o600)]:
                assert stat.S_IMODE(path.stat().st_mode) == mode
            directory().chmod(0o755)
            await book.forget(await book.register(entry()))
            assert stat.S_IMODE(directory().stat().st_mode) == 0o700
            await book.forget(registration)
            assert list(directory().iterdir()) == []
    finally:
        os.umask(mask)


async def test_entries_say_what_they_said() -> None:
    with closing(Journal()) as book:
        registered = await book.register(entry())
        assert await book.leftovers(Access(scp="scp.example")) == []
        book.let_go(registered)
        (leftover,) = await book.leftovers(Access(scp="scp.example"))
        assert (leftover.key, leftover.entry) == (registered.key, entry())
        assert leftover.entry.request == EndpointRequest(vm_id=VM, disk_id="ide0", snapshot_id="s1")
        assert entry(disk_id=None).request is None
        assert await book.leftovers(Access()) == []
        assert await book.leftovers(Access(scp="scp.example", hci="hci.example")) == []
        await book.drop(leftover)
        await book.drop(leftover)


async def test_what_we_do_not_understand_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    with closing(Journal()) as book:
        kept = await book.register(entry())
        names = [f"{n:032x}.json" for n in range(6)]
        contents = [b"", b"{}", b'{"version":2}', b"\xff" * 100, b"x" * (65 << 10), b"\n[1]"]
        for name, content in zip(names, contents, strict=True):
            (directory() / name).write_bytes(content)
        (directory() / ("f" * 32 + ".json")).symlink_to("/etc/passwd")
        (directory() / "notes.txt").write_text("mine")
        (directory() / ".tmp-0").write_text("")
        with caplog.at_level(logging.WARNING):
            assert await book.leftovers(Access(scp="scp.example")) == []
        warned = [record.getMessage() for record in caplog.records if "left alone" in record.getMessage()]
        assert len(warned) == 7
        assert all("\n" not in message for message in warned)
        assert len(list(directory().iterdir())) == 10
        await book.forget(kept)


async def test_places_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with closing(Journal()) as book:
        with pytest.raises(StorageError, match=r"cannot create .*/file/sfasync/vddk: Not a directory"):
            await book.register(entry())
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(StorageError, match="belongs to another user; set XDG_STATE_HOME"):
            await book.register(entry())


def test_where_the_journal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/backup")
    assert directory() == Path("/home/backup/.local/state/sfasync/vddk")
    monkeypatch.setenv("HOME", "nowhere")
    with pytest.raises(StorageError, match="set XDG_STATE_HOME"):
        directory()


@pytest.mark.usefixtures("initialised")
async def test_no_connection_without_a_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = os.environ["XDG_STATE_HOME"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    lender = Lender(ExportAddress(socket=tmp_path / "none"))
    with pytest.raises(StorageError):
        await vddk.connect(vddk.Access(resolver=lender), mode="nbd", vm_id=VM)
    assert lender.lent == []
    monkeypatch.setenv("XDG_STATE_HOME", state)


async def test_cancelling_leaves_no_entry() -> None:
    with closing(Journal()) as book:

        async def work() -> None:
            await book.forget(await book.register(entry()))

        async for _ in cancelled_at_every_step(work):
            await book.leftovers(Access())  # the thread has done what it was told before
            assert journal() == []
