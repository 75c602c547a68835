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
    guest = _Guest(f"VM {vm!r}", settings.agent, timeouts)
    try:
        try:
            await guest.freeze()
        except PlatformError as error:
            if settings.quiesce == "require":
                raise
            _logger.warning("%s", error)
        yield
    finally:
        if guest.asked:
            await finish(guest.thaw(), timeouts.freeze + 1.0)


class _Guest:
    """A guest with an agent.

    Attributes:
        asked: Whether it was asked to freeze: from then on it may be frozen, whatever was answered.
    """

    def __init__(self, name: str, agent: Path, timeouts: QemuTimeouts) -> None:
        self.asked = False
        self._name = name
        self._agent = agent
        self._timeouts = timeouts

    async def freeze(self) -> None:
        """Freeze the file systems.

        Raises:
            PlatformError: They are not frozen, or not for sure.
        """
        try:
            async with _connected(self._name, self._agent, self._timeouts) as agent:
                self.asked = True
                async with asyncio.timeout(self._timeouts.freeze):
                    count = await agent.run("guest-fsfreeze-freeze")
        except (TimeoutError, OSError, SfasyncError) as error:
            reason = printable(str(error) or "its agent does not answer in time")
            raise PlatformError(
                f"{self._name}: its file systems cannot be frozen for the snapshot: {reason}"
            ) from error
        _logger.info("%s: %s file systems are frozen", self._name, count)

    async def thaw(self) -> None:
        """Thaw the file systems, over a new connection each time, until it succeeds or the time is up.

        Raises:
            PlatformError: They may be frozen still.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeouts.freeze
        while True:
            try:
                async with _connected(self._name, self._agent, self._timeouts) as agent:
                    async with asyncio.timeout(self._timeouts.connect):
                        await agent.run("guest-fsfreeze-thaw")
            except (TimeoutError, OSError, SfasyncError) as error:
                if loop.time() + _AGAIN >= end:
                    reason = printable(str(error) or "no answer")
                    raise PlatformError(
                        f"{self._name}: THE GUEST'S FILE SYSTEMS MAY BE FROZEN STILL, its agent does not thaw them "
                        f"({reason}); run fsfreeze --unfreeze in it, or restart it"
                    ) from error
            else:
                return
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
