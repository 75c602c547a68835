"""Real NBD servers for tests, each a context manager that yields a `Server`.

A server listens on a Unix socket of its own (or on a free port of 127.0.0.1), writes what it says to a file, and dies
with the thread that started it. Without the program the test is skipped, with the reason.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

START_TIMEOUT = 20.0
STOP_TIMEOUT = 5.0

# A server must not outlive the test process, even one that is killed. The signal comes when the *thread* that started
# the child ends (prctl(2), PR_SET_PDEATHSIG), so servers are started from the main thread.
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        uri: How a client reaches it; with TLS it names the directory of certificates.
        socket: Its Unix socket, or None over TCP.
        port: Its port on 127.0.0.1, or None on a Unix socket.
        pid: The process that serves.
        log: Everything it has written to standard output and error.
        qmp: The monitor's socket of qemu-storage-daemon, None for other servers.
        stop: Ends it, and returns when it has ended; does nothing the second time.
    """

    uri: str
    socket: Path | None
    port: int | None
    pid: int
    log: Path
    qmp: Path | None
    stop: Callable[[], None]


@contextmanager
def nbdkit(
    *args: str | Path, tls: Path | None = None, tcp: bool = False, filters: Sequence[str] = ()
) -> Iterator[Server]:
    """An nbdkit with a plugin, its parameters and other options: ``nbdkit("memory", "1G", filters=("delay",))``."""
    require("nbdkit")
    with _place() as place:
        port = free_port() if tcp else None
        command: list[str | Path] = ["nbdkit", "--foreground", "--pidfile", place / "pid"]
        command += ["--unix", place / "socket"] if port is None else ["--ipaddr", "127.0.0.1", "--port", str(port)]
        if tls is not None:
            command += ["--tls=require", f"--tls-certificates={tls}"]
        command += [f"--filter={name}" for name in filters]
        process = _start([*command, *args], place)
        yield from _serving(process, place, port=port, tls=tls, ready=(place / "pid").exists)


@contextmanager
def qemu_nbd(
    image: str | Path,
    *args: str | Path,
    fmt: str = "raw",
    tls: Path | None = None,
    tcp: bool = False,
    writable: bool = True,
    export: str = "",
) -> Iterator[Server]:
    """A qemu-nbd that serves one image, to up to 16 connections at once."""
    require("qemu-nbd")
    with _place() as place:
        port = free_port() if tcp else None
        command: list[str | Path] = ["qemu-nbd", "--persistent", "--shared=16", f"--pid-file={place / 'pid'}"]
        command += [f"--socket={place / 'socket'}"] if port is None else ["--bind=127.0.0.1", f"--port={port}"]
        command += ["--object", _qemu_credentials(tls), "--tls-creds=tls0"] if tls is not None else []
        command += [f"--export-name={export}", *([] if writable else ["--read-only"])]
        # Image options carry the format themselves (qemu-nbd(8), --image-opts).
        command += [] if "--image-opts" in args else [f"--format={fmt}"]
        process = _start([*command, *args, image], place)
        yield from _serving(process, place, port=port, tls=tls, export=export, ready=(place / "pid").exists)


@contextmanager
def nbd_server(path: str | Path, *, export: str = "disk", tls: Path | None = None) -> Iterator[Server]:
    """An nbd-server that serves one raw file, writable, on a Unix socket."""
    require("nbd-server")
    with _place() as place:
        generic: dict[str, str | Path] = {"unixsock": place / "socket", "allowlist": "true"}
        if tls is not None:
            generic |= {
                "force_tls": "true",
                "certfile": tls / "server-cert.pem",
                "keyfile": tls / "server-key.pem",
                "cacertfile": tls / "ca-cert.pem",
            }
        disk: dict[str, str | Path] = {"exportname": path, "flush": "true", "fua": "true", "trim": "true"}
        sections = {"generic": generic, export: disk}
        (place / "config").write_text(
            "".join(
                f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in section.items())
                for name, section in sections.items()
            )
        )
        # It has no foreground mode that serves more than one connection (3.24), so a shell ends the daemon when its
        # own standard input closes, at stop or when the test process dies, and waits for its end.
        script = """
            nbd-server -C "$1/config" -p "$1/pid" || exit
            read -r _
            pid=$(cat "$1/pid")
            kill "$pid"
            while grep -qs "State:.[^Z]" "/proc/$pid/status"; do sleep 0.01; done
        """
        process = _start(["sh", "-c", script, "sh", place], place, stdin=subprocess.PIPE, die_with_parent=False)
        yield from _serving(
            process, place, tls=tls, export=export, ready=lambda: _accepts(place / "socket"), pid_file=place / "pid"
        )


