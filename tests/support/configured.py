"""A configuration file with a platform in it, whose VMs are a QEMU of the test's own."""

from __future__ import annotations

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
