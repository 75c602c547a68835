"""Random cycles of change, backup, kill, verify and restore: ``python -m tests.soak --seconds 600``.

Before that, a hundred incremental backups of a disk of QEMU that a guest writes to all the time.

The command itself runs, against servers of all kinds. After each cycle every acknowledged backup must be listed, the
repository must verify, and one backup must restore to the bytes it was made from. The same seed gives the same cycles
again, but for the instants at which processes are killed.
"""

from __future__ import annotations

import argparse
import asyncio
import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from .support.certificates import make_certificates
from .support.servers import Server, nbd_server, nbdkit, qemu_nbd
from .support.witness import incrementals

MIB = 1 << 20
VM = "soak"

INCREMENTALS = 100
CYCLES_OF_A_REPOSITORY = 40
BACKUPS_COMPARED = 6  # of older ones the expected bytes are not kept

_SIZE = 48 * MIB + 512


@dataclass
class Soak:
    """One repository, one disk, and what must be in the repository.

    Attributes:
        place: Directory of everything.
        source: Makes all choices.
        expected: Files with the content of the newest backups, by id.
        acknowledged: Ids of all backups that must be listed.
        counts: What happened, for the report.
        lasted: Seconds from the first word of the last backup that was not ended to its end.
    """

    place: Path
    source: random.Random
    expected: dict[str, Path] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    lasted: float = 0.5

    @property
    def image(self) -> Path:
        return self.place / "disk.raw"

    @property
    def log(self) -> Path:
        """What the last backup said."""
        return self.place / "log"

    def begin(self) -> None:
        """Make an empty repository and a disk with something on it."""
        self.image.write_bytes(b"")
        os.truncate(self.image, _SIZE)
        make_certificates(self.place / "certificates")
        assert self.command("init").returncode == 0

    def cycle(self) -> None:
        """Change the disk, back it up or be killed, and look at everything."""
        for _ in range(self.source.randrange(12)):
            self.change()
        ending = self.source.choices((None, signal.SIGKILL, signal.SIGINT), (3, 1, 1))[0]
        with self.server() as server:
            status = self.back_up(server.uri, ending)
        if status == 0:
            self.counts["backups"] += 1
        else:
            assert status in ({-signal.SIGKILL} if ending == signal.SIGKILL else {130}), self.log.read_text()
            self.counts[f"ended by {signal.Signals(ending or 0).name}"] += 1
        self.account_for(status == 0)
        checked = self.command("verify", "--data")
        assert checked.returncode == 0, checked.stdout
        self.restore()

    def change(self) -> None:
        """Write, repeat, or clear a range of the disk."""
        length = self.source.choice((512, 4096, 65536, MIB, 4 * MIB))
        offset = self.source.randrange(0, _SIZE - length, 512)
        with self.image.open("r+b") as disk:
            match self.source.choice(("new", "text", "copy", "clear")):
                case "new":
                    content = self.source.randbytes(length)
                case "text":
                    content = (f"{self.source.getrandbits(64):x} " * length).encode()[:length]
                case "copy":
                    disk.seek(self.source.randrange(0, _SIZE - length, 512))
                    content = disk.read(length)
                case _:
                    content = bytes(length)
            disk.seek(offset)
            disk.write(content)

    def server(self) -> AbstractContextManager[Server]:
        """A server of the disk, of a random kind."""
        tls = self.source.choice((None, self.place / "certificates"))
        match self.source.randrange(3):
            case 0:
                return nbdkit("file", self.image, tls=tls, tcp=self.source.random() < 0.5)
            case 1:
                return qemu_nbd(self.image, tls=tls)
            case _:
                return nbd_server(self.image, tls=tls)

    def back_up(self, uri: str, ending: signal.Signals | None) -> int:
        """The exit status of a backup that may be ended in its middle."""
        with self.log.open("wb") as log:
            command = self.arguments("backup", VM, "--disk", f"disk={uri}", "-vv")
            process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment())
        while process.poll() is None and not self.log.stat().st_size:
            time.sleep(0.002)
        began = time.monotonic()  # Python is ready for signals now
        if ending is not None:
            try:
                process.wait(self.source.uniform(0.0, self.lasted))
            except subprocess.TimeoutExpired:
                process.send_signal(ending)
        status = process.wait(60)
        if status == 0:
            self.lasted = time.monotonic() - began
        return status

    def account_for(self, finished: bool) -> None:
        """See that what was acknowledged is listed, and at most what was committed at the last moment besides."""
        listed = self.command("list")
        assert listed.returncode == 0, listed.stdout
        ids = {event["id"] for event in map(json.loads, listed.stdout.splitlines()) if event["event"] == "backup"}
        new = ids - self.acknowledged
        assert self.acknowledged <= ids, f"lost: {self.acknowledged - ids}"
        assert len(new) == 1 or (not new and not finished), f"finished: {finished}, new: {new}"
        for backup in new:
            self.acknowledged.add(backup)
            self.expected[backup] = self.place / f"{backup}.expected"
            shutil.copyfile(self.image, self.expected[backup])
        for backup in list(self.expected)[:-BACKUPS_COMPARED]:
            self.expected.pop(backup).unlink()

    def restore(self) -> None:
        """Restore one of the newest backups and compare."""
        if not self.expected:
            return
        backup = self.source.choice(list(self.expected))
        target = self.place / "restored"
        restored = self.command("restore", backup, "--to", str(target), "--force", "--verify-after")
        assert restored.returncode == 0, restored.stdout
        assert filecmp.cmp(target / "disk.raw", self.expected[backup], shallow=False), f"{backup} restored wrongly"
        self.counts["restores"] += 1

    def command(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.arguments(name, *arguments), stdout=subprocess.PIPE, text=True, env=self.environment(), timeout=120
        )

    def arguments(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "sfasync", name, "--json", *arguments]

    def environment(self) -> dict[str, str]:
        own = {"SFASYNC_REPOSITORY": str(self.place / "repository"), "XDG_CACHE_HOME": str(self.place / "cache")}
        return os.environ | own


def soak(seconds: float, seed: int, *, cycles: int | None = None) -> Counter[str]:
    """Run cycles until the time is over, or that many; what happened, counted.

    Raises:
        AssertionError: Something was lost, damaged or wrong; the directory is left to be looked at, its name and the
            seed are printed.
    """
    source = random.Random(seed)
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end and (cycles is None or counts["cycles"] < cycles):
        place = Path(tempfile.mkdtemp(prefix="sfasync-soak-"))
        run = Soak(place, source, counts=counts)
        try:
            run.begin()
            for _ in range(min(CYCLES_OF_A_REPOSITORY, cycles or CYCLES_OF_A_REPOSITORY)):
                if time.monotonic() >= end:
                    break
                run.cycle()
                counts["cycles"] += 1
        except BaseException:
            print(f"seed {seed}, after {counts['cycles']} cycles, in {place}", file=sys.stderr)
            raise
        shutil.rmtree(place)
        print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())), flush=True)
    return counts


def main() -> None:
    """Soak for as long as the command line says."""
    parser = argparse.ArgumentParser(prog="soak", description="Random cycles of backup and restore.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="sfasync-soak-") as place:
        asyncio.run(incrementals(Path(place), INCREMENTALS, seed=arguments.seed))
    print(f"{INCREMENTALS} incrementals", flush=True)
    soak(arguments.seconds, arguments.seed)


if __name__ == "__main__":
    main()
