"""`sfasync repair`, and how damage heals, through the real command."""

from __future__ import annotations

from pathlib import Path

from ...support.command import sfasync
from ...support.servers import Server
from .conftest import damage


def test_nothing_to_do(backup: str) -> None:
    ended = sfasync("repair")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("no steps taken")
    result = sfasync("repair", "--dry-run", "--json").last
    assert (result["command"], result["dry_run"], result["actions"], result["problems"]) == ("repair", True, 0, 0)


def test_a_lost_index(backup: str, repository: Path) -> None:
    for path in (repository / "domains/default/index").iterdir():
        path.unlink()
    packs = sum(path.is_file() for path in (repository / "domains/default/packs").rglob("*"))
    assert packs >= 2, "of data and of pages"
    assert sfasync("verify").status == 22
    planned = sfasync("repair", "--dry-run")
    assert planned.status == 0
    assert planned.out.count("index domains/default/packs/") == packs
    assert "would be taken" in planned.out
    assert sfasync("verify").status == 22, "nothing was done"
    ended = sfasync("repair", "--json")
    assert ended.status == 0
    assert [event["action"] for event in ended.events if event["event"] == "action"] == ["index"] * packs
    assert ended.last["problems"] == 0
    assert sfasync("verify", "--data").status == 0


def test_what_is_lost_is_told_and_heals(
    backup: str, repository: Path, server: Server, disk: Path, tmp_path: Path
) -> None:
    victim = damage(repository)
    assert sfasync("verify", "--data").status == 22
    ended = sfasync("repair", "--json")
    assert (ended.status, ended.last["code"]) == (22, "integrity")
    problems = [event for event in ended.events if event["event"] == "problem"]
    assert [(victim.name in problem["object"], problem["backups"]) for problem in problems] == [(True, [backup])]
    assert sfasync("restore", backup, "--to", tmp_path / "no").status == 22
    again = sfasync("backup", "vm", "--disk", f"vda={server.uri}", "--json").last
    assert again["disks"][0]["bytes_new"] == 1 << 20
    verified = sfasync("verify", "--data", "--json")
    assert (verified.last["known"], verified.last["quarantined"]) == (1, 1)
    assert [victim.name in event["object"] for event in verified.events if event["event"] == "known"] == [True]
    ended = sfasync("verify", "--data", "-v")
    assert "; 1 damaged object in quarantine, which nothing needs" in ended.out
    assert victim.name in ended.err
    for reference in (backup, again["id"]):
        assert sfasync("restore", reference, "--to", tmp_path / reference).status == 0
        assert (tmp_path / reference / "vda.raw").read_bytes() == disk.read_bytes()


def test_no_repository(tmp_path: Path) -> None:
    assert sfasync("repair", "--repo", tmp_path / "none").status == 10
