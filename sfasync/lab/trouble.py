"""What goes wrong by itself, and not in the answer to a call: the data service, a lease or a snapshot goes away.

It happens when a disk is being read or written, for that is when it matters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from .gateway import Gateway
from .hypervisor import Hypervisor
from .leases import Leases
from .misbehaviour import Misbehaviour


class Trouble:
    """Does what the lab was told to do wrong; called by the gateway."""

    def __init__(self, misbehaviour: Misbehaviour, hypervisor: Hypervisor, leases: Leases) -> None:
        self._misbehaviour = misbehaviour
        self._hypervisor = hypervisor
        self._leases = leases
        self._doing: set[asyncio.Task[None]] = set()

    def moved(self, gateway: Gateway) -> None:
        """Data of a disk was passed on."""
        if self._misbehaviour.due("snapshot-deleted"):
            self._do(self._delete_snapshots())
        if self._misbehaviour.due("lease-cancelled"):
            self._do(self._cancel_leases())
        if self._misbehaviour.due("nbd-killed"):
            self._do(gateway.kill())

    async def aclose(self) -> None:
        """Wait until it is done."""
        await asyncio.gather(*self._doing, return_exceptions=True)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        """In a task of its own: a conversation would be waiting for its own end."""
        task = asyncio.create_task(work, name="lab: trouble")
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    async def _delete_snapshots(self) -> None:
        for lease in self._leases.running():
            if lease.kind == "backup" and lease.exports and lease.machine.snapshots:
                await self._hypervisor.remove_snapshot(lease.machine, lease.machine.snapshots[-1])

    async def _cancel_leases(self) -> None:
        for lease in self._leases.running():
            if lease.exports:
                await self._leases.cancel(lease)
