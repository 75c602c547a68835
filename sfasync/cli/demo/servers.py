"""The NBD servers of the demo, on this machine only, and the certificates of the one that speaks TLS."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from ...errors import SourceError, UsageError, printable
from ...models import ExportAddress, TlsPolicy
from ...tasks import finish

TOOLS = {
    "nbdkit": "nbdkit",
    "nbd-server": "nbd-server",
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "openssl": "openssl",
    "mkfs.ext4": "e2fsprogs",
}
"""Programs that the demo starts, and the Debian packages that bring them."""

_START_SECONDS = 10.0
_STOP_SECONDS = 2.0

_EXTENSIONS = """\
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[server]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
"""


def find_tool(name: str) -> str | None:
    """The path of a program; also from where Debian keeps those for root."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def check_tools() -> None:
    """See that all programs are there.

    Raises:
        UsageError: Some are not; names them and the packages that bring them.
    """
    missing = [name for name in TOOLS if find_tool(name) is None]
    if missing:
        packages = " ".join(sorted({TOOLS[name] for name in missing}))
        raise UsageError(f"the demo needs {', '.join(missing)}; on Debian: apt-get install {packages}")


async def run_tool(name: str, *arguments: str | Path) -> str:
    """What a program prints to standard output.

    Cancelling ends it.

    Raises:
        SourceError: It failed; carries the last line it printed.
    """
    program = find_tool(name)
    assert program is not None, "check_tools was called"
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        printed, complaint = await process.communicate()
    except BaseException:
        await finish(_end(process), _STOP_SECONDS + 1)
        raise
    if process.returncode != 0:
        raise SourceError(f"{name} failed: {_last_line(complaint or printed)}")
    return printed.decode(errors="replace")


async def make_certificates(directory: Path) -> TlsPolicy:
    """An authority and a certificate for localhost, both for two days.

    Returns:
        What a client must know to believe the server.
    """
    extensions = _write_extensions(directory)
    for name, common_name in (("ca", "sfasync demo authority"), ("server", "localhost")):
        await run_tool(
            *("openssl", "req", "-new", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *(
                "-subj",
                f"/CN={common_name}",
                "-keyout",
                directory / f"{name}-key.pem",
                "-out",
                directory / f"{name}.csr",
            ),
        )
    own = ("-signkey", directory / "ca-key.pem", "-extensions", "authority")
    signed = ("-CA", directory / "ca-cert.pem", "-CAkey", directory / "ca-key.pem", "-CAcreateserial")
    for name, how in (("ca", own), ("server", (*signed, "-extensions", "server"))):
        request, certificate = directory / f"{name}.csr", directory / f"{name}-cert.pem"
        common = ("-req", "-days", "2", "-extfile", extensions, "-in", request, "-out", certificate)
        await run_tool("openssl", "x509", *common, *how)
    return TlsPolicy(ca_file=directory / "ca-cert.pem")


def _write_extensions(directory: Path) -> Path:
    directory.mkdir(mode=0o700)
    path = directory / "extensions"
    path.write_text(_EXTENSIONS)
    return path


@asynccontextmanager
async def nbdkit_over_tls(image: Path, certificates: Path, tls: TlsPolicy) -> AsyncIterator[ExportAddress]:
    """nbdkit, which serves a raw file and accepts verified TLS only."""
    port = _free_port()
    ready = image.with_suffix(".nbdkit")
    command = ("nbdkit", "--foreground", "--ipaddr", "127.0.0.1", "--port", str(port), "--pidfile", ready)
    options = ("--tls=require", f"--tls-certificates={certificates}", "file", image)
    async with _running([*command, *options], ready.exists):
        yield ExportAddress(host="localhost", port=port, tls=tls)


@asynccontextmanager
async def qemu_nbd(image: Path) -> AsyncIterator[ExportAddress]:
    """qemu-nbd, which serves the disk in a qcow2 file on a Unix socket."""
    path = image.with_suffix(".sock")
    ready = image.with_suffix(".qemu-nbd")
    command = (
        "qemu-nbd",
        "--persistent",
        "--shared=8",
        f"--socket={path}",
        f"--pid-file={ready}",
        "--format=qcow2",
        image,
    )
    async with _running(command, ready.exists):
        yield ExportAddress(socket=path)


@asynccontextmanager
async def nbd_server(image: Path) -> AsyncIterator[ExportAddress]:
    """nbd-server, which serves a raw file as the export ``logs`` on a Unix socket."""
    path = image.with_suffix(".sock")
    config = image.with_suffix(".conf")
    config.write_text(f"[generic]\nunixsock = {path}\n[logs]\nexportname = {image}\nflush = true\n")
    # It goes to the background by itself; a shell waits in its place, to be ended or to see us gone, and ends it.
    script = 'trap : TERM; nbd-server -C "$1" -p "$1.pid" || exit; read -r _; kill "$(cat "$1.pid")"'
    async with _running(("sh", "-c", script, "sh", config), lambda: _accepts(path)):
        yield ExportAddress(socket=path, export="logs")


@asynccontextmanager
async def _running(command: Sequence[str | Path], ready: Callable[[], bool]) -> AsyncIterator[None]:
    """A server for the time of the block.

    In a session of its own: a Ctrl-C is ours to act on, while the servers still serve.
    """
    # Should we be killed, it ends as well (prctl(2), PR_SET_PDEATHSIG).
    prefix = ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()
    process = await asyncio.create_subprocess_exec(
        *(*prefix, *command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_START_SECONDS):
            await _wait_for(process, ready, str(command[0]))
        yield
    except TimeoutError as error:
        raise SourceError(f"{command[0]} did not start within {_START_SECONDS:g} s") from error
    finally:
        await finish(_end(process), _STOP_SECONDS + 1)


async def _wait_for(process: asyncio.subprocess.Process, ready: Callable[[], bool], name: str) -> None:
    while not ready():
        if process.returncode is not None:
            assert process.stderr is not None, "it is a pipe"
            raise SourceError(f"{name} did not start: {_last_line(await process.stderr.read())}")
        await asyncio.sleep(0.01)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process, by asking and then by force."""
    if process.stdin is not None:
        process.stdin.close()
    for signal_it in (process.terminate, process.kill):
        if process.returncode is not None:
            return
        signal_it()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            continue


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fsencode(path)) == 0


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return printable(lines[-1]) if lines else "it says nothing"
