"""What receiving costs, without start-up, engine or store: ``python -m bench.micro_receive``. Needs nbdkit."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from itertools import cycle
from pathlib import Path

from sfasync.cli.bench.servers import nbdkit
from sfasync.transport.export import open_export
from sfasync.units import GiB, KiB, MiB

_SIZE = GiB
_DEPTH = 16


async def receive(uri: str, request: int) -> None:
    """Read the disk, and print what that took."""
    async with await open_export(uri) as export:
        offsets = iter(range(0, _SIZE, request))

        async def lane() -> None:
            buffer = memoryview(bytearray(request))
            for offset in offsets:
                await export.read_into(offset, buffer)

        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(lane() for _ in range(_DEPTH)))
        taken = {"wall s/GiB": time.perf_counter() - began, "CPU s/GiB": time.process_time() - cpu}
    case = f"requests of {request // KiB} KiB"
    print(json.dumps({"case": case, **{name: round(value, 3) for name, value in taken.items()}}), flush=True)


async def main() -> None:
    """Measure the sizes of request that matter, three times each, in turn."""
    with tempfile.TemporaryDirectory(prefix="bench-") as sockets:
        async with nbdkit(Path(sockets), "memory", str(_SIZE)) as uri:
            for request, _ in zip(cycle((256 * KiB, 512 * KiB, MiB)), range(9), strict=False):
                await receive(uri, request)


if __name__ == "__main__":
    asyncio.run(main())
