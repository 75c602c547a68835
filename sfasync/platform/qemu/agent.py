"""The guest's file systems, frozen for a moment by its agent (QEMU guest agent, ``guest-fsfreeze-*``)."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from ...errors import PlatformError, SfasyncError, printable
from ...tasks import finish
from .settings import QemuTimeouts, QemuVm

_logger = logging.getLogger(__name__)

_LINE: Final = 64 << 10
_STALE: Final = 64
"""Answers to somebody else's commands that may stand before ours."""

_AGAIN: Final = 0.5


class _Agent:
    """A connection to an agent, which carries out one command at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        self._reader = reader
        self._writer = writer
        self._name = name

    async def synchronize(self) -> None:
        """See that somebody answers, and skip what was meant for others (qga, ``guest-sync``)."""
        number = secrets.randbits(53)
        self._send("guest-sync", {"id": number})
        for _ in range(_STALE):
            if (await self._receive()).get("return") == number:
                return
        raise PlatformError(f"{self._name}: its guest agent does not answer what it is asked")

    async def run(self, command: str) -> object:
        """Execute a command.

        Raises:
            PlatformError: It failed.
        """
        self._send(command)
        answer = await self._receive()
        if "return" not in answer:
            error = answer.get("error")
            reason = error.get("desc") if isinstance(error, dict) else None
            raise PlatformError(f"{self._name}: its guest agent failed at {command}: {printable(str(reason))}")
        return answer["return"]

    def _send(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        message = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def _receive(self) -> dict[str, Any]:
        try:
            line = await self._reader.readuntil(b"\n")
            answer = json.loads(line.lstrip(b"\xff"))
        except asyncio.IncompleteReadError as error:
            raise PlatformError(f"{self._name}: its guest agent has gone") from error
        except (asyncio.LimitOverrunError, ValueError, RecursionError) as error:
            raise PlatformError(f"{self._name}: its guest agent says what is no answer") from error
        if not isinstance(answer, dict):
            raise PlatformError(f"{self._name}: its guest agent says what is no answer")
        return answer


@asynccontextmanager
async def quiesced(vm: str, settings: QemuVm, timeouts: QemuTimeouts) -> AsyncIterator[None]:
    """Have the guest's file systems frozen in the block, as far as that is wanted. They are thawed on every way out.

    Raises:
        PlatformError: They could not be frozen, and had to be; or they could not be thawed.
    """
    if settings.agent is None or settings.quiesce == "off":
        yield
        return
    name = f"VM {vm!r}"
    frozen = True  # until it is known that nothing was frozen
    try:
        frozen = await _freeze(name, settings, timeouts)
        yield
    finally:
        if frozen:
            await finish(_thaw_surely(name, settings.agent, timeouts), timeouts.freeze + 1.0)


async def _freeze(name: str, settings: QemuVm, timeouts: QemuTimeouts) -> bool:
    """Whether something may be frozen now."""
    assert settings.agent is not None, "without an agent nothing is frozen"
    asked = False
    try:
        async with _connected(name, settings.agent, timeouts) as agent:
            asked = True
            async with asyncio.timeout(timeouts.freeze):
                count = await agent.run("guest-fsfreeze-freeze")
    except (TimeoutError, OSError, SfasyncError) as error:
        reason = str(error) or f"it takes more than {timeouts.freeze:g} seconds"
        if settings.quiesce == "require":
            if asked:
                await finish(_thaw_surely(name, settings.agent, timeouts), timeouts.freeze + 1.0)
            raise PlatformError(f"{name}: the guest's file systems cannot be frozen: {printable(reason)}") from error
        _logger.warning("%s: its file systems are not frozen for the snapshot: %s", name, printable(reason))
        return asked
    _logger.info("%s: %s file systems are frozen", name, count)
    return True


async def _thaw_surely(name: str, agent: Path, timeouts: QemuTimeouts) -> None:
    """Thaw, over a new connection each time, until it succeeds or the time is up."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeouts.freeze
    while True:
        try:
            async with asyncio.timeout_at(end), _connected(name, agent, timeouts) as connection:
                await connection.run("guest-fsfreeze-thaw")
                return
        except (TimeoutError, OSError, SfasyncError) as error:
            if loop.time() + _AGAIN >= end:
                raise PlatformError(
                    f"{name}: THE GUEST'S FILE SYSTEMS MAY BE FROZEN STILL, its agent does not thaw them "
                    f"({printable(str(error) or 'no answer')}); run fsfreeze --unfreeze in it, or restart it"
                ) from error
        await asyncio.sleep(_AGAIN)


@asynccontextmanager
async def _connected(name: str, path: Path, timeouts: QemuTimeouts) -> AsyncIterator[_Agent]:
    async with asyncio.timeout(timeouts.connect):
        reader, writer = await asyncio.open_unix_connection(str(path), limit=_LINE)
    try:
        agent = _Agent(reader, writer, name)
        async with asyncio.timeout(timeouts.connect):
            await agent.synchronize()
        yield agent
    finally:
        writer.transport.abort()
