"""`sfasync lab`: a platform to try things on, in the background."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...errors import StateError, UsageError, printable
from ...units import format_size
from .. import options
from ..output import Output
from ..runner import perform

if TYPE_CHECKING:
    from ...lab.home import Home

_Work = Callable[["Home"], Coroutine[Any, Any, int]]


def _byte(text: str) -> int:
    """A byte, decimal or with the prefix of another base."""
    try:
        byte = int(text, 0)
    except ValueError:
        byte = -1
    if not 0 <= byte <= 255:
        raise click.BadParameter(f"{text!r} is not a byte, 0 to 255 or 0x00 to 0xff")
    return byte


def _times(text: str) -> int:
    """How often a fault happens, as of `Misbehaviour.plan`."""
    if text == "always":
        return -1
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text)):
        raise click.BadParameter(f"{text!r} is neither a number of times, 1 or more, nor 'always'; --stop ends faults")
    return int(text)


@click.group("lab", no_args_is_help=False)
def command() -> None:
    """Run a platform to try things on, on this machine.

    It has the documented interface of a Sangfor Cloud Platform in front of real disks, snapshots and NBD exports, and
    can be told to misbehave. It listens on 127.0.0.1 only. Each of its commands has --dir and --json.
    """


_directory = click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where the lab is; ~/.local/state/sfasync/lab if not given.",
)


@command.command("up")
@click.option(
    "--vm", "machines", metavar="NAME:COUNTxSIZE", multiple=True, help="A VM and its disks, as web-01:2x4G; repeatable."
)
@_directory
@options.common
def up(output: Output, machines: tuple[str, ...], directory: Path | None) -> int:
    """Start the lab in the background; it goes on with the VMs that are there."""

    async def work(home: Home) -> int:
        from ...lab.background import start
        from ...lab.orders import told

        running = await start(home, machines)
        status = await told(running.control, "status")
        for machine in status["vms"]:
            disks = ", ".join(f"{disk['id']} {format_size(disk['size'])}" for disk in machine["disks"])
            output.remark(f"{machine['name']}: {disks}")
        output.remark(f"the lab runs at {status['url']}; its NBD service is on port {status['nbd_port']}")
        output.remark(f"use it with: --config {home.configuration} --platform lab")
        told_fields = {"dir": str(home.path), "config": str(home.configuration), "pid": running.pid}
        output.result("lab", {"action": "up", **told_fields, "url": status["url"], "nbd_port": status["nbd_port"]})
        return 0

    return _perform(output, directory, work)


@command.command("down")
@click.option("--keep", is_flag=True, help="Leave the VMs where they are, for the next start.")
@_directory
@options.common
def down(output: Output, keep: bool, directory: Path | None) -> int:
    """End the lab and remove all that it has made; also after it was killed."""

    async def work(home: Home) -> int:
        from ...lab.background import stop

        ran = await stop(home, keep=keep)
        output.remark("the lab has ended" if ran else f"no lab ran in {home.path}")
        output.result("lab", {"action": "down", "dir": str(home.path), "ran": ran, "kept": keep})
        return 0

    return _perform(output, directory, work)


@command.command("status")
@_directory
@options.common
def status(output: Output, directory: Path | None) -> int:
    """Show VMs, snapshots, backup resources, exports and tasks."""

    async def work(home: Home) -> int:
        told = await _told(home, "status")
        for machine in told["vms"]:
            output.line(f"{machine['name']}  {machine['id']}  {'running' if machine['running'] else 'stopped'}")
            for disk in machine["disks"]:
                tracked = "changes are tracked" if disk["tracked"] else "changes are not tracked"
                output.line(f"   disk {disk['id']}  {format_size(disk['size'])}  {tracked}")
            for each in machine["snapshots"]:
                output.line(f"   snapshot {each['id']}  {printable(each['name'])}  checkpoint {each['checkpoint_id']}")
        for each in told["backup_resources"]:
            ends = f"{each['status']}, {each['remain_time']} s left"
            output.line(f"backup resource {each['id']}  {each['vm']}  {each['type']}  {ends}")
            for export in each["exports"]:
                output.line(f"   export {export}")
        for each in told["tasks"]:
            output.line(f"task {each['task_id']}  {each['action']}  {each['object_name']}  {each['status']}")
        for name, count in told["faults"].items():
            output.line(f"to come: {name}, {'always' if count < 0 else count}")
        output.remark(f"{told['url']}, NBD on port {told['nbd_port']}, {told['connections']} connections")
        output.result("lab", {"action": "status", **told})
        return 0

    return _perform(output, directory, work)


@command.command("write")
@click.argument("vm")
@click.argument("disk")
@click.option(
    "--offset", type=options.size_or_zero, metavar="SIZE", default="0", show_default=True, help="Where to begin."
)
@click.option("--length", type=options.size, metavar="SIZE", help="How much; up to the end of the disk if not given.")
@click.option("--pattern", type=_byte, metavar="BYTE", help="What to write, 0 to 255, or 0x00 to 0xff.")
@click.option("--random", "count", type=click.IntRange(1), metavar="N", help="Random data at N random places.")
@click.option("--seed", type=int, metavar="S", default=0, help="With --random: the same seed writes the same.")
@_directory
@options.common
def write(
    output: Output,
    vm: str,
    disk: str,
    offset: int,
    length: int | None,
    pattern: int | None,
    count: int | None,
    seed: int,
    directory: Path | None,
) -> int:
    """Write to DISK of VM, as its guest would."""
    if (pattern is None) == (count is None):
        raise click.UsageError("give either --pattern or --random")
    if count is not None and (offset or length is not None):
        raise click.UsageError("--random writes all over the disk; leave --offset and --length out")

    async def work(home: Home) -> int:
        from ...lab.orders import Write

        wish = Write(vm=vm, disk=disk, offset=offset, length=length, pattern=pattern or 0, random=count, seed=seed)
        written: int = (await _told(home, "write", wish))["bytes"]
        output.remark(f"{format_size(written)} written")
        output.result("lab", {"action": "write", "bytes": written})
        return 0

    return _perform(output, directory, work)


@command.command("power")
@click.argument("vm")
@click.argument("state", type=click.Choice(["on", "off"]))
@_directory
@options.common
def power(output: Output, vm: str, state: str, directory: Path | None) -> int:
    """Switch VM on or off; to be restored, it has to be off."""

    async def work(home: Home) -> int:
        from ...lab.orders import Power

        await _told(home, "power", Power(vm=vm, running=state == "on"))
        output.remark(f"{vm} is {state}")
        output.result("lab", {"action": "power", "vm": vm, "running": state == "on"})
        return 0

    return _perform(output, directory, work)


@command.command("misbehave")
@click.argument("fault", required=False)
@click.argument("count", type=_times, default="1", required=False)
@click.option("--path", default="", metavar="TEXT", help="Only in calls whose path contains this.")
@click.option("--stop", is_flag=True, help="Nothing is to go wrong any more.")
@_directory
@options.common
def misbehave(output: Output, fault: str | None, count: int, path: str, stop: bool, directory: Path | None) -> int:
    """Let FAULT happen the next COUNT times, or always; without FAULT, show what can happen."""
    if stop and fault is not None:
        raise click.UsageError("--stop ends every fault; leave FAULT out")

    async def work(home: Home) -> int:
        from ...lab.misbehaviour import FAULTS
        from ...lab.orders import Fault

        if fault is None and not stop:
            for name, what in FAULTS.items():
                output.line(f"{name:20} {what}")
            output.result("lab", {"action": "misbehave", "known": dict(FAULTS)})
            return 0
        told = await _told(home, "misbehave", Fault(name=fault, count=count, path=path))
        output.result("lab", {"action": "misbehave", "faults": told["faults"]})
        return 0

    return _perform(output, directory, work)


def _perform(output: Output, directory: Path | None, work: _Work) -> int:
    async def with_home() -> int:
        try:
            from ...lab.home import Home

            return await work(Home(directory))
        except ModuleNotFoundError as error:
            raise UsageError(f"the lab needs {error.name}; install it with: pip install 'sfasync[lab]'") from error

    return perform(output, with_home, moves=False)


async def _told(home: Home, order: str, content: object = None) -> dict[str, Any]:
    """What the running lab answers.

    Raises:
        StateError: None runs.
    """
    from ...lab.orders import told

    running = home.running()
    if running is None:
        raise StateError(f"no lab runs in {printable(str(home.path))}; sfasync lab up starts one")
    return await told(running.control, order, content)
