"""A lab in this process: storage, machines, data service and interface, put together."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import UsageError, printable
from ..models import ExportAddress, TlsStyle
from ..platform.scp.settings import ScpSettings
from ..programs import require_tools
from ..tasks import finish
from ..transport.export import open_export
from .authority import Authority
from .gateway import Gateway
from .guest import fill, scatter
from .hypervisor import Hypervisor
from .leases import leases
from .machines import Inventory, Machine, MachineSpec, Snapshot
from .misbehaviour import Misbehaviour
from .openapi.accounts import Accounts
from .openapi.app import application
from .openapi.site import Site
from .openapi.tasks import Tasks
from .serving import listening, served
from .settings import password_of, settings
from .storage import storage
from .trouble import Trouble

TOOLS = {"qemu-storage-daemon": "qemu-system-common"}
"""Programs that a lab starts, and the Debian packages that bring them."""

_CLOSE_SECONDS = 20.0


class Lab:
    """A platform to try things on; an asynchronous context manager.

    Everything listens on 127.0.0.1. Leaving the context ends all of it; what is in `directory` stays, and another lab
    can go on from there.

    Args:
        machines: Machines that are made, unless there are some of the same name.
        directory: Where disks are kept; None for a temporary directory, which goes with the lab.
        sockets: Where Unix sockets are made, with a path that is short enough; None for a temporary directory.
        lease_speed: Seconds of a lease in a second of ours, so that a test need not wait for a minute.
        tls_style: How TLS begins at the data service.

    Raises:
        UsageError: A program is missing.
        SourceError: A program does not start.
        StorageError: The directory cannot be used.
    """

    def __init__(
        self,
        machines: Sequence[MachineSpec | str] = (),
        *,
        directory: Path | None = None,
        sockets: Path | None = None,
        lease_speed: float = 1.0,
        tls_style: TlsStyle = "starttls",
    ) -> None:
        self._wanted = [MachineSpec.parse(each) if isinstance(each, str) else each for each in machines]
        self._directory = directory
        self._sockets = sockets
        self._lease_speed = lease_speed
        self._tls_style = tls_style
        self._stack = AsyncExitStack()
        self._site: Site | None = None
        self._port = 0
        self._authority = Authority("sfasync lab")

    async def __aenter__(self) -> Self:
        require_tools("the lab", TOOLS)
        async with AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._site = None
        await finish(self._stack.aclose(), _CLOSE_SECONDS)

    # --- what it is reached by ---------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where the interface is."""
        return f"https://127.0.0.1:{self._port}"

    @property
    def ca_pem(self) -> bytes:
        """The authority that vouches for the interface; that of the data service is in each backup resource."""
        return self._authority.pem

    @property
    def accounts(self) -> Accounts:
        """The user that may call."""
        return self.site.accounts

    @property
    def port(self) -> int:
        """Where the data service is."""
        return self.site.gateway.port

    @property
    def settings(self) -> ScpSettings:
        """What a client needs to know of it; it logs in with the password."""
        return settings(
            url=self.url,
            ca_file=self._ca_file,
            credentials=password_of(self.accounts),
            port=self.port,
            tls_style=self._tls_style,
        )

    # --- what is in it -----------------------------------------------------------------------------------------------

    @property
    def site(self) -> Site:
        """The platform behind the interface."""
        assert self._site is not None, "the lab is used inside of its context"
        return self._site

    def vm(self, reference: str) -> LabMachine:
        """A machine, by its name or an id.

        Raises:
            UsageError: There is none.
        """
        machine = self.site.hypervisor.inventory.machine(reference)
        if machine is None:
            raise UsageError(f"the lab has no VM '{printable(reference)}'")
        return LabMachine(self.site.hypervisor, machine)

    @property
    def vms(self) -> list[LabMachine]:
        """All machines."""
        return [LabMachine(self.site.hypervisor, machine) for machine in self.site.hypervisor.inventory.machines]

    def misbehave(self, fault: str, count: int = 1, *, path: str = "") -> None:
        """Let something go wrong, as of `Misbehaviour.plan`; what is not about a call happens by itself."""
        self.site.misbehaviour.plan(fault, count, path=path)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _open(self, stack: AsyncExitStack) -> None:
        directory = self._directory or stack.enter_context(_temporary())
        sockets = self._sockets or stack.enter_context(_temporary())
        self._ca_file = directory / "ca.pem"
        self._ca_file.write_bytes(self.ca_pem)
        hypervisor = Hypervisor(directory, await stack.enter_async_context(storage(sockets)), Inventory.load(directory))
        await hypervisor.open()
        for spec in self._wanted:
            if hypervisor.inventory.machine(spec.name) is None:
                await hypervisor.add(spec)
        misbehaviour = Misbehaviour()
        granted = await stack.enter_async_context(leases(hypervisor, misbehaviour, speed=self._lease_speed))
        cluster = Authority("SANGFOR HCI")
        trouble = Trouble(misbehaviour, hypervisor, granted)
        stack.push_async_callback(trouble.aclose)
        gateway = Gateway(sockets / "nbd", cluster.context, granted.admit, moved=trouble.moved, style=self._tls_style)
        await gateway.start()
        stack.push_async_callback(gateway.kill)
        tasks = Tasks(misbehaviour)
        stack.push_async_callback(tasks.aclose)
        self._site = Site(
            hypervisor=hypervisor,
            leases=granted,
            gateway=gateway,
            accounts=Accounts(),
            tasks=tasks,
            misbehaviour=misbehaviour,
            ca_cert=cluster.base64_der,
        )
        listener = listening()
        self._port = listener.getsockname()[1]
        await stack.enter_async_context(served(application(self._site), listener, self._authority.context))


