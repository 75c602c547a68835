"""A double of the QEMU guest agent: speaks its protocol, and freezes nothing (qga, ``qapi-schema.json``)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


class Agent:
    """What a guest's agent does.

    Attributes:
        frozen: Whether the file systems are frozen.
        heard: Commands, but for those that only synchronize.
        refuses: Commands that fail.
        silent: Commands that are carried out, but not answered; each entry counts once.
        greeting: Bytes sent to each client before anything else: what is left of answers to others.
    """

    def __init__(self) -> None:
        self.frozen = False
        self.heard: list[str] = []
        self.refuses: set[str] = set()
        self.silent: list[str] = []
        self.greeting = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Talk to one client until it goes."""
        try:
            writer.write(self.greeting)
            while line := await reader.readline():
                answer = self._answer(json.loads(line))
                if answer is not None:
                    writer.write(json.dumps(answer).encode() + b"\n")
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    def _answer(self, message: dict[str, Any]) -> dict[str, Any] | None:
        command = message["execute"]
        if command == "guest-sync":
            return {"return": message["arguments"]["id"]}
        self.heard.append(command)
        if command in self.refuses:
            return {"error": {"class": "GenericError", "desc": "the guest\ndoes not want to"}}
        self.frozen = command == "guest-fsfreeze-freeze"
        if command in self.silent:
            self.silent.remove(command)
            return None
        return {"return": 2}


@asynccontextmanager
async def guest_agent(socket: Path) -> AsyncIterator[Agent]:
    """An agent on a Unix socket for the time of the block."""
    agent = Agent()
    clients: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        clients.add(task)
        await agent.serve(reader, writer)

    server = await asyncio.start_unix_server(accept, path=socket)
    try:
        yield agent
    finally:
        server.close()
        if clients:
            await asyncio.wait(clients)