@contextmanager
def storage_daemon(*args: str | Path, export: str = "disk", tls: Path | None = None) -> Iterator[Server]:
    """A qemu-storage-daemon with an NBD server and a QMP monitor.

    `args` bring the block devices and exports; the URI names `export`:

        storage_daemon("--blockdev", "driver=file,node-name=f,filename=a", "--export", "nbd,id=e,node-name=f,name=disk")
    """
    require("qemu-storage-daemon")
    with _place() as place:
        command: list[str | Path] = ["qemu-storage-daemon", "--pidfile", place / "pid"]
        command += ["--chardev", f"socket,id=qmp,path={place / 'qmp'},server=on,wait=off", "--monitor", "chardev=qmp"]
        command += ["--object", _qemu_credentials(tls)] if tls is not None else []
        credentials = ",tls-creds=tls0" if tls is not None else ""
        # Block devices come first: an export can only name what is there.
        command += ["--nbd-server", f"addr.type=unix,addr.path={place / 'socket'},max-connections=16{credentials}"]
        process = _start([*command, *args], place)
        yield from _serving(process, place, tls=tls, export=export, ready=(place / "pid").exists, qmp=place / "qmp")


@contextmanager
def system_emulator(*args: str | Path, exports: Sequence[str] = ()) -> Iterator[Server]:
    """A QEMU whose guest is never started, with a QMP monitor, and an NBD server for the nodes named.

    `args` bring devices and their nodes. What is exported can be written, if its device shares it (``share-rw=on``).
    """
    require("qemu-system-x86_64")
    with _place() as place:
        command: list[str | Path] = ["qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-machine", "q35"]
        command += ["-accel", "tcg", "-m", "16", "-pidfile", place / "pid"]
        for monitor in ("qmp", "control"):
            command += ["-qmp", f"unix:{place / monitor},server=on,wait=off"]
        process = _start([*command, *args], place)

        def ready() -> bool:
            return (place / "pid").exists() and _accepts(place / "control")

        for server in _serving(process, place, ready=ready, qmp=place / "qmp"):
            if exports:
                _export(place, exports)
            yield server


def _export(place: Path, nodes: Sequence[str]) -> None:
    """Have a QEMU serve nodes, under their names, by its second monitor."""
    address = {"type": "unix", "data": {"path": str(place / "socket")}}
    commands: list[tuple[str, dict[str, object]]] = [("qmp_capabilities", {}), ("nbd-server-start", {"addr": address})]
    for node in nodes:
        export = {"type": "nbd", "id": f"guest-{node}", "node-name": node, "name": node, "writable": True}
        commands.append(("block-export-add", export))
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(START_TIMEOUT)
        control.connect(str(place / "control"))
        with control.makefile("rw") as stream:
            stream.readline()  # the greeting
            for command, arguments in commands:
                stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
                stream.flush()
                while "event" in (answer := json.loads(stream.readline())):
                    pass
                assert "return" in answer, answer


def require(program: str) -> None:
    """Skip the running test if a program is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed; run scripts/system-packages")


@contextmanager
def _place() -> Iterator[Path]:
    # Not pytest's own directory: the path of a Unix socket has at most 107 bytes (unix(7)).
    with tempfile.TemporaryDirectory(prefix="sfasync-server-") as directory:
        yield Path(directory)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses, nor soon will.

    Not one of those that the kernel hands out (from 32,768 on, ip(7)): before the server has it, a client of a test
    that runs beside this one might.
    """
    while True:
        with socket.socket() as probe, suppress(OSError):
            port = 10_000 + secrets.randbelow(20_000)
            probe.bind(("127.0.0.1", port))
            return port


def _qemu_credentials(tls: Path) -> str:
    return f"tls-creds-x509,id=tls0,endpoint=server,dir={tls},verify-peer=no"


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _start(
    command: Sequence[str | Path],
    place: Path,
    *,
    stdin: int = subprocess.DEVNULL,
    die_with_parent: bool = True,
) -> subprocess.Popen[bytes]:
    with (place / "log").open("wb") as log:
        return subprocess.Popen(
            [*(DIE_WITH_PARENT if die_with_parent else ()), *map(str, command)],
            stdin=stdin,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _serving(
    process: subprocess.Popen[bytes],
    place: Path,
    *,
    ready: Callable[[], bool],
    port: int | None = None,
    tls: Path | None = None,
    export: str = "",
    qmp: Path | None = None,
    pid_file: Path | None = None,
) -> Iterator[Server]:
    """Wait until a started server serves, hand it out, and end it afterwards."""
    log = place / "log"

    def stop() -> None:
        _stop(process)

    try:
        _wait(process, ready, log)
        yield Server(
            uri=_uri(place / "socket", port, tls, export),
            socket=place / "socket" if port is None else None,
            port=port,
            pid=process.pid if pid_file is None else int(pid_file.read_text()),
            log=log,
            qmp=qmp,
            stop=stop,
        )
    finally:
        stop()


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}: {log.read_text(errors='replace')}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{process.args!r} does not serve: {log.read_text(errors='replace')}")
        time.sleep(0.005)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    else:
        process.send_signal(signal.SIGCONT)  # a test may have stopped it
        process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _uri(path: Path, port: int | None, tls: Path | None, export: str) -> str:
    scheme = "nbd" if tls is None else "nbds"
    parameters = {"socket": path} if port is None else {}
    if tls is not None:
        parameters["tls-certificates"] = tls
    query = "&".join(f"{name}={quote(str(value))}" for name, value in parameters.items())
    start = f"{scheme}+unix:///" if port is None else f"{scheme}://127.0.0.1:{port}/"
    return start + quote(export, safe="") + (f"?{query}" if query else "")
