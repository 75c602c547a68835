"""A monitor that does not do what it should: each failure is typed, told in one line, and over in time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sfasync import BusyError, PlatformError, SfasyncError, UsageError
from sfasync.models import TlsPolicy
from sfasync.platform.qemu.inventory import nodes
from sfasync.platform.qemu.monitor import open_monitor
from sfasync.platform.qemu.names import BitmapName, Kind, prefix_of
from sfasync.platform.qemu.places import Places
from sfasync.platform.qemu.platform import QemuPlatform
from sfasync.platform.qemu.settings import QemuNbd, QemuSettings, QemuTimeouts, QemuVm
from tests.support.qemu import TIMEOUTS

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

GREETING = b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}\n'
# For a monitor that says nothing; one that does may take its time.
NO_GREETING = replace(TIMEOUTS, connect=0.5)
NO_ANSWER = replace(TIMEOUTS, command=0.3)
DEEP = b"[" * 200_000


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@asynccontextmanager
async def monitor_that(script: Script, place: Path) -> AsyncIterator[QemuVm]:
    """A monitor that follows a script, once it is connected to."""
    served: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.append(task)
        try:
            await script(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_unix_server(serve, path=place / "qmp")
    try:
        yield QemuVm(socket=place / "qmp", directory=place)
    finally:
        server.close()
        for task in served:
            task.cancel()
        if served:
            await asyncio.wait(served)


async def message(reader: asyncio.StreamReader) -> dict[str, object]:
    """What a client says; nothing marks its end."""
    heard = b""
    while True:
        heard += await reader.read(4096)
        with contextlib.suppress(ValueError):
            said: dict[str, object] = json.loads(heard)
            return said


def greets_with(greeting: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read()

    return script


def answers(*lines: bytes) -> Script:
    """Greet, accept the capabilities, and answer each command with a line, whose ID is put in."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        for line in (b'{"return": {}, "id": ID}\n', *lines):
            asked = await message(reader)
            writer.write(line.replace(b"ID", json.dumps(asked.get("id")).encode()))
        await reader.read()

    return script


@pytest.mark.parametrize(
    ("greeting", "error", "message"),
    [
        (b"", BusyError, "no greeting from its monitor .*: somebody else is connected to it"),
        (b"\n", PlatformError, "no connection to its monitor"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", PlatformError, "no connection to its monitor"),
        (b'{"QMP": 7}\n', PlatformError, "no connection to its monitor"),
        (DEEP + b"\n", PlatformError, "no connection to its monitor"),
        (b" " * (11 << 20), PlatformError, "no connection to its monitor"),
    ],
    ids=["silence", "nothing", "http", "number", "deep", "long"],
)
async def test_what_is_no_greeting(greeting: bytes, error: type[SfasyncError], message: str, place: Path) -> None:
    async with monitor_that(greets_with(greeting), place) as settings:
        with pytest.raises(error, match=message) as raised:
            async with open_monitor("web-01", settings, TIMEOUTS if greeting else NO_GREETING):
                pytest.fail("it was no monitor")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


async def test_one_that_hangs_up(place: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with monitor_that(script, place) as settings:
        with pytest.raises(PlatformError, match="no connection to its monitor"):
            async with open_monitor("web-01", settings, TIMEOUTS):
                pytest.fail("there was nobody")
    with pytest.raises(PlatformError, match=r"no connection to its monitor .*(refused|No such file)"):
        async with open_monitor("web-01", settings, TIMEOUTS):
            pytest.fail("there is nobody")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"return": 7, "id": ID}\n', "query-named-block-nodes is answered oddly"),
        (b'{"return": [{"drv": "raw"}], "id": ID}\n', "query-named-block-nodes is answered oddly"),
        (b'{"return": [], "id": "another"}\n', "no answer to query-named-block-nodes in 0.3 seconds"),
        (b'{"id": ID}\n', "the monitor is lost"),
        (b'{"error": 7, "id": ID}\n', "the monitor is lost"),
        (b'{"error": {"class": "GenericError", "desc": "two\\nlines"}, "id": ID}\n', r"two\\nlines"),
        (b'{"event": 7}\n', "no answer|the monitor is lost"),
        (b"\xff\xfe\n", "the monitor is lost"),
        (DEEP + b"\n", "the monitor is lost"),
        (b"x" * (11 << 20), "the monitor is lost"),
    ],
    ids=["number", "missing", "id", "neither", "error", "lines", "event", "bytes", "deep", "long"],
)
async def test_what_is_no_answer(answer: bytes, message: str, place: Path) -> None:
    async with monitor_that(answers(answer), place) as settings:
        with pytest.raises(PlatformError, match=message) as raised:
            timeouts = NO_ANSWER if "no answer" in message else TIMEOUTS
            async with open_monitor("web-01", settings, timeouts) as monitor:
                await nodes(monitor)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


