"""What the documents show works, and what is generated is up to date."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import sfasync

from .support.servers import nbdkit, require

ROOT = Path(__file__).parent.parent

CODE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(page: str, language: str) -> str:
    """The code of a page in one language, all blocks together."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return "\n".join(match[2] for match in CODE.finditer(text) if match[1] == language)


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory with a path that is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="sfasync-doc-") as directory:
        yield Path(directory)


def shell(script: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with our `sfasync` on the path, and end the servers that it leaves."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clean_up = 'trap \'for pid in *.pid; do [ -e "$pid" ] && kill "$(cat "$pid")" 2>/dev/null; done; true\' EXIT\n'
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", clean_up + script],
        cwd=place,
        env={**os.environ, "PATH": programs},
        capture_output=True,
        text=True,
        timeout=110,
    )


@pytest.mark.parametrize("page", ["README.md", "docs/howto/tutorial.md", "docs/howto/copy.md", "docs/howto/info.md"])
def test_the_shell_examples_work(page: str, place: Path) -> None:
    for program in ("nbdkit", "qemu-img", "qemu-nbd"):
        require(program)
    ended = shell(blocks(page, "sh"), place)
    assert ended.returncode == 0, ended.stderr
    assert "sfasync: " not in ended.stderr


def test_the_page_on_qemu_tells_the_truth(place: Path) -> None:
    require("qemu-storage-daemon")
    python = f"python -W error - <<'END'\n{blocks('docs/howto/qemu.md', 'python')}\nEND\n"
    ended = shell(blocks("docs/howto/qemu.md", "sh") + python, place)
    assert ended.returncode == 0, ended.stderr
    assert "sfasync: " not in ended.stderr
    assert ended.stdout.endswith("['incremental', 'incremental']\n")


def test_the_page_on_verify_tells_the_truth(place: Path) -> None:
    """What is damaged in it heals: the last verify and the restore of the first backup succeed."""
    require("nbdkit")
    ended = shell(blocks("docs/howto/verify.md", "sh"), place)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("exit code 22") == 2
    assert "1 damaged object in quarantine, which nothing needs" in ended.stdout


def test_the_tutorial_tells_the_truth(place: Path) -> None:
    require("qemu-nbd")
    script = blocks("docs/howto/tutorial.md", "sh").replace("sfasync backup", "sfasync backup --json")
    ended = shell(script, place)
    results = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"event":"result"')]
    first, second, _ = (result for result in results if result["command"] == "backup")
    new = [sum(disk["bytes_new"] for disk in result["disks"]) for result in (first, second)]
    assert new == [48 << 20, 2 << 20]
    assert (place / "restored" / "data.raw").stat().st_size == 20 << 30
    assert (place / "restored" / "data.raw").stat().st_blocks * 512 <= 49 << 20


def test_the_python_example_works(place: Path) -> None:
    with nbdkit("memory", "16M") as server:
        script = blocks("README.md", "python").replace("nbd+unix:///?socket=vda.sock", server.uri)
        ended = subprocess.run([sys.executable, "-c", script], cwd=place, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (place / "restored" / "vda.raw").stat().st_size == 16 << 20


def test_the_catalog_page_works(place: Path) -> None:
    for program in ("nbdkit", "qemu-img", "qemu-nbd"):
        require(program)
    ended = shell(blocks("docs/howto/catalog.md", "sh"), place)
    assert ended.returncode == 0, ended.stderr
    assert "sfasync: " not in ended.stderr
    script = [sys.executable, "-W", "error", "-c", blocks("docs/howto/catalog.md", "python")]
    ended = subprocess.run(script, cwd=place, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "('daily',)" in ended.stdout
    assert (place / "vda.raw").read_bytes() == (place / "disk.raw").read_bytes()


def test_the_page_on_configuration_works(place: Path) -> None:
    require("nbdkit")
    ended = shell(blocks("docs/howto/configuration.md", "sh"), place)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.count("web-01") == 3
    script = [sys.executable, "-W", "error", "-c", blocks("docs/howto/configuration.md", "python")]
    ended = subprocess.run(script, cwd=place, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert str(place / "backups") in ended.stdout


def test_the_page_on_the_lab_works(place: Path) -> None:
    require("qemu-storage-daemon")
    ended = shell("trap 'sfasync lab down --quiet --dir lab' EXIT\n" + blocks("docs/howto/lab.md", "sh"), place)
    assert ended.returncode == 0, ended.stderr
    assert "nothing is left over" in ended.stdout
    assert not (place / "lab").exists()
    script = [sys.executable, "-W", "error", "-c", blocks("docs/howto/lab.md", "python")]
    ended = subprocess.run(script, cwd=place, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "full\n", "")


def test_the_page_on_restores_works(place: Path) -> None:
    for program in ("nbdkit", "qemu-img", "qemu-nbd", "qemu-storage-daemon"):
        require(program)
    ended = shell("trap 'sfasync lab down --quiet --dir lab' EXIT\n" + blocks("docs/howto/restore.md", "sh"), place)
    assert ended.returncode == 0, ended.stderr
    assert "web-01-test" in ended.stdout
    script = [sys.executable, "-W", "error", "-c", blocks("docs/howto/restore.md", "python")]
    ended = subprocess.run(script, cwd=place, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


def test_the_programs_of_the_client_page_work(place: Path) -> None:
    with nbdkit("memory", "64M") as server:
        script = blocks("docs/howto/client.md", "python").replace("nbd+unix:///?socket=disk.sock", server.uri)
        strict = [sys.executable, "-W", "error", "-c", script]
        ended = subprocess.run(strict, cwd=place, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "67108864 False ('base:allocation',)" in ended.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_pages_named_in_code_are_there() -> None:
    for module in ROOT.glob("sfasync/**/*.py"):
        for page in re.findall(r"docs/[\w/]+\.md", module.read_text(encoding="utf-8")):
            assert (ROOT / page).exists(), f"{module.name} names {page}"


def test_generated_pages_are_up_to_date() -> None:
    for script in ROOT.glob("scripts/docs-*"):
        ended = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr


def test_every_error_is_in_its_page() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for name in sfasync.__all__:
        if name.endswith("Error"):
            assert f"`{name}`" in page
