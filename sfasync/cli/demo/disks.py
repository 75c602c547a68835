"""The disks of the demo: file systems full of generated files."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...programs import run_tool
from ...units import KiB, MiB
from ...workers import Workers

_FILE = 4 * MiB


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is on a disk.

    Attributes:
        seed: Makes the content; the same seed makes the same bytes.
        size: Bytes of the disk.
        programs: Bytes of files that cannot be compressed.
        logs: Bytes of files that compress well.
    """

    seed: int
    size: int
    programs: int
    logs: int


async def make_disk(image: Path, recipe: Recipe, workers: Workers) -> None:
    """Write a raw, sparse image of an ext4 file system with generated files."""
    tree = image.with_suffix(".tree")
    tree.mkdir()
    for content in _contents(recipe):
        # One file at a time, so that cancelling does not wait for all of them.
        await workers.run_to_end(_write, tree, content)
    with image.open("wb") as file:
        file.truncate(recipe.size)
    # Whole file-system blocks; a disk may be longer.
    blocks = recipe.size // (4 * KiB)
    await run_tool("mkfs.ext4", "-q", "-F", "-b", "4096", "-d", tree, image, str(blocks))


@dataclass(frozen=True, slots=True)
class _Content:
    """One file."""

    kind: str
    number: int
    length: int
    seed: int


def _contents(recipe: Recipe) -> Iterator[_Content]:
    for kind, total in (("bin", recipe.programs), ("log", recipe.logs)):
        for number, offset in enumerate(range(0, total, _FILE)):
            yield _Content(kind, number, min(_FILE, total - offset), recipe.seed)


def _write(tree: Path, content: _Content) -> None:
    source = random.Random(f"{content.seed} {content.kind} {content.number}")  # noqa: S311 - the same bytes every time
    data = source.randbytes(content.length) if content.kind == "bin" else _log(source, content.length)
    (tree / content.kind).mkdir(exist_ok=True)
    (tree / content.kind / f"{content.number:04}").write_bytes(data)


def _log(source: random.Random, length: int) -> bytes:
    """Lines as a web server writes them."""
    lines = [f"10.0.0.{source.randrange(256)} GET /item/{source.getrandbits(32):08x} 200\n" for _ in range(4000)]
    return "".join(source.choices(lines, k=length // 30)).encode()[:length]
