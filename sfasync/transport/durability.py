"""Which writes are durable, when connections come and go.

An acknowledged write may be in the server's memory only. A flush makes it durable, if the server that answers the flush
is the one that acknowledged the write: a server that was started again in between has forgotten the write, and flushes
with success. NBD has no way to tell a lost connection from a lost server. So connections stand in groups:

- Those that were opened together, at the beginning, are one group: the server said that they share one cache.
- One that replaced another is a group of its own: who knows what it is connected to.

A flush vouches for the writes of its own group. What a group without a living connection had not flushed is lost, until
it is written again.

::

    group 1   a  ww ww.            the writes of group 1 since its flush are lost with its last connection
              b  w f ww.
    group 2   c         oww f      this flush vouches for those of c only
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ..nbd.coverage import Coverage
from .connection import Connection

_MOST: Final = 1 << 14
"""Ranges remembered for a group; with more of them, neighbours are joined over what is between them."""


class Group:
    """Connections to one and the same server, and what they wrote.

    Attributes:
        connections: Oldest first.
        unflushed: Ranges acknowledged, and not known to be durable.
    """

    def __init__(self, connection: Connection) -> None:
        self.connections = [connection]
        self.unflushed = Coverage()
        self._since: Coverage | None = None  # the same, of those acknowledged since the flush under way was sent

    @property
    def eldest(self) -> Connection | None:
        """The living connection that was opened first, rather one that no thread has."""
        alive = [connection for connection in self.connections if connection.alive]
        return min(alive, key=lambda connection: connection.lent, default=None)

    def wrote(self, start: int, end: int) -> None:
        for ranges in self._accounts():
            ranges.merge(start, end)
            ranges.coarsen(_MOST)

    def superseded(self, start: int, end: int) -> None:
        """These bytes were written over by another group, or are durable."""
        for ranges in self._accounts():
            ranges.remove(start, end)

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """A flush is sent in this block, which returns when it has succeeded; one at a time."""
        self._since = Coverage()
        try:
            yield
            self.unflushed = self._since
        finally:
            self._since = None

    def _accounts(self) -> list[Coverage]:
        return [self.unflushed] if self._since is None else [self.unflushed, self._since]


class Durability:
    """Keeps account of acknowledged writes by range. Ranges that touch are one: a disk written in order takes few.

    Args:
        first: The first connection of the export.
    """

    def __init__(self, first: Connection) -> None:
        self._groups = [Group(first)]

    def joined(self, connection: Connection) -> None:
        """A further connection was opened together with the first one."""
        self._groups[0].connections.append(connection)

    def opened(self, connection: Connection) -> None:
        """A connection was opened in place of a lost one."""
        self._groups = [group for group in self._groups if group.unflushed or group.eldest]
        self._groups.append(Group(connection))

    def acknowledged(self, connection: Connection, start: int, end: int, *, durable: bool) -> None:
        """The bytes from `start` to before `end`, more than none, were written now, over this connection."""
        for group in self._groups:
            if connection in group.connections and not durable:
                group.wrote(start, end)
            else:
                group.superseded(start, end)

    def lost(self) -> list[tuple[int, int]]:
        """The ranges (start, end) that nobody can make durable any more; they have to be written again."""
        lost = Coverage()
        for group in self._groups:
            if group.eldest is None:
                for start, end in group.unflushed:
                    lost.merge(start, end)
        return list(lost)

    def waiting(self) -> list[Group]:
        """The groups that have something to flush."""
        return [group for group in self._groups if group.unflushed]
