"""A lab in a process of its own, told by its standard input what happens there.

A lab in the process of a test would share its loop, and its descriptors would count as the test's.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfasync.credentials import AccessKey, Password
from sfasync.lab import Lab
from sfasync.lab.machines import MachineSpec
from sfasync.platform.scp.settings import NbdSettings, ScpSettings, ScpTimeouts
from sfasync.transport.export import open_export

from .servers import require

_TIMEOUTS = ScpTimeouts(connect=10.0, request=20.0, retry=5.0, blocked=0.1, task=30.0, poll=0.02)


@dataclass(frozen=True)
class Laboratory:
    """A lab that runs.

    Attributes:
        process: The lab.
        told: How it is reached.
        directory: A place for files of the test.
    """

    process: subprocess.Popen[str]
    told: dict[str, Any]
    directory: Path

    def settings(self, **values: Any) -> ScpSettings:
        """Settings that lead to it."""
        defaults: dict[str, Any] = {
            "credentials": Password(self.told["user"], self.told["password"]),
            "ca_file": self.directory / "lab-ca.pem",
            "enable_cbt": True,
            "nbd": NbdSettings(port=self.told["port"], networks=("127.0.0.0/8",)),
            "timeouts": _TIMEOUTS,
        }
        return ScpSettings(url=self.told["url"], **{**defaults, **values})

    @property
    def access_key(self) -> AccessKey:
        return AccessKey(self.told["access_key"], self.told["secret_key"])

    def ask(self, do: str, **what: Any) -> Any:
        """Let something happen; gives what the lab answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["answer"]

    def add(self, name: str, sizes: list[int], **members: Any) -> str:
        """Make a VM; gives its id."""
        return str(self.ask("add", name=name, sizes=sizes, members=members))

    def write(self, vm: str, disk: str, offset: int, data: bytes) -> None:
        """Write as the guest would."""
        self.ask("write", vm=vm, disk=disk, offset=offset, data=data.hex())

    def content(self, vm: str, disk: str) -> bytes:
        """All of a disk."""
        return bytes.fromhex(self.ask("content", vm=vm, disk=disk))

    def switch(self, vm: str, *, running: bool) -> None:
        self.ask("switch", vm=vm, running=running)

    def misbehave(self, fault: str, count: int = 1, path: str = "") -> None:
        self.ask("misbehave", fault=fault, count=count, path=path)

    def behave(self) -> None:
        self.ask("behave")

    def left(self) -> dict[str, list[str]]:
        """What a client can leave behind, by kind; kinds of which there is nothing are not told."""
        return {kind: found for kind, found in self.ask("left").items() if found}


@contextmanager
def laboratory(*machines: str, lease_speed: float = 1.0) -> Iterator[Laboratory]:
    """A lab with these machines, for the time of the block."""
    require("qemu-storage-daemon")
    with tempfile.TemporaryDirectory(prefix="lab-", dir="/dev/shm") as directory:
        command = [sys.executable, "-m", __name__, directory, str(lease_speed), *machines]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            told = json.loads(process.stdout.readline() or '{"error": "the lab did not start"}')
            assert "error" not in told, told["error"]
            (Path(directory) / "lab-ca.pem").write_text(told["ca"])
            yield Laboratory(process, told, Path(directory))
            process.stdin.close()


# --- in the process --------------------------------------------------------------------------------------------------


class _Commands:
    """What the lab can be asked."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    async def add(self, name: str, sizes: list[int], members: dict[str, Any]) -> str:
        files = {kind: bytes.fromhex(data) for kind, data in members.pop("files", {}).items()}
        spec = MachineSpec(name=name, disks=tuple(sizes), files=files, **members)
        return (await self._lab.site.hypervisor.add(spec)).id

    async def write(self, vm: str, disk: str, offset: int, data: str) -> None:
        await self._lab.vm(vm).disk(disk).write(offset, bytes.fromhex(data))

    async def content(self, vm: str, disk: str) -> str:
        machine = self._lab.vm(vm)
        was, machine.machine.running = machine.machine.running, True
        try:
            async with machine.disk(disk).opened() as address, await open_export(address) as export:
                return (await export.read(0, export.size)).hex()
        finally:
            machine.machine.running = was

    async def switch(self, vm: str, running: bool) -> None:
        self._lab.vm(vm).switch(running=running)

    async def grow(self, vm: str, disk: str, size: int) -> None:
        found = self._lab.vm(vm).machine.disk(disk)
        assert found is not None
        await self._lab.site.hypervisor.grow_disk(found, size)

    async def swap(self, vm: str, disk: str) -> None:
        machine = self._lab.vm(vm).machine
        found = machine.disk(disk)
        assert found is not None
        await self._lab.site.hypervisor.remove_disk(machine, found)
        await self._lab.site.hypervisor.add_disk(machine, disk, found.size)

    async def discard(self, vm: str) -> None:
        await self._lab.site.hypervisor.remove(self._lab.vm(vm).machine)

    async def remove(self, vm: str, disk: str) -> None:
        machine = self._lab.vm(vm).machine
        found = machine.disk(disk)
        assert found is not None
        await self._lab.site.hypervisor.remove_disk(machine, found)

    async def facts(self, vm: str, facts: dict[str, Any]) -> None:
        self._lab.vm(vm).machine.facts.update(facts)

    async def misbehave(self, fault: str, count: int, path: str) -> None:
        self._lab.misbehave(fault, count, path=path)

    async def behave(self) -> None:
        self._lab.site.misbehaviour.behave()

    async def tasks(self) -> list[str]:
        return [task.action for task in self._lab.site.tasks.all() if task.status == "doing"]

    async def renewals(self) -> int:
        return sum(task.action.startswith("renew") for task in self._lab.site.tasks.all())

    async def vms(self) -> list[str]:
        return [vm.machine.name for vm in self._lab.vms]

    async def state(self, vm: str) -> dict[str, Any]:
        machine = self._lab.vm(vm).machine
        return {"running": machine.running, "tracked": machine.tracked, "files": sorted(machine.files)}

    async def left(self) -> dict[str, list[str]]:
        leases = self._lab.site.leases.all()
        return {
            "snapshots": [snapshot.name for vm in self._lab.vms for snapshot in vm.snapshots],
            "leases": [f"{lease.id} {lease.status}" for lease in leases],
            "exports": [export for lease in leases for export in lease.exports],
        }


async def _serve(directory: Path, lease_speed: float, machines: list[str]) -> None:
    loop = asyncio.get_running_loop()
    async with Lab(machines, directory=directory, lease_speed=lease_speed) as lab:
        told = {
            "url": lab.url,
            "port": lab.port,
            "ca": lab.ca_pem.decode(),
            "user": lab.accounts.user,
            "password": lab.accounts.password,
            "access_key": lab.accounts.access_key,
            "secret_key": lab.accounts.secret_key,
        }
        print(json.dumps(told), flush=True)
        commands = _Commands(lab)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            what = json.loads(line)
            try:
                answer = {"answer": await getattr(commands, what.pop("do"))(**what)}
            except Exception as error:  # noqa: BLE001 - the test is told
                answer = {"error": repr(error)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
