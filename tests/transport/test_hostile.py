"""Every way to be hostile that we could think of ends in a typed error: in time, in bounds, in one line."""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sfasync import Engine, Repository
from sfasync.errors import SfasyncError
from sfasync.models import ExportAddress, Timeouts, TlsPolicy
from sfasync.transport.export import open_export
from sfasync.units import MiB

from ..support import peer
from ..support.behaviours import BEHAVIOURS, READ, SIZE, THREATS, Behaviour
from ..support.liar import Client, Script, liar

SECONDS = 15.0
"""Of the processor; of the clock a few times as many, for others may use the processor too."""
ALLOCATED = 64 * MiB
HURRIED = Timeouts(connect=0.8, stall=0.3, request=0.6, close=0.2)

HELD_ELSEWHERE = {
    "T13": "tests/transport/test_tls_matrix.py",
    "T15": "tests/transport/test_tls_matrix.py",
    "T16": "tests/test_tls.py",
}
"""Threats that need more than a script: which module holds them, and names them."""


@pytest.fixture
def memory() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def played(behaviour: Behaviour, certificates: Path) -> Script:
    """A behaviour as a script for the liar; at its end, silence."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")

    async def script(client: Client) -> None:
        await behaviour.script(client, context)
        await client.silence()

    return script


async def suffer(behaviour: Behaviour, address: ExportAddress) -> SfasyncError:
    """Do what the behaviour is aimed at, and look at what is left of the connection."""
    timeouts = Timeouts() if behaviour.patient else HURRIED
    if behaviour.asking is not None:
        with pytest.raises(SfasyncError) as caught:
            await behaviour.asking(address, timeouts)
        return caught.value
    assert behaviour.using is not None
    if not behaviour.patient:
        timeouts = replace(timeouts, connect=10.0)  # it is the export that is slow, not the machine
    async with await open_export(address, timeouts=timeouts) as export:
        with pytest.raises(SfasyncError) as caught:
            await behaviour.using(export)
        if behaviour.lives:
            assert await export.read(0, READ) == bytes(READ)
            assert export.connections == 1
        else:
            with pytest.raises(SfasyncError):
                await export.read(0, READ)
            assert export.connections == 0
    return caught.value


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=[f"{each.threat}-{each.name}" for each in BEHAVIOURS])
async def test_hostile_servers(behaviour: Behaviour, certificates: Path, memory: None) -> None:
    async with liar(played(behaviour, certificates)) as address:
        if behaviour.tls is not None:
            policy = TlsPolicy(ca_file=certificates / "ca-cert.pem", style=behaviour.tls)
            address = ExportAddress(socket=address.socket, tls=policy)
        computed = time.process_time()
        async with asyncio.timeout(4 * SECONDS):
            error = await suffer(behaviour, address)
        computed = time.process_time() - computed
        _, allocated = tracemalloc.get_traced_memory()
    message = str(error)
    assert type(error) is behaviour.error, message
    assert error.exit_code == behaviour.error.exit_code == (13 if behaviour.error.code == "tls" else 20)
    assert re.search(behaviour.says, message), message
    assert message.isprintable()
    assert len(message) < 1024
    assert computed < SECONDS
    assert allocated < ALLOCATED


async def test_a_disk_that_changes_its_mind_is_asked_once(tmp_path: Path) -> None:
    """T8: what is digested, stored and restored is one answer, because no byte is asked for twice."""
    said: dict[int, bytes] = {}
    chance = random.Random(1)

    async def script(client: Client) -> None:
        await client.open(SIZE)
        while (request := await client.request()).kind != peer.DISC:
            if request.kind == peer.BLOCK_STATUS:
                await client.say(peer.status(request.cookie, [(request.length, 0)]))
                continue
            assert request.offset not in said
            said[request.offset] = chance.randbytes(request.length)
            await client.say(peer.data(request.cookie, request.offset, said[request.offset], done=True))

    async with (
        liar(script) as address,
        await Repository.open(tmp_path / "repository", create=True) as repository,
        Engine(repository) as engine,
    ):
        backup = await engine.backup_vm("web-01", disks={"vda": address})
        assert (await engine.verify(backup.id, data=True)).ok
        await engine.restore_vm(backup.id, to=tmp_path, verify_after=True)
    assert (tmp_path / "vda.raw").read_bytes() == b"".join(said[offset] for offset in sorted(said))
    assert sum(map(len, said.values())) == SIZE


def test_every_threat_is_held() -> None:
    assert len({behaviour.name for behaviour in BEHAVIOURS}) == len(BEHAVIOURS) >= 60
    met = {behaviour.threat for behaviour in BEHAVIOURS}
    assert met <= set(THREATS)
    assert met | set(HELD_ELSEWHERE) == set(THREATS)
    root = Path(__file__).parents[2]
    for threat, module in HELD_ELSEWHERE.items():
        assert re.search(rf"\b{threat}\b", (root / module).read_text()), f"{module} does not name {threat}"