class LabMachine:
    """A machine of a lab.

    Attributes:
        machine: What the lab knows of it.
    """

    def __init__(self, hypervisor: Hypervisor, machine: Machine) -> None:
        self._hypervisor = hypervisor
        self.machine = machine

    @property
    def id(self) -> str:
        """Its id on the management plane."""
        return self.machine.id

    @property
    def snapshots(self) -> list[Snapshot]:
        """Its snapshots, from old to new."""
        return list(self.machine.snapshots)

    def disk(self, disk_id: str) -> LabDisk:
        """A disk.

        Raises:
            UsageError: There is none of that id.
        """
        if self.machine.disk(disk_id) is None:
            known = ", ".join(disk.id for disk in self.machine.disks)
            raise UsageError(f"VM '{printable(self.machine.name)}' has no disk '{printable(disk_id)}', but {known}")
        return LabDisk(self._hypervisor, self.machine, disk_id)

    def switch(self, *, running: bool) -> None:
        """Switch it on or off, at once."""
        self._hypervisor.switch(self.machine, running=running)


class LabDisk:
    """A disk as its guest has it."""

    def __init__(self, hypervisor: Hypervisor, machine: Machine, disk_id: str) -> None:
        self._hypervisor = hypervisor
        self._machine = machine
        self._id = disk_id

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[ExportAddress]:
        """Where the disk is read and written, for the time of the block.

        Raises:
            UsageError: The machine is switched off.
        """
        async with self._hypervisor.guest(self._machine, self._id) as address:
            yield address

    async def write(self, offset: int, data: bytes) -> None:
        """Write as the guest would, durably.

        Raises:
            UsageError: The machine is switched off, or the range is not inside of the disk.
        """
        async with self.opened() as address, await open_export(address) as disk:
            await disk.write(offset, data)
            await disk.flush()

    async def fill(self, offset: int, length: int | None, pattern: int) -> int:
        """Write one byte over and over; up to the disk's end without a length.

        Returns:
            Bytes written.

        Raises:
            UsageError: As of `write`.
        """
        async with self.opened() as address, await open_export(address) as disk:
            length = max(0, disk.size - offset) if length is None else length
            await fill(disk, offset, length, pattern)
            return length

    async def scatter(self, count: int, seed: int) -> int:
        """Write random data to random places, as of `guest.scatter`.

        Raises:
            UsageError: The machine is switched off.
        """
        async with self.opened() as address, await open_export(address) as disk:
            return await scatter(disk, count, seed)


@contextmanager
def _temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sfasync-lab-") as directory:
        yield Path(directory)
