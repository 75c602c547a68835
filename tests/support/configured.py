"""A configuration file with a platform in it, whose VMs are a QEMU of the test's own; and what their guests do."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .qemu import Machine


def write_configuration(path: Path, **machines: Machine) -> Path:
    """Describe each machine as a VM of the platform ``lab``; gives the path."""
    lines = ["[platforms.lab]", 'type = "qemu"']
    for name, machine in machines.items():
        settings = machine.settings
        lines += [
            f'[platforms.lab.vms."{name}"]',
            f'socket = "{settings.socket}"',
            f'directory = "{settings.directory}"',
            f'nbd = {{ socket = "{settings.nbd.socket}" }}',
        ]
    path.write_text("\n".join(lines) + "\n")
    return path


def write(machine: Machine, disk: str, offset: int, length: int) -> None:
    """Write as a guest does."""
    command = f"write -P 7 {offset} {length}"
    subprocess.run(["qemu-io", "-f", "raw", "-c", command, machine.uri(disk)], check=True, stdout=subprocess.DEVNULL)


def content(machine: Machine, disk: str) -> bytes:
    """A disk as a guest sees it."""
    return subprocess.run(["nbdcopy", machine.uri(disk), "-"], check=True, stdout=subprocess.PIPE).stdout
