"""The how-to pages work as they stand: their programs run against real servers with TLS."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sfasync import EndpointRequest, EndpointResolver, ExportAddress, ReleasingResolver, TableResolver, TlsPolicy, vddk
from sfasync.units import MiB

from ..support.servers import nbdkit
from ..test_documents import CODE, ROOT
from .support import VM

DISKS = {"ide0": random.Random(0).randbytes(20 * MiB + 512), "ide1": random.Random(1).randbytes(3 * MiB)}


def code(page: str, language: str) -> list[str]:
    """The blocks of a page in one language."""
    text = (ROOT / "docs" / "howto" / page).read_text(encoding="utf-8")
    return [match[2] for match in CODE.finditer(text) if match[1] == language]


@contextmanager
def cluster(place: Path, certificates: Path) -> Iterator[Path]:
    """A server of all disks over TLS, and the table of the page that leads to it; gives the directory of the disks."""
    disks = place / "cluster"
    disks.mkdir()
    for disk_id, content in DISKS.items():
        (disks / f"{VM}-{disk_id}").write_bytes(content)
    shutil.copy(certificates / "ca-cert.pem", place)
    with nbdkit("file", f"dir={disks}", tls=certificates, tcp=True) as server:
        (table,) = code("sfvddk.md", "toml")
        ours = table.replace("hci-01.example", "127.0.0.1").replace("10809", str(server.port))
        assert tomllib.loads(ours) != tomllib.loads(table)
        (place / "disks.toml").write_text(ours)
        yield disks


def run(program: str, place: Path) -> str:
    """What a program says that ends well."""
    ended = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_reading_a_snapshot(tmp_path: Path, certificates: Path) -> None:
    with cluster(tmp_path, certificates):
        run(code("sfvddk.md", "python")[0], tmp_path)
    for disk_id, content in DISKS.items():
        assert (tmp_path / f"{disk_id}.raw").read_bytes() == content


def test_writing_a_disk(tmp_path: Path, certificates: Path) -> None:
    with cluster(tmp_path, certificates) as disks:
        for disk_id, content in DISKS.items():
            (tmp_path / f"{disk_id}.raw").write_bytes(content[::-1])
        said = run(code("sfvddk.md", "python")[1], tmp_path)
        assert sorted(said.splitlines()) == ["ide0 over nbdssl", "ide1 over nbdssl"]
        for disk_id, content in DISKS.items():
            assert (disks / f"{VM}-{disk_id}").read_bytes() == content[::-1]


def test_line_by_line(tmp_path: Path, certificates: Path) -> None:
    with cluster(tmp_path, certificates):
        run(code("sfvddk.md", "python")[2], tmp_path)
    assert (tmp_path / "first.raw").read_bytes() == DISKS["ide0"][:MiB]


def test_the_address_alone() -> None:
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(code("sfvddk.md", "python")[3], "sfvddk.md", "exec"), names)  # noqa: S102 - the page's own code
    access = names["access"]
    assert isinstance(access, vddk.Access)
    assert access.scp == "https://scp.example"


def test_every_call_is_in_the_table() -> None:
    text = (ROOT / "docs" / "howto" / "sfvddk.md").read_text(encoding="utf-8")
    calls = ("init", "exit", "list_transport_modes", "get_transport_mode", "cleanup", "connect", "open", "read")
    for call in (*calls, "write", "close", "disconnect"):
        assert f"| `sfdisklib_{call}` | `" in text


async def test_the_resolvers(tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table, own = code("resolver.md", "python")
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(table + own, "resolver.md", "exec"), names)  # noqa: S102 - the page's own code
    resolver = names["resolver"]
    assert isinstance(resolver, TableResolver)
    address = await resolver.resolve(EndpointRequest(vm_id=VM, disk_id="ide7", mode="nbdssl"))
    policy = TlsPolicy(style="direct", ca_file=Path("ca-cert.pem"))
    assert address == ExportAddress(host="hci-01.example", export=f"{VM}-ide7", tls=policy)
    inventory = names["Inventory"]
    assert isinstance(inventory, type)
    ours: EndpointResolver = inventory()
    assert isinstance(ours, ReleasingResolver)
    assert (await ours.resolve(EndpointRequest(vm_id=VM, disk_id="ide0"))).export == f"{VM}-ide0"


async def test_the_file_of_the_page(tmp_path: Path) -> None:
    (text,) = code("resolver.md", "toml")
    (tmp_path / "disks.toml").write_text(text)
    resolver = TableResolver.from_file(tmp_path / "disks.toml")
    wanted = {"ide0": "ide0", "ide1": "other", "ide2": f"{VM}-ide2"}
    for disk_id, export in wanted.items():
        address = await resolver.resolve(EndpointRequest(vm_id=VM, disk_id=disk_id, mode="nbdssl"))
        assert address.export == export
        assert address.tls is not None
    uncommented = text.replace("# ca_text", "ca_text").replace('ca_file = "ca-cert.pem"', "")
    for key in ("cert_file", "key_file", "fingerprint", "psk_file", "psk_identity"):
        uncommented = uncommented.replace(f"# {key}", key)
    (tmp_path / "all.toml").write_text(uncommented)
    TableResolver.from_file(tmp_path / "all.toml")
