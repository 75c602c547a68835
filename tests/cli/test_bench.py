"""`sfasync bench` measures what it says, compares with what is there, and cleans up."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sfasync.cli.bench import measure
from sfasync.cli.bench.changed import SparseDisk
from sfasync.cli.bench.contest import Place
from sfasync.cli.bench.data import PIECE, random_image, sparse_qcow2, usr_image
from sfasync.cli.bench.plot import svg
from sfasync.cli.bench.report import Run, Spread, markdown, summarize, text
from sfasync.cli.bench.rows import ROWS
from sfasync.programs import run_tool
from sfasync.store.repository import Repository

from ..support.command import sfasync
from ..support.servers import require

MIB = 1 << 20
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for the command's temporary ones, short enough for the path of a socket."""
    with tempfile.TemporaryDirectory(prefix="sfasync-test-") as directory:
        yield Path(directory)


def measured(log: Path, *command: str) -> dict[str, float]:
    arguments = [sys.executable, "-S", str(measure.__file__), str(log), *command]
    done = subprocess.run(arguments, capture_output=True, check=True, timeout=60)
    taken: dict[str, float] = json.loads(done.stdout)
    return taken


def test_measures_a_command_and_its_children(tmp_path: Path) -> None:
    burn = "x = bytearray(64 << 20); [i * i for i in range(3_000_000)]; print('said')"
    taken = measured(tmp_path / "log", "sh", "-c", f'"{sys.executable}" -c "{burn}"; exit 7')
    assert taken["exit"] == 7
    assert taken["wall"] >= taken["user"] > 0
    assert taken["rss"] > 64 * MIB
    assert (tmp_path / "log").read_text() == "said\n"


def test_small_commands_look_small(tmp_path: Path) -> None:
    assert measured(tmp_path / "log", "true")["rss"] < 32 * MIB


# --- the report ------------------------------------------------------------------------------------------------------


def run(program: str, pair: int, wall: float, **facts: float | str) -> Run:
    return Run(
        row="S5",
        work="a <job>",
        program=program,
        pair=pair,
        wall=wall,
        user=wall / 2,
        system=1.0,
        rss=40 * MIB + pair,
        facts=dict(facts),
    )


RUNS = [
    run("sfasync", 1, 2, stored=9, by="source"),
    run("restic", 1, 6),
    run("restic", 2, 4),
    run("sfasync", 2, 1, stored=5, by="source"),
    run("sfasync", 3, 4, stored=7, by="source"),
    run("restic", 3, 8),
]


def test_a_summary_has_medians_spreads_and_ratios_of_pairs() -> None:
    ours, theirs = summarize(RUNS)
    assert (ours.program, ours.pairs, ours.wall, ours.ratio) == ("sfasync", 3, Spread(2, 1, 4), None)
    assert (ours.cpu, ours.rss, ours.facts) == (Spread(2, 1.5, 3), 40 * MIB + 3, {"stored": 7, "by": "source"})
    assert (theirs.wall, theirs.ratio) == (Spread(6, 4, 8), Spread(3, 2, 4))
    assert ours.record()["wall"] == {"median": 2, "least": 1, "most": 4}
    assert json.loads(json.dumps(theirs.record()))["ratio"] == {"median": 3, "least": 2, "most": 4}


def test_tables_for_a_terminal_and_for_a_document() -> None:
    _, ours, theirs = text(summarize(RUNS))
    assert ours.split() == ["sfasync", "2.00", "1.00..4.00", "2.00", "40", "stored", "7,", "by", "source"]
    assert theirs.split() == ["restic", "6.00", "4.00..8.00", "4.00", "40", "3.00", "2.00..4.00"]
    machine, *_, last = markdown(summarize(RUNS), {"cores": 2, "load before": 0.1})
    assert machine == "cores 2, load before 0.1"
    assert last == "| S5 | a <job> | restic | 6.00 (4.00-8.00) | 4.00 | 40 | 3.00 (2.00-4.00) |  |"


def test_the_plot_has_a_bar_for_each_rival() -> None:
    picture = ElementTree.fromstring("\n".join(svg(summarize(RUNS))))  # noqa: S314 - our own
    assert "S5 a <job>: restic" in [element.text for element in picture.iter(f"{SVG}text")]
    paper, bar = picture.iter(f"{SVG}rect")
    scale = {element.text: float(element.attrib["x"]) for element in picture.iter(f"{SVG}text")}
    assert float(bar.attrib["x"]) == scale["1"]
    assert scale["2"] < float(bar.attrib["x"]) + float(bar.attrib["width"]) < scale["4"]
    assert float(paper.attrib["width"]) > scale["32"]


