"""`sfasync vms`: the VMs of platforms, and whether they can be backed up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...models import VirtualDisk, VirtualMachine
from ...units import format_size
from .. import options
from ..output import Output
from ..platforms import PlatformChoice
from ..records import table
from ..runner import perform

if TYPE_CHECKING:
    from ...interfaces import Platform

_HEADING = ("NAME", "ID", "STATE", "DISKS", "SIZE", "CHANGES", "BACKUP")


@click.command("vms")
@options.platforms
@options.common
def command(output: Output, platforms: PlatformChoice) -> int:
    """List the VMs of the platform P, or of all platforms of the configuration file.

    CHANGES says whether the platform tracks what changes on the disks, so that the next backup reads only that; BACKUP
    whether the VM can be backed up, and if not, why. With -v, what else there is to know.
    """
    return perform(output, lambda: _list(output, platforms), moves=False)


async def _list(output: Output, platforms: PlatformChoice) -> int:
    found: list[tuple[str, VirtualMachine]] = []

    async def collect(name: str, platform: Platform) -> None:
        found.extend((name, vm) for vm in await platform.vms())

    try:
        await platforms.each(output, collect)
    finally:  # what could be had, whatever else failed
        _report(output, found, several=len(platforms.names) > 1)
    if not found:
        output.remark("no VMs")
    output.result("vms", {"count": len(found)})
    return 0


def _report(output: Output, found: list[tuple[str, VirtualMachine]], *, several: bool) -> None:
    for name, vm in found:
        output.event("vm", {"platform": name, **_object(vm)})
        for warning in vm.warnings:
            output.detail(f"{vm.name}: {warning}")
    rows = [_HEADING, *(_row(vm) for _, vm in found)]
    if several:
        rows = [(name, *row) for name, row in zip(["PLATFORM", *(name for name, _ in found)], rows, strict=True)]
    if found:
        for line in table(rows):
            output.line(line)


def _object(vm: VirtualMachine) -> dict[str, object]:
    return {
        "id": vm.id,
        "name": vm.name,
        "state": vm.state,
        "disks": [{"id": disk.id, "size": disk.size, "tracked": disk.tracked} for disk in vm.disks],
        "refusal": vm.refusal,
        "warnings": list(vm.warnings),
    }


def _row(vm: VirtualMachine) -> tuple[str, ...]:
    sizes = [disk.size for disk in vm.disks if disk.size is not None]
    size = format_size(sum(sizes)) if len(sizes) == len(vm.disks) else "?"
    backup = "yes" if vm.refusal is None else f"no: {vm.refusal}"
    return vm.name, "" if vm.id == vm.name else vm.id, vm.state, str(len(vm.disks)), size, _tracked(vm.disks), backup


def _tracked(disks: tuple[VirtualDisk, ...]) -> str:
    """Whether changes are tracked, of all disks in one word."""
    words = {None: "?", True: "tracked", False: "not tracked"}
    found = {words[disk.tracked] for disk in disks}
    return found.pop() if len(found) == 1 else "of some" if found else ""
