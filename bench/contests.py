"""What is measured against what."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.certificates import make_certificates
from tests.support.servers import nbdkit

SFASYNC = str(Path(sys.executable).with_name("sfasync"))

_RESTIC = 'nbdcopy "$1" - | restic --quiet backup --stdin --stdin-filename disk.raw'


def _nothing() -> None:
    """A command that needs no preparation."""


@dataclass(frozen=True)
class Entrant:
    """One program in a contest.

    Attributes:
        command: What is measured.
        prepare: Done before each run, not measured.
    """

    command: Sequence[str]
    prepare: Callable[[], None] = _nothing


@dataclass(frozen=True)
class Contest:
    """Programs that do the same job.

    Attributes:
        caveats: What to know before comparing.
        entrants: By the program's name; ours first.
        environment: Variables for all of them.
    """

    caveats: str
    entrants: Mapping[str, Entrant]
    environment: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def copy(image: Path, directory: Path) -> Iterator[Contest]:
    """Reading a disk: NBD on a Unix socket to nowhere."""
    with nbdkit("file", image) as server:
        yield Contest("the server shares the cores; both skip holes; start-up of Python included", _copies(server.uri))


@contextmanager
def copy_tls(image: Path, directory: Path) -> Iterator[Contest]:
    """The same over TLS, with verification."""
    with nbdkit("file", image, tls=make_certificates(directory / "certificates"), tcp=True) as server:
        yield Contest("the server shares the cores; nbdcopy uses several connections and threads", _copies(server.uri))


def _copies(uri: str) -> dict[str, Entrant]:
    return {
        "sfasync": Entrant([SFASYNC, "copy", uri, "null:"]),
        "nbdcopy": Entrant(["nbdcopy", uri, "null:"]),
    }


@contextmanager
def backup(image: Path, directory: Path) -> Iterator[Contest]:
    """A first backup into a new repository."""
    with nbdkit("file", image) as server:
        yield _backups(server.uri, directory, fresh=True)


@contextmanager
def backup_again(image: Path, directory: Path) -> Iterator[Contest]:
    """A backup of a disk that has not changed, which neither program knows before it has read it."""
    with nbdkit("file", image) as server:
        contest = _backups(server.uri, directory, fresh=False)
        for entrant in contest.entrants.values():
            _quietly(entrant.command, contest.environment)
        yield contest


def _backups(uri: str, directory: Path, *, fresh: bool) -> Contest:
    environment = {
        "RESTIC_REPOSITORY": str(directory / "restic"),
        "RESTIC_PASSWORD": "bench",
        "RESTIC_CACHE_DIR": str(directory / "restic-cache"),
        "SFASYNC_REPOSITORY": str(directory / "sfasync"),
        "XDG_CACHE_HOME": str(directory / "cache"),
    }

    def new(location: str, cache: str, *command: str) -> Callable[[], None]:
        def make() -> None:
            for name in (location, cache):
                shutil.rmtree(directory / name, ignore_errors=True)
            _quietly(command, environment)
            os.sync()  # what one program left to be written is not the other one's to wait for

        return make

    ours = new("sfasync", "cache", SFASYNC, "init")
    theirs = new("restic", "restic-cache", "restic", "init", "--repository-version", "2")
    if not fresh:
        ours()
        theirs()
        ours = theirs = os.sync
    return Contest(
        "restic encrypts and chunks by content, sfasync does neither yet; restic's memory is the larger process only",
        {
            "sfasync": Entrant([SFASYNC, "backup", "--quiet", "vm", "--disk", f"disk={uri}"], ours),
            "restic": Entrant(["sh", "-c", _RESTIC, "sh", uri], theirs),
        },
        environment,
    )


def _quietly(command: Sequence[str], environment: Mapping[str, str]) -> None:
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)


CONTESTS = {"copy": copy, "copy-tls": copy_tls, "backup": backup, "backup-again": backup_again}
NEEDS = {"copy": {"nbdcopy"}, "copy-tls": {"nbdcopy"}, "backup": {"nbdcopy", "restic"}}
NEEDS["backup-again"] = NEEDS["backup"]
