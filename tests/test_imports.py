"""Imports point one way, and importing is cheap (docs/design.md, "Layout")."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import sfasync

from .support.servers import nbdkit

PACKAGE = Path(sfasync.__file__).parent

# From the inside out; a part imports its own ring and those before it. A new module has to be placed here.
RINGS = (
    {
        *("_version", "audit", "blocking", "buffers", "credentials", "errors", "extents", "files", "foreign"),
        *("interfaces", "lazy", "leases", "models", "nbd", "openssl", "progress", "resolvers", "retry", "scattered"),
        *("scheduling", "shares", "sharing", "sparse", "state", "tasks", "throttle", "tls", "tracking", "trust"),
        *("tuning", "units", "workers"),
    },
    {"pipeline", "platform", "store", "transport"},
    {
        *("backup", "badblocks", "basis", "carrying", "config", "conversion", "copying", "crew", "destinations"),
        *("diskbackup", "drivers", "endpoints", "engine", "estimate", "hauling", "jobs", "moving", "programs", "qcow2"),
        *("recess", "recovery", "resources", "resuming", "restore", "rewriting", "secrets", "streaming", "targets"),
    },
    {"lab"},
    {"__init__", "__main__", "cli", "vddk"},
)
RING = {part: number for number, ring in enumerate(RINGS) for part in ring}
APART = RINGS[1]  # the engine joins these; they do not know each other
PURE = {"asyncio", "selectors", "socket", "ssl", "threading", "time", "uvloop"}  # not for the protocol


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name below the package, and file, of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield (name.removesuffix(".__init__"), path)


@cache
def imports(name: str, path: Path) -> tuple[str, ...]:
    """What a module imports, wherever in it: ``asyncio``, or ``sfasync.store.packs`` for its own package."""
    return tuple(_imports(name, path))


def _imports(name: str, path: Path) -> Iterator[str]:
    package = ["sfasync", *name.split(".")]
    if path.name != "__init__.py" or name == "__init__":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import files` names a module, `from .files import publish` something in one.
            yield from (f"{origin}.{alias.name}" for alias in node.names) if node.module is None else (origin,)


def part(name: str) -> str:
    """The part of the package that a module belongs to: its first component."""
    return name.split(".")[0]


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_direction(name: str, path: Path) -> None:
    own = part(name)
    assert own in RING, f"place {own} in RINGS"
    for imported in imports(name, path):
        if not imported.startswith("sfasync."):
            continue
        other = part(imported.removeprefix("sfasync."))
        if other.startswith("_") or other not in RING:  # a name that `sfasync` itself offers
            other = "__init__" if other != "_version" else other
        assert RING[other] <= RING[own], f"{name} imports {imported}, which is farther out"
        assert other == own or not {own, other} <= APART, f"{name} imports {imported}: the engine joins them"


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, path) for name, path in modules() if part(name) == "nbd"],
    ids=[name for name, _ in modules() if part(name) == "nbd"],
)
def test_the_protocol_is_pure(name: str, path: Path) -> None:
    found = {imported.split(".")[0] for imported in imports(name, path)}
    assert not found & PURE, "the protocol has no socket, clock or loop"
    inner = {"nbd", "errors", "models", "extents", "units"}
    ours = {part(imported.removeprefix("sfasync.")) for imported in imports(name, path) if "sfasync." in imported}
    assert ours <= inner


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_no_thread_is_the_loop_s_own(name: str, path: Path) -> None:
    """Those are the program's that we are part of, and `asyncio.run` waits for them at its end, whatever they do."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"run_in_executor", "to_thread"}, f"{name}, line {node.lineno}: use `Workers`"


EXTRAS = {  # by the beginning of a module's name; others have to do with what every installation has
    "platform.qemu": "qemu",
    "lab": "lab",
}


@cache
def described() -> dict[str, Any]:
    """What the package says of itself to installers."""
    project: dict[str, Any] = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    return project


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_what_is_imported_is_what_an_installation_has(name: str, path: Path) -> None:
    """The tests' own environment has more, which hides what a user would miss."""
    project = described()
    extra = next((extra for prefix, extra in EXTRAS.items() if f"{name}.".startswith(f"{prefix}.")), None)
    required = [*project["dependencies"], *project["optional-dependencies"].get(extra, ())]
    # A distribution is called after its package here, or after a part of it, as `qemu.qmp`.
    offered = {re.split(r"[^A-Za-z0-9_]", requirement)[0] for requirement in required}
    packages = {imported.split(".")[0] for imported in imports(name, path)}
    assert packages <= offered | sys.stdlib_module_names | {"sfasync", "compression"}  # the last since Python 3.14


