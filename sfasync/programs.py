"""Programs that are started on this machine: tools that end by themselves, and servers for the time of a block."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from .errors import SourceError, UsageError, printable
from .models import TlsPolicy
from .tasks import finish

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


def require_tools(who: str, tools: Mapping[str, str]) -> None:
    """See that all programs are there.

    Args:
        who: What needs them, for the message.
        tools: Programs, and the Debian packages that bring them.

    Raises:
        UsageError: Some are not; names them and the packages that bring them.
    """
    missing = [name for name in tools if find_tool(name) is None]
    if missing:
        packages = " ".join(sorted({tools[name] for name in missing}))
        raise UsageError(f"{who} needs {', '.join(missing)}; on Debian: apt-get install {packages}")


async def run_tool(name: str, *arguments: str | Path) -> str:
    """What a program prints to standard output.

    Cancelling ends it.

    Raises:
        SourceError: It failed; carries the last line it printed.
    """
    program = find_tool(name)
    assert program is not None, "require_tools was called"
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
        await finish(end(process), _STOP_SECONDS + 1)
        raise
    if process.returncode != 0:
        raise SourceError(f"{name} failed: {last_line(complaint or printed)}")
    return printed.decode(errors="replace")


async def make_certificates(directory: Path) -> TlsPolicy:
    """An authority and a certificate for localhost, both for two days.

    Returns:
        What a client must know to believe the server.
    """
    extensions = _write_extensions(directory)
    for name, common_name in (("ca", "sfasync authority"), ("server", "localhost")):
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
async def running(command: Sequence[str | Path], ready: Callable[[], bool]) -> AsyncIterator[None]:
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
        await finish(end(process), _STOP_SECONDS + 1)


async def _wait_for(process: asyncio.subprocess.Process, ready: Callable[[], bool], name: str) -> None:
    while not ready():
        if process.returncode is not None:
            assert process.stderr is not None, "it is a pipe"
            raise SourceError(f"{name} did not start: {last_line(await process.stderr.read())}")
        await asyncio.sleep(0.01)


async def end(process: asyncio.subprocess.Process) -> None:
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


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def last_line(output: bytes) -> str:
    """The last line that a program printed, for a message."""
    lines = output.decode(errors="replace").strip().splitlines()
    return printable(lines[-1]) if lines else "it says nothing"
