"""The command as a whole: which commands there are, and how a call ends that never gets to its work."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sfasync as package
from sfasync.cli.app import app, run

from ..support.command import COMMAND, Ended, finish, sfasync, start

COMMANDS = [
    "init",
    "backup",
    "restore",
    "list",
    "show",
    "tag",
    "forget",
    "export",
    "diff",
    "verify",
    "repair",
    "copy",
    "info",
    "vms",
    "cleanup",
    "lab",
    "demo",
    "bench",
]


def one_line(ended: Ended) -> str:
    """What a command that failed says: exactly one line."""
    assert ended.err.endswith("\n")
    (line,) = ended.err.splitlines()
    assert line.startswith("sfasync: ")
    return line


def test_version() -> None:
    assert sfasync("--version") == Ended(0, f"sfasync {package.__version__}\n", "")


def test_what_is_not_built_is_not_there() -> None:
    ended = sfasync("--help")
    section = ended.out.partition("Commands:\n")[2].partition("\n\n")[0]
    assert (ended.status, ended.err) == (0, "")
    assert sorted(line.split()[0] for line in section.splitlines()) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    ended = sfasync(name, "--help")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(f"Usage: sfasync {name} [OPTIONS]")
    assert "--json" in ended.out


USAGE = [
    ["backp"],
    ["diff", "a", "b"],
    ["--frobnicate"],
    ["init"],
    ["init", "--frobnicate"],
    ["init", "surplus", "--repo", "r"],
    ["backup"],
    ["backup", "vm", "--repo", "r"],
    ["backup", "vm", "--repo", "r", "--disk", "vda"],
    ["backup", "vm", "--repo", "r", "--disk", "=nbd://host"],
    ["backup", "vm", "--repo", "r", "--disk", "a=nbd://host", "--disk", "a=nbd://other"],
    ["backup", "vm", "--repo", "r", "--disk", "a=http://host"],
    ["backup", "vm", "--repo", "r", "--disk", "a=nbd+unix:///"],
    ["backup", "vm", "--repo", "r", "--disk", "a=nbds://host/?tls-certificates=/nonexistent"],
    ["backup", "vm", "--repo", "r", "--disk", "a=nbd://user:secret@host/"],
    ["backup", "", "--repo", "r", "--disk", "a=nbd://host"],
    ["backup", "v\nm", "--repo", "r", "--disk", "a=nbd://host"],
    ["backup", "vm", "--repo", "r", "--disk", "a\n=nbd://host"],
    ["backup", "vm", "--repo", "r", "--disk", "a=nbd://host", "--tag", ""],
    ["backup", "vm", "--repo", "r", "--disk", "a=nbd://host", "--mode", "most"],
    ["backup", "vm", "--repo", "r", "--disk", "a=nbd://host", "--wait", "soon"],
    ["backup", "vm", "--repo", "r", "--disk", "a=nbd://host", "--limit-rate", "1"],
    ["backup", "vm", "--repo", "r", "--disk", "a=nbd://host", "--memory", "1M"],
    ["backup", "--repo", "r", "--disk", "a=nbd://host"],
    ["backup", "--repo", "r", "--all"],
    ["backup", "--repo", "r", "--match", "*"],
    ["backup", "vm", "--repo", "r", "--disk", "a=nbd://host", "--transport", "nbd"],
    ["backup", "vm", "--repo", "r", "--platform", "lab"],
    ["restore", "vm@latest", "--repo", "r"],
    ["restore", "vm@latest", "--repo", "r", "--to", "d", "--to-disk", "a=nbd://host"],
    ["restore", "vm@latest", "--repo", "r", "--to-disk", "a=nbd://host", "--force"],
    ["restore", "vm@latest", "--repo", "r", "--to-disk", "a=nbd://host", "--disk", "a"],
    ["restore", "vm@latest", "--repo", "r", "--to-disk", "a=nbd://host", "--format", "raw"],
    ["restore", "vm@latest", "--repo", "r", "--to-disk", "a=file"],
    ["restore", "vm@latest", "--repo", "r", "--to", "d", "--format", "vmdk"],
    ["list"],
    ["list", "--repo", "r", "--since", "yesterday"],
    ["show"],
    ["copy", "a"],
    ["copy", "null:", "b"],
    ["copy", "http://host/a", "b"],
    ["copy", "a", "b", "--connections", "0"],
    ["copy", "a", "b", "--request-size", "1000"],
    ["info"],
    ["info", "nbd+tcp://host"],
    ["info", "nbd://host", "--list", "--map"],
]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command without a process of its own, for many short calls."""
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)  # this process is the test's

    def call(*args: str) -> Ended:
        return Ended(run(args), *capfd.readouterr())

    return call


