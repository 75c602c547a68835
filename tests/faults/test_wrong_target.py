"""What a restore or a copy must not overwrite: a mounted device, the source itself, an image in use, a file of before.

Each is refused with 2 and one line that names the target, and keeps every byte.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support.command import sfasync
from ..support.power import disk
from ..support.servers import nbdkit, qemu_nbd
from .site import DISK, VM, Site

_REFUSED = 2
MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(b"precious" * (MIB // 8))
    return path


def refused(source: str | Path, target: str | Path) -> str:
    """The line that a copy is refused with."""
    ended = sfasync("copy", source, target)
    assert ended.status == _REFUSED, ended.err
    (line,) = ended.err.splitlines()
    assert str(target) in line
    return line


def test_a_mounted_device(tmp_path: Path, image: Path) -> None:
    with disk(tmp_path, "ext4") as mounted:
        (mounted.mount / "file").write_bytes(b"kept")
        (device,) = {
            line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if str(mounted.mount) in line
        }
        assert refused(image, device).endswith("is in use")
        mounted.restart()
        assert (mounted.mount / "file").read_bytes() == b"kept"


def test_the_source_by_another_name(tmp_path: Path, image: Path) -> None:
    (tmp_path / "symbolic").symlink_to(image)
    (tmp_path / "hard").hardlink_to(image)
    content = image.read_bytes()
    for name in ("image.raw", "symbolic", "hard", "./../" + tmp_path.name + "/image.raw"):
        assert refused(image, tmp_path / name).endswith("is both source and target")
    assert image.read_bytes() == content


@pytest.mark.parametrize("writable", [False, True])
def test_an_image_that_qemu_has_open(image: Path, writable: bool) -> None:
    """The source of a copy over NBD is the target too, or a virtual machine runs on it."""
    content = image.read_bytes()
    with qemu_nbd(image, *(() if writable else ("--read-only",))) as server:
        assert "is in use" in refused(server.uri, image)
    assert image.read_bytes() == content
    assert sfasync("copy", image, image.with_name("copy.raw")).status == 0


def test_files_that_are_there(tmp_path: Path) -> None:
    site = Site(tmp_path, tmp_path / "repository")
    site.init()
    target = tmp_path / "target"
    target.mkdir()
    with nbdkit("file", site.image, "--readonly") as server:
        assert site.back_up(server.uri) == 0
    restore = ("restore", f"{VM}@latest", "--to", str(target))
    file = target / f"{DISK}.raw"
    outside = tmp_path / "outside"
    outside.write_bytes(b"kept")
    for make in (lambda: file.write_bytes(b"kept"), lambda: file.write_bytes(b""), lambda: file.symlink_to(outside)):
        file.unlink(missing_ok=True)
        make()
        assert site.start(*restore).wait(60) == _REFUSED
        assert str(file) in site.said()
        assert "--force" in site.said()
    assert site.start(*restore, "--force").wait(60) == 0
    assert not file.is_symlink()
    assert file.read_bytes() == site.image.read_bytes()
    assert outside.read_bytes() == b"kept", "a link is replaced, not followed"
