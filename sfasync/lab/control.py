"""Where a lab in the background takes orders: HTTP on a Unix socket that only its owner can reach."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..errors import SfasyncError
from .lab import Lab
from .orders import Fault, Power, Write


def control(lab: Lab) -> Starlette:
    """What takes the commands, inside of the lab."""

    async def show(request: Request) -> object:
        return status(lab)

    async def write(request: Request) -> object:
        wish = msgspec.json.decode(await request.body(), type=Write)
        disk = lab.vm(wish.vm).disk(wish.disk)
        if wish.random is not None:
            return {"bytes": await disk.scatter(wish.random, wish.seed)}
        return {"bytes": await disk.fill(wish.offset, wish.length, wish.pattern)}

    async def power(request: Request) -> object:
        wish = msgspec.json.decode(await request.body(), type=Power)
        lab.vm(wish.vm).switch(running=wish.running)
        return {}

    async def misbehave(request: Request) -> object:
        wish = msgspec.json.decode(await request.body(), type=Fault)
        if wish.name is None:
            lab.site.misbehaviour.behave()
        else:
            lab.misbehave(wish.name, wish.count, path=wish.path)
        return {"faults": lab.site.misbehaviour.planned}

    return Starlette(
        routes=[
            Route("/status", _answering(show)),
            *(
                Route(f"/{handler.__name__}", _answering(handler), methods=["POST"])
                for handler in (write, power, misbehave)
            ),
        ]
    )


def status(lab: Lab) -> dict[str, Any]:
    """What there is and what goes on."""
    site = lab.site
    machines = [
        {
            "name": machine.name,
            "id": machine.id,
            "vm_id": machine.number,
            "running": machine.running,
            "disks": [{"id": disk.id, "size": disk.size, "tracked": disk.bitmap is not None} for disk in machine.disks],
            "snapshots": [
                {"id": each.id, "name": each.name, "checkpoint_id": str(each.checkpoint)} for each in machine.snapshots
            ],
        }
        for machine in site.hypervisor.inventory.machines
    ]
    resources = [
        {
            "id": lease.id,
            "vm": lease.machine.name,
            "type": lease.kind,
            "status": lease.status,
            "remain_time": site.leases.remaining(lease),
            "exports": list(lease.exports),
        }
        for lease in site.leases.all()
    ]
    return {
        "url": lab.url,
        "nbd_port": lab.port,
        "vms": machines,
        "backup_resources": resources,
        "connections": site.gateway.connections,
        "tasks": [task.shown() for task in site.tasks.all() if not task.ended],
        "faults": site.misbehaviour.planned,
    }


def _answering(handler: Callable[[Request], Awaitable[object]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return _json(await handler(request))
        except (SfasyncError, msgspec.MsgspecError, OSError) as error:
            return _json({"message": str(error)}, 400)

    return answer


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
