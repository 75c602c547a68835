"""Serves an ASGI application for the time of a block."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette


class _Server(uvicorn.Server):
    """uvicorn, which leaves the process's signals alone, and does not look twice a second whether it should end.

    Attributes:
        listening: Set when it listens.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let it end."""
        self.should_exit = True
        self._stopping.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # which writes the date that answers carry
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._stopping.wait()


def listening(port: int = 0) -> socket.socket:
    """A socket on a port of 127.0.0.1; 0 for a free one.

    Raises:
        OSError: The port is taken.
    """
    listener = socket.create_server(("127.0.0.1", port))
    # asyncio does so only for sockets that name their protocol; each answer took 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


@asynccontextmanager
async def served(app: Starlette, listener: socket.socket, context: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    """An application on a socket, for the time of the block; with TLS if there is a context."""
    config: dict[str, Any] = {"lifespan": "off", "log_config": None, "access_log": False, "server_header": False}
    server = _Server(uvicorn.Config(app, http="h11", timeout_graceful_shutdown=1, **config))
    server.config.load()
    server.config.ssl = context
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="lab: interface")
    try:
        await server.listening.wait()
        yield
    finally:
        server.stop()
        await serving
