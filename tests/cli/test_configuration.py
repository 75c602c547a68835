"""The configuration file of a command: where it is found, and what of it counts."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sfasync.cli import options
from sfasync.cli.output import Output
from sfasync.models import Limits, Retry, TlsPolicy

from ..support.command import sfasync
from ..support.servers import nbdkit

DEFAULT = '[repositories.default]\npath = "r"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration whose default repository is beside it."""
    path = tmp_path / "sfasync.toml"
    path.write_text(DEFAULT)
    return path


def test_a_repository_has_a_name(file: Path, tmp_path: Path) -> None:
    with file.open("a") as more:
        more.write('[repositories."off site"]\npath = "off"\n')
    assert sfasync("init", "--config", file).status == 0
    assert sfasync("init", "--config", file, "--repo", "off site").status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"sfasync.toml", "r", "off"}
    assert sfasync("list", "--repo", tmp_path / "r", "--config", file).status == 0, "a path is a path"
    assert sfasync("list", "--config", file, env={"SFASYNC_REPOSITORY": "off site"}).status == 0


def test_where_the_file_is_found(file: Path, tmp_path: Path) -> None:
    user = tmp_path / "config" / "sfasync" / "sfasync.toml"
    user.parent.mkdir(parents=True)
    user.write_text('[repositories.default]\npath = "of-the-user"\n')
    home = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    named = {"SFASYNC_CONFIG": str(file)}
    assert "of-the-user" in sfasync("list", env=home).err
    assert str(tmp_path / "r") in sfasync("list", env=home | named).err
    assert "other" in sfasync("list", "--config", tmp_path / "other", env=home | named).err
    relative = {"XDG_CONFIG_HOME": "config", "HOME": str(tmp_path / "nobody")}
    assert "no repository given" in sfasync("list", env=relative).err


@pytest.mark.parametrize(
    "command", [["list"], ["init"], ["copy", "a", "b"], ["info", "nbds://localhost:1"]], ids=" ".join
)
def test_a_file_that_cannot_be_used_is_a_usage_error(command: list[str], tmp_path: Path) -> None:
    for missing in ("missing", ""):
        ended = sfasync(*command, "--config", missing, "--json")
        assert (ended.status, ended.last["code"]) == (2, "configuration")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[repositories.default]\npth = 'x'\n")
    ended = sfasync(*command, "--config", wrong, "--json")
    assert (ended.status, ended.last["path"]) == (2, str(wrong))
    assert ended.last["message"] == f"{wrong}: repositories.default.pth: this key is not known; did you mean 'path'?"


@click.command("try")
@options.transport
@options.common
def command(output: Output, engine_options: options.EngineOptions) -> int:
    """Shows what an engine would get."""
    click.echo(repr(engine_options))
    return 0


def tried(*arguments: str) -> str:
    """What an engine would get."""
    return CliRunner().invoke(command, arguments, obj=Output(), catch_exceptions=False).output.strip()


def test_the_command_line_goes_before_the_file(file: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    file.write_text('[limits]\nmemory = "32M"\nrate = "1M"\ndisks = 3\n[tls]\nca_file = "ca.pem"\n')
    tls = TlsPolicy(ca_file=tmp_path / "ca.pem")
    limits = Limits(memory=32 << 20, rate=1 << 20, disks=3)
    assert tried() == repr(options.EngineOptions(limits=Limits(), retry=Retry()))
    assert tried("--config", str(file)) == repr(options.EngineOptions(limits=limits, retry=Retry(), tls=tls))
    limits = Limits(memory=16 << 20, rate=2 << 20, disks=3)
    assert tried("--memory", "16M", "--limit-rate", "2M", "--config", str(file), "--retry", "0") == repr(
        options.EngineOptions(limits=limits, retry=Retry(outage=0.0), tls=tls)
    )


def test_whom_to_believe(file: Path, tmp_path: Path, certificates: Path) -> None:
    """The authority of the file counts for URIs that name none."""
    file.write_text(f'[tls]\nca_file = "{certificates}/ca-cert.pem"\n')
    with nbdkit("memory", "1M", tls=certificates, tcp=True) as server:
        uri = server.uri.partition("?")[0]
        for command in (["info", uri], ["copy", uri, str(tmp_path / "copy")]):
            ended = sfasync(*command, "--json")
            assert (ended.status, ended.last["code"]) == (13, "tls")
            assert sfasync(*command, "--config", file).status == 0
