"""What the calls of the interface work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from ..gateway import Gateway
from ..hypervisor import Hypervisor
from ..leases import Leases
from ..machines import Machine, Snapshot
from ..misbehaviour import Misbehaviour
from .accounts import Accounts
from .envelope import Answer, Refusal
from .tasks import Task, Tasks, Work

HOST_ID: Final = "host-005056d861e0"
"""The one host."""

HOST_IP: Final = "127.0.0.1"


@dataclass(slots=True, kw_only=True)
class Site:
    """The platform behind the interface.

    Attributes:
        hypervisor: Its machines.
        leases: Its backup resources.
        gateway: Its data service.
        accounts: Who may call.
        tasks: What goes on.
        misbehaviour: What goes wrong.
        ca_cert: The authority of the data service, in base64.
        storages: NFS stores that were mounted, by id: their names.
        files: Files that were sent for no VM, by name.
        pages: Answers about changed areas that were given last, by query without its start.
    """

    hypervisor: Hypervisor
    leases: Leases
    gateway: Gateway
    accounts: Accounts
    tasks: Tasks
    misbehaviour: Misbehaviour
    ca_cert: str
    storages: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    pages: dict[tuple[str, ...], dict[str, Any]] = field(default_factory=dict)

    def machine(self, call: Call) -> Machine:
        """The machine that a call is about.

        Raises:
            Refusal: There is none.
        """
        return self.machine_of(call.ids["server_id"])

    def machine_of(self, server_id: str) -> Machine:
        """The machine of that id.

        Raises:
            Refusal: There is none.
        """
        found = next((each for each in self.hypervisor.inventory.machines if each.id == server_id), None)
        if found is None:
            raise Refusal(404, "the server does not exist")
        return found

    def snapshot(self, machine: Machine, snapshot_id: str) -> Snapshot:
        """A snapshot of a machine.

        Raises:
            Refusal: There is none of that id.
        """
        found = machine.snapshot(snapshot_id)
        if found is None:
            raise Refusal(404, "the snapshot does not exist")
        return found

    def start(self, action: str, machine: Machine, work: Work) -> Task:
        """Begin a task about a machine."""
        return self.tasks.start(action, machine.id, machine.name, work)

    def refuse_busy(self, machine: Machine) -> None:
        """See that nothing else is done with a machine.

        Raises:
            Refusal: Something is, or the lab was told to say so.
        """
        if self.tasks.of(machine.id) or self.misbehaviour.due("busy"):
            raise Refusal(409, "another task is running on the server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the interface.

    Attributes:
        method: Of HTTP.
        path: As it was sent, without the query.
        ids: Of the path.
        query: What follows the path.
        headers: With names in lower case.
        body: As it was sent.
    """

    method: str
    path: str
    ids: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def members(self) -> dict[str, Any]:
        """The body, which is a JSON object; one that is not there is empty.

        Raises:
            Refusal: It is something else.
        """
        try:
            return msgspec.json.decode(self.body or b"{}", type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError):
            raise Refusal(400, "the body is not a JSON object") from None


Handler = Callable[[Site, Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One call that there is.

    Attributes:
        method: Of HTTP.
        path: With its ids in braces.
        handler: What answers it.
        open: Whether everybody may call it.
    """

    method: str
    path: str
    handler: Handler
    open: bool = False