def loaded_by(*command: str) -> set[str]:
    """Top-level modules that are loaded when a Python process has run `command`."""
    script = (
        "import atexit, os, sys\n"
        "leave = os._exit\n"
        "def report(): sys.stderr.write('\\n' + ' '.join(sys.modules) + '\\n')\n"
        # The command ends past atexit.
        "os._exit = lambda status: (report(), sys.stderr.flush(), leave(status))\n"
        "atexit.register(report)\n" + "\n".join(command)
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, result.stderr
    return set(result.stderr.splitlines()[-1].split())


def models_among(loaded: set[str]) -> set[str]:
    """The modules of records that were loaded; making their dataclasses is what they take time for."""
    return {name.removeprefix("sfasync.models.") for name in loaded if name.startswith("sfasync.models.")}


def test_version_is_answered_before_anything_is_loaded() -> None:
    loaded = loaded_by("sys.argv = ['sfasync', '--version']", "from sfasync.__main__ import main", "main()")
    assert loaded & {"asyncio", "click", "msgspec", "rich", "sfasync.cli", "sfasync.engine", "uvloop"} == set()


def test_importing_the_package_is_cheap() -> None:
    loaded = loaded_by("import sfasync")
    ours = {name for name in loaded if name.startswith("sfasync")}
    assert ours == {"sfasync", "sfasync._version", "sfasync.lazy"}
    assert loaded & {"asyncio", "blake3", "dataclasses", "msgspec", "sqlite3", "ssl"} == set()


def test_copy_loads_what_it_needs(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"disk" * 1024)
    loaded = loaded_by(
        f"sys.argv = ['sfasync', 'copy', {str(source)!r}, {str(target)!r}]",
        "from sfasync.__main__ import main",
        "main()",
    )
    assert target.read_bytes() == source.read_bytes()
    assert loaded & {"anyio", "cryptography", "httpcore2", "httpx", "httpx2", "rich", "sqlite3"} == set()
    assert loaded & {"sfasync.config", "sfasync.conversion", "sfasync.secrets", "tomllib"} == set(), "without a file"
    assert not [name for name in loaded if name.startswith(("sfasync.backup", "sfasync.restore", "sfasync.store"))]
    assert loaded & {"hashlib", "json", "shutil", "tempfile"} == set(), "what qcow2, --json and pinning need"
    assert loaded & {"sfasync.qcow2", "sfasync.streaming", "sfasync.transport.pipe"} == set()
    assert models_among(loaded) == {"addresses", "checks", "copies", "extents", "options", "styles"}


def test_a_backup_loads_what_it_needs(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    with nbdkit("memory", "1M") as server:
        for arguments in (["init"], ["backup", "--quiet", "web-01", "--disk", f"vda={server.uri}"]):
            loaded = loaded_by(
                f"sys.argv = ['sfasync', *{arguments!r}, '--repo', {str(repository)!r}]",
                "from sfasync.__main__ import main",
                "main()",
            )
    assert loaded & {"anyio", "cryptography", "httpcore2", "rich", "tomllib"} == set()
    assert loaded & {f"sfasync.{name}" for name in ("config", "copying", "estimate", "restore", "secrets")} == set()
    assert loaded & {f"sfasync.store.{name}" for name in ("diff", "disk", "verify")} == set()
    needed = {"addresses", "backups", "checks", "extents", "manifest", "options", "states", "styles"}
    assert models_among(loaded) == needed


def test_a_listing_loads_what_it_needs(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for command in ("init", "list"):
        loaded = loaded_by(
            f"sys.argv = ['sfasync', {command!r}, '--repo', {str(repository)!r}]",
            "from sfasync.__main__ import main",
            "main()",
        )
    assert loaded & {"rich", "uvloop", "sfasync.engine", "sfasync.nbd", "sfasync.transport"} == set()
    assert models_among(loaded) == {"checks", "manifest", "options", "states", "styles"}
    assert loaded & {f"sfasync.store.{name}" for name in ("diff", "disk", "resume", "session", "verify")} == set()
