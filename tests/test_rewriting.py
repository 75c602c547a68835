from __future__ import annotations

import pytest

from sfasync.errors import WritesLostError
from sfasync.rewriting import make_durable

from .support.memory import MemoryDisk


class ForgettingDisk(MemoryDisk):
    """Its flush tells, as often as it is told to, that some ranges are lost."""

    def __init__(self, losses: list[list[tuple[int, int]]]) -> None:
        super().__init__(bytes(64))
        self.losses = losses

    async def flush(self) -> bool:
        await super().flush()
        if self.losses:
            raise WritesLostError("lost", ranges=self.losses.pop(0))
        return True


async def test_what_was_lost_is_written_again_until_a_flush_succeeds() -> None:
    disk = ForgettingDisk([[(0, 8), (16, 24)], [(16, 20)]])
    written: list[tuple[int, int]] = []

    async def rewrite(start: int, end: int) -> None:
        written.append((start, end))

    assert await make_durable(disk, rewrite, attempts=5) is True
    assert written == [(0, 8), (16, 24), (16, 20)]
    assert disk.flushes == 3


@pytest.mark.parametrize("attempts", [1, 3])
async def test_it_ends_when_connections_are_lost_each_time(attempts: int) -> None:
    disk = ForgettingDisk([[(0, 8)]] * 9)
    count = 0

    async def rewrite(start: int, end: int) -> None:
        nonlocal count
        count += 1

    with pytest.raises(WritesLostError) as caught:
        await make_durable(disk, rewrite, attempts=attempts)
    assert (caught.value.offset, caught.value.length, caught.value.exit_code) == (0, 8, 21)
    assert (disk.flushes, count) == (attempts, attempts - 1)