@pytest.mark.parametrize("args", USAGE, ids=" ".join)
def test_usage_errors_are_one_line_and_come_first(
    args: list[str], here: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    people, programs = here(*args), here(*args, "--json")
    assert (people.status, people.out) == (2, "")
    assert (programs.status, programs.last["exit"]) == (2, 2)
    assert one_line(people) == one_line(programs)
    assert "secret" not in people.err + programs.out
    assert not list(tmp_path.iterdir()), "nothing was touched"


OF_PLATFORMS = {
    "backup": "give a VM, or --all or --match",
    "backup vm --all": "give a VM, or --all or --match",
    "backup --all --match *": "give a VM, or --all or --match",
    "backup --all --disk vda": "chooses disks of one VM",
    "backup vm --disk vda=nbd://host": "named by its id alone",
    "backup vm --snapshot-id s": "has its own names",
    "restore vm@latest --to d": "give one of --to DIR, --to-disk ID=NBD-URI and --platform P",
    "restore vm@latest --to-disk vda=nbd://host": "give one of --to DIR, --to-disk ID=NBD-URI and --platform P",
    "restore vm@latest --force": "--format and --force go with --to",
    "restore vm@latest --format raw": "--format and --force go with --to",
    "restore vm@latest --vm web --new-name web-02": "--new-name makes a VM",
    "restore vm@latest --differential --new-name web-02": "--new-name makes a VM",
}


@pytest.mark.parametrize(("line", "message"), OF_PLATFORMS.items())
def test_contradictions_of_platforms_come_first(
    line: str, message: str, here: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sfasync.toml"
    file.write_text('[platforms.lab]\ntype = "qemu"\n')
    monkeypatch.setenv("SFASYNC_CONFIG", str(file))
    ended = here(*line.split(), "--platform", "lab", "--repo", "r")
    assert ended.status == 2
    assert message in one_line(ended)
    unknown = here(*line.split(), "--platform", "prod", "--repo", "r")
    assert "there is no platform 'prod'; there are lab" in one_line(unknown)


@pytest.mark.parametrize("option", ["--vm web", "--new-name web", "--differential", "--transport nbd"])
def test_what_needs_a_platform(option: str, here: Callable[..., Ended]) -> None:
    ended = here("restore", "vm@latest", "--to", "d", "--repo", "r", *option.split())
    assert ended.status == 2
    assert "need --platform" in one_line(ended)


def test_a_command_is_needed(here: Callable[..., Ended]) -> None:
    ended = here()
    assert (ended.status, ended.out) == (2, "")
    assert "sfasync --help" in one_line(ended)


def test_a_hint_says_where_to_read_on() -> None:
    assert "sfasync backup --help" in one_line(sfasync("backup", "vm", "--frobnicate"))


@pytest.mark.parametrize("name", ["backup", "restore", "list", "show", "verify"])
def test_a_missing_repository_comes_before_the_source(name: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    rest = {
        "backup": ["vm", "--disk", "a=nbd+unix:///?socket=/nonexistent"],
        "restore": ["vm@latest", "--to", str(tmp_path / "out")],
        "show": ["vm@latest"],
    }
    ended = sfasync(name, *rest.get(name, []), "--repo", missing, "--json")
    assert ended.status == 10
    assert ended.last["code"] == "repository"
    assert str(missing) in one_line(ended)
    assert not list(tmp_path.iterdir())


def test_the_repository_may_come_from_the_environment(tmp_path: Path) -> None:
    environment = {"SFASYNC_REPOSITORY": str(tmp_path / "r")}
    assert sfasync("init", env=environment).status == 0
    assert sfasync("list", "--json", env=environment).last == {
        "event": "result",
        "ok": True,
        "command": "list",
        "count": 0,
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    ended = sfasync(env={"_SFASYNC_COMPLETE": f"{shell}_source"})
    assert (ended.status, ended.err) == (0, "")
    assert "sfasync" in ended.out


def test_completion_knows_commands_and_options() -> None:
    asked = {"_SFASYNC_COMPLETE": "bash_complete", "COMP_WORDS": "sfasync ba", "COMP_CWORD": "1"}
    assert "backup" in sfasync(env=asked).out
    asked = {"_SFASYNC_COMPLETE": "bash_complete", "COMP_WORDS": "sfasync backup --mo", "COMP_CWORD": "2"}
    assert "--mode" in sfasync(env=asked).out


# --- the world outside -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["backup", "--help"]])
def test_a_reader_that_has_gone_is_no_error(args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*args, stdout=writer)
    os.close(writer)
    ended = finish(process)
    assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize("args", [["--version"], ["list"]])
def test_a_full_stdout_is_an_error(args: list[str], tmp_path: Path) -> None:
    environment = {"SFASYNC_REPOSITORY": str(tmp_path / "r")}
    assert sfasync("init", env=environment).status == 0
    with open("/dev/full", "w") as full:
        ended = finish(start(*args, env=environment, stdout=full))
    assert ended.status == 21
    assert "standard output" in one_line(ended)


def test_closed_streams_are_not_taken_by_files(tmp_path: Path) -> None:
    """With 0, 1 and 2 closed the next file opened would be one of them; a message would end up in a backup."""
    script = 'exec "$@" <&- >&- 2>&-'
    command = ["sh", "-c", script, "sh", *COMMAND, "init", "--quiet", "--repo", str(tmp_path / "r")]
    assert subprocess.run(command, timeout=60).returncode == 0
    assert sfasync("verify", "--data", "--repo", tmp_path / "r").status == 0


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["list"]])
def test_a_closed_stdout_is_an_error_for_who_has_something_to_say(args: list[str], tmp_path: Path) -> None:
    environment = {"SFASYNC_REPOSITORY": str(tmp_path / "r")}
    assert sfasync("init", env=environment).status == 0
    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, *args],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 21
    assert ended.stderr == "sfasync: cannot write to standard output: Bad file descriptor\n"


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    ended = sfasync("list", "--repo", tmp_path / "répertoire-\udc80", env={"PYTHONIOENCODING": "ascii:strict"})
    assert ended.status == 10
    assert "r\\xe9pertoire" in one_line(ended)


def test_a_broken_installation_is_one_line(here: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sfasync.cli.commands.init", None)
    ended = here("init", "--json")
    assert (ended.status, ended.last["code"]) == (1, "internal")
    one_line(ended)
    assert "Traceback" in here("init", "-vv").err


def test_no_core_is_left() -> None:
    script = "import resource; from sfasync.cli.app import run; run(['--help']); print(resource.getrlimit(4))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "(0, 0)"


def test_names_of_commands_are_those_of_modules() -> None:
    context = app.make_context("sfasync", ["init"])
    for name in COMMANDS:
        command = app.get_command(context, name)
        assert command is not None
        assert command.name == name