async def test_one_that_goes_is_lost(place: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        asked = await message(reader)
        writer.write(b'{"return": {}, "id": %s}\n' % json.dumps(asked.get("id")).encode())
        await message(reader)

    async with monitor_that(script, place) as settings, open_monitor("web-01", settings, TIMEOUTS) as monitor:
        with pytest.raises(PlatformError, match="the monitor is lost"):
            await monitor.run("query-jobs")
        assert await monitor.lost == "QEMU has ended, or has closed its monitor"
        assert not monitor.alive


async def test_a_process_that_was_suspended_as_it_left_closes_without_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its deadlines are over when it goes on."""
    monkeypatch.setattr("sfasync.platform.qemu.monitor._CLOSE", 0.01)
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        asked = await message(reader)
        writer.write(b'{"return": {}, "id": %s}\n' % json.dumps(asked.get("id")).encode())
        assert await reader.read() == b""
        left.set()

    async with monitor_that(script, place) as settings:
        async with open_monitor("web-01", settings, TIMEOUTS):
            asyncio.get_running_loop().call_soon(time.sleep, 0.1)
        await left.wait()


async def test_a_cleanup_that_cannot_look_says_so(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A VM that does not run has nothing left; one whose monitor does not answer may have."""
    gone = QemuVm(socket=place / "nobody", directory=place)
    async with QemuPlatform(QemuSettings(vms={"gone": gone}, timeouts=TIMEOUTS)) as platform:
        assert await platform.cleanup() == []
    assert "not looked at" in caplog.text
    async with monitor_that(answers(b'{"return": 7, "id": ID}\n'), place) as settings:
        vms = {"gone": gone, "odd": settings}
        async with QemuPlatform(QemuSettings(vms=vms, timeouts=TIMEOUTS)) as platform:
            with pytest.raises(PlatformError, match="answered oddly"):
                await platform.cleanup()


# --- settings and names ----------------------------------------------------------------------------------------------


TLS = TlsPolicy(cert_file=Path("us.pem"), key_file=Path("us.key"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QemuVm(), "has the 'socket' of its monitor, or the 'address'"),
        (lambda: QemuVm(socket=Path("a"), address="b:1"), "has the 'socket' of its monitor, or the 'address'"),
        (lambda: QemuVm(address="nobody"), "'nobody' is no address of a monitor: HOST:PORT"),
        (lambda: QemuVm(address="host:0"), "no address of a monitor"),
        (lambda: QemuVm(address="host:1"), "'directory' and 'nbd.host' have to be told as well"),
        (lambda: QemuVm(socket=Path("a"), disks={"a\nb": "vda"}), "disk .* must be 1 to 255 bytes of printable text"),
        (lambda: QemuNbd(socket=Path("a"), host="b"), "on a Unix socket or at a host, not both"),
        (lambda: QemuNbd(host="b"), "needs 'tls': over TCP disks go encrypted"),
        (lambda: QemuNbd(credentials=Path("a")), "'credentials' are those of an NBD server at a 'host'"),
        (lambda: QemuNbd(host="b", credentials=Path("a"), tls=TlsPolicy()), "'tls' needs our certificate"),
        (lambda: QemuNbd(port=0), "port of the NBD server must be 1 to 65535, not 0"),
        (lambda: QemuTimeouts(clean=0), "timeout 'clean' must be more than 0 seconds"),
        (lambda: QemuSettings(vms={"": QemuVm(socket=Path("a"))}), "VM '' must be 1 to 255 bytes"),
    ],
)
def test_settings_that_cannot_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_addresses() -> None:
    nbd = QemuNbd(host="kvm7", tls=TLS)
    assert QemuVm(address="kvm7:4444", directory=Path("/a"), nbd=nbd).host_and_port == ("kvm7", 4444)
    assert QemuVm(address="[fe80::1]:4444", directory=Path("/a"), nbd=nbd).host_and_port == ("fe80::1", 4444)


def test_names_of_nodes_fit_into_qemu(tmp_path: Path) -> None:
    settings = QemuVm(socket=tmp_path / "qmp", directory=tmp_path)
    places = Places.of(settings)
    longest = places.name(9999, Kind.DATA) + "0123ab"
    assert len(longest) <= 31
    assert places.parse(longest) == (9999, Kind.DATA)
    assert places.parse("sfasync-00000000-0d") is None, "another monitor's"
    assert places.parse("vda") is None
    assert places.parse(places.prefix + "0k") is None, "no kind of ours"
    assert prefix_of(settings) != prefix_of(QemuVm(socket=tmp_path / "other"))


def test_a_directory_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too long for a Unix socket; choose another directory"):
        Places.of(QemuVm(socket=tmp_path / "qmp", directory=tmp_path / ("x" * 100)))


def test_names_of_bitmaps() -> None:
    first = BitmapName.new("0" * 16, None)
    second = BitmapName.new("0" * 16, first.lineage)
    assert BitmapName.parse(str(first)) == first
    assert (second.lineage, second.chain) == (first.lineage, first.chain)
    assert second != first
    assert first.when <= second.when
    for name in ("", "bitmap0", "sfasync-chain-", str(first) + "0", str(first).upper()):
        assert BitmapName.parse(name) is None