# --- the data --------------------------------------------------------------------------------------------------------


async def test_random_images_are_the_same_every_time(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, again, another = tmp_path / "a", tmp_path / "other" / "a", tmp_path / "b"
    for path in (first, again, another):
        assert await random_image(path, MIB + 512) == path
    assert len(first.read_bytes()) == MIB + 512
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes()[:64] != another.read_bytes()[:64]


async def test_the_image_of_usr_is_a_file_system_full_of_files(tmp_path: Path) -> None:
    require("mkfs.ext4")
    top = tmp_path / "top"
    for number in range(64):
        (top / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        (top / f"{number % 3}" / f"{number}").write_bytes(bytes([number]) * 200_000)
    image = await usr_image(tmp_path, 8 * MIB, top=top)
    assert image.stat().st_size == 8 * MIB
    content = image.read_bytes()
    assert 30 < sum(bytes([number]) * 100_000 in content for number in range(1, 64)) < 40  # 85 % of 8 MiB
    await run_tool("e2fsck", "-f", "-n", image)
    assert sorted(tmp_path.iterdir()) == [top, image]


async def test_a_file_with_several_names_is_in_the_image_once(tmp_path: Path) -> None:
    require("mkfs.ext4")
    top = tmp_path / "top"
    content = random.Random(3).randbytes(100_000)
    for number in range(40):  # more than there would be room for
        (top / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        name = top / f"{number % 3}" / f"{number}"
        if number:
            name.hardlink_to(top / "0" / "0")
        else:
            name.write_bytes(content)
    image = await usr_image(tmp_path, 2 * MIB, top=top)
    assert image.read_bytes().count(content[:1000]) == 1
    await run_tool("e2fsck", "-f", "-n", image)  # which counts names
    listed = await run_tool("debugfs", "-R", f"stat {Path('/', *top.parts[1:])}/1/1", image)
    assert "Links: 40" in listed


async def test_scattered_pieces_are_all_there(place: Path) -> None:
    require("qemu-img")
    image = await sparse_qcow2(Place(directory=place, shared=place, sockets=place, size=0), 1 << 30, 5)
    pieces = [piece for piece in json.loads(await run_tool("qemu-img", "map", "--output=json", image)) if piece["data"]]
    assert [piece["length"] for piece in pieces] == [PIECE] * 5
    assert [piece["start"] * 5 >> 30 for piece in pieces] == [0, 1, 2, 3, 4]


async def test_the_sparse_disk_reads_as_its_map_says() -> None:
    disk = SparseDisk(16 * MIB, 3, 1000, seed=4)
    content = memoryview(bytearray(16 * MIB))
    await disk.read_into(0, content[: 5 * MIB])
    await disk.read_into(5 * MIB, content[5 * MIB :])
    position = 0
    async for extent in disk.extents():
        assert extent.offset == position
        position += extent.length
        assert extent.zero != any(content[extent.offset : position])
    assert position == 16 * MIB


# --- the command -----------------------------------------------------------------------------------------------------


def bench(place: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sfasync", "bench", "--directory", str(place), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(place), **environment},
    )


def test_measures_and_leaves_three_files(place: Path, tmp_path: Path) -> None:
    for program in ("nbdkit", "nbdcopy", "mkfs.ext4", "restic"):
        require(program)
    results = tmp_path / "small"
    rows = ["S1", "S5"]
    ended = sfasync("bench", *rows, "--size=8M", "--pairs=1", f"--directory={place}", f"--results={results}", "--json")
    assert ended.status == 0, ended.err
    *summaries, result = ended.events
    assert (result["command"], result["results"]) == ("bench", str(results))
    assert [event["row"] for event in summaries] == sorted((event["row"] for event in summaries), key=rows.index)
    assert {event["row"] for event in summaries} == set(rows)
    assert all(event["wall"]["median"] > 0 for event in summaries)
    stored = {event["program"]: event["facts"] for event in summaries if event["row"] == "S5"}
    assert 0 < stored["sfasync"]["stored MiB"] < 8
    assert 0 < stored["restic"]["stored MiB"] < 8
    records = [json.loads(line) for line in Path(f"{results}.jsonl").read_text().splitlines()]
    assert [record["event"] for record in records[:3]] == ["machine", "run", "run"]
    assert [record for record in records if record["event"] == "summary"] == summaries
    assert len(Path(f"{results}.md").read_text().splitlines()) == 4 + len(summaries)
    ElementTree.parse(f"{results}.svg")  # noqa: S314 - our own
    assert list(place.iterdir()) == []


def test_what_is_not_installed_is_named_and_left_out(place: Path, tmp_path: Path) -> None:
    require("nbdkit")
    tools = tmp_path / "tools"
    tools.mkdir()
    for program in ("nbdkit", "setpriv", "env", "sync"):
        (tools / program).symlink_to(Path("/usr/bin", program))
    results = tmp_path / "small"
    with bench(place, "S4", "S12", "--size=1M", "--pairs=1", f"--results={results}", PATH=str(tools)) as process:
        told, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    assert "S4 copy" in told
    assert complaints.splitlines() == [
        "sfasync: warning: S12 was not measured: on Debian: apt-get install qemu-utils",
        "sfasync: warning: not compared with nbdcopy: on Debian: apt-get install libnbd-bin",
    ]
    with bench(place, "S12", f"--results={tmp_path / 'none'}", PATH=str(tools)) as process:
        told, complaints = process.communicate(timeout=60)
    assert (process.returncode, told) == (2, "")
    assert complaints.splitlines() == [
        "sfasync: nothing can be measured without qemu-nbd, qemu-img; on Debian: apt-get install qemu-utils"
    ]


def test_rows_that_there_are_not(tmp_path: Path) -> None:
    ended = sfasync("bench", "S1", "S99", f"--results={tmp_path / 'x'}")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == f"sfasync: there is no row S99; there are {', '.join(ROWS)}\n"


def test_a_disk_that_is_too_small() -> None:
    ended = sfasync("bench", "S1", "--size=1000")
    assert (ended.status, ended.err) == (2, "sfasync: --size must be 1M or more (see 'sfasync bench --help')\n")


def test_no_room_for_the_data(place: Path, tmp_path: Path) -> None:
    """What is said names the place that is full, not the results."""
    require("nbdkit")
    limit = ["prlimit", f"--fsize={MIB}", sys.executable, "-m", "sfasync", "bench", "S4", "--size=8M", "--pairs=1"]
    done = subprocess.run(
        [*limit, f"--directory={place}", f"--results={tmp_path / 'x'}"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TMPDIR": str(place)},
    )
    assert (done.returncode, done.stderr) == (21, f"sfasync: cannot measure in {place}: File too large\n")
    assert list(place.iterdir()) == []


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    require("nbdkit")
    (tmp_path / "x.jsonl").write_text("precious")
    ended = sfasync("bench", "S1", f"--results={tmp_path / 'x'}")
    assert ended.status == 21
    assert "File exists" in ended.err
    assert (tmp_path / "x.jsonl").read_text() == "precious"


def test_a_tool_that_fails_ends_it_in_one_line(place: Path, tmp_path: Path) -> None:
    require("nbdkit")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nbdcopy").write_text("#!/bin/sh\necho no copies today >&2\nexit 3\n")
    (tools / "nbdcopy").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    with bench(place, "S4", "--size=1M", "--pairs=1", f"--results={tmp_path / 'x'}", PATH=path) as process:
        _, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (20, "sfasync: nbdcopy failed: no copies today\n")
    assert list(place.iterdir()) == []


def test_ctrl_c_leaves_nothing(place: Path, tmp_path: Path) -> None:
    require("nbdkit")
    with bench(place, "S4", "--size=64M", "--pairs=1000", f"--results={tmp_path / 'x'}") as process:
        log = tmp_path / "x.jsonl"
        while process.poll() is None and not (log.exists() and '"run"' in log.read_text()):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=20)
    assert (process.returncode, complaints) == (130, "sfasync: interrupted by SIGINT\n")
    assert list(place.iterdir()) == []
    deadline = time.monotonic() + 5
    while (left := _processes_about(place)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def _processes_about(place: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(place) in command:
            found.append(command)
    return found


async def test_incremental_backups_of_the_huge_disk(tmp_path: Path) -> None:
    """S15's program, as it is measured."""
    location, seed = tmp_path / "repository", tmp_path / "seed"
    await (await Repository.init(location)).aclose()
    modes = []
    for number in range(2):
        seed.write_text(str(number))
        done = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sfasync.cli.bench.changed", location, seed, "4", "4096"),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )
        printed, _ = await done.communicate()
        assert done.returncode == 0
        modes.append(json.loads(printed)["mode"])
    assert modes == ["full", "incremental"]
