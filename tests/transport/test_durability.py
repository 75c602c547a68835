from __future__ import annotations

from typing import cast

import pytest

from sfasync.transport.connection import Connection
from sfasync.transport.durability import Durability


class Line:
    """As much of a connection as the account needs."""

    def __init__(self) -> None:
        self.alive = True
        self.lent = False


def line() -> Connection:
    return cast(Connection, Line())


def cut(*connections: Connection) -> None:
    for connection in connections:
        cast(Line, connection).alive = False


def flush(account: Durability) -> None:
    for group in account.waiting():
        with group.flushing():
            assert group.eldest is not None


def test_what_a_dead_group_had_not_flushed_is_lost_until_it_is_written_again() -> None:
    first, second = line(), line()
    account = Durability(first)
    account.acknowledged(first, 0, 100, durable=False)
    flush(account)
    account.acknowledged(first, 100, 200, durable=False)
    account.acknowledged(first, 500, 600, durable=True)
    assert account.lost() == []
    cut(first)
    account.opened(second)
    assert account.lost() == [(100, 200)]
    account.acknowledged(second, 150, 300, durable=False)
    assert account.lost() == [(100, 150)]
    account.acknowledged(second, 100, 150, durable=True)
    assert account.lost() == []
    assert [list(group.unflushed) for group in account.waiting()] == [[(150, 300)]]


def test_connections_opened_together_vouch_for_each_other() -> None:
    first, second = line(), line()
    account = Durability(first)
    account.joined(second)
    account.acknowledged(first, 0, 100, durable=False)
    cut(first)
    account.opened(line())
    assert account.lost() == []
    (group,) = account.waiting()
    assert group.eldest is second
    cut(second)
    assert account.lost() == [(0, 100)]


def test_a_replacement_does_not_vouch_for_those_it_replaced() -> None:
    first, second, third = line(), line(), line()
    account = Durability(first)
    account.joined(second)
    cut(first)
    account.opened(third)
    account.acknowledged(second, 0, 100, durable=False)  # the third was open then, and may lead to another server
    cut(second)
    assert account.lost() == [(0, 100)]


def test_a_flush_speaks_for_what_came_before_it() -> None:
    first = line()
    account = Durability(first)
    account.acknowledged(first, 0, 100, durable=False)
    (group,) = account.waiting()
    with group.flushing():
        account.acknowledged(first, 50, 150, durable=False)
    assert list(group.unflushed) == [(50, 150)]
    with pytest.raises(ConnectionError), group.flushing():
        account.acknowledged(first, 200, 300, durable=False)
        raise ConnectionError
    assert list(group.unflushed) == [(50, 150), (200, 300)]


def test_writes_all_over_the_disk_take_bounded_memory() -> None:
    first = line()
    account = Durability(first)
    for offset in range(0, 40_000 * 1024, 1024):
        account.acknowledged(first, offset, offset + 512, durable=False)
    (group,) = account.waiting()
    assert len(group.unflushed) <= 1 << 14
    assert group.unflushed.covers(0, 512)
