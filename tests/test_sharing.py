"""Readers that several threads share."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from sfasync.errors import SourceError
from sfasync.sharing import shared

CONTENT = random.Random(7).randbytes(1 << 16)


class Disk:
    """Its readers; a call waits for `answers`, if there is something to wait for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reading = self.most = 0
        self.order: list[End] = []
        self.answers: threading.Event | None = None
        self.asked = threading.Event()


class End:
    def __init__(self, disk: Disk) -> None:
        self.waited = 0.0
        self._disk = disk
        self._busy = threading.Lock()
        self._stopped = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._alone():
            self._disk.asked.set()
            if self._disk.answers is not None:
                assert self._disk.answers.wait(10)
                self.waited += 1.0
            if self._stopped:
                raise SourceError("stopped")
            buffer[:] = CONTENT[offset : offset + len(buffer)]

    def stop(self) -> None:
        self._stopped = True
        if self._disk.answers is not None:
            self._disk.answers.set()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        assert self._busy.acquire(blocking=False), "two threads have one reader"
        disk = self._disk
        with disk.lock:
            disk.reading += 1
            disk.most = max(disk.most, disk.reading)
            disk.order.append(self)
        try:
            yield
        finally:
            with disk.lock:
                disk.reading -= 1
            self._busy.release()


def test_each_byte_and_no_more_at_a_time_than_there_are() -> None:
    disk = Disk()
    readers = shared([End(disk) for _ in range(2)], 5)

    def read(number: int) -> None:
        chance = random.Random(number)
        for _ in range(200):
            offset = chance.randrange(len(CONTENT) - 100)
            buffer = bytearray(100)
            readers[number].read_into(offset, memoryview(buffer))
            assert buffer == CONTENT[offset : offset + 100]

    with ThreadPoolExecutor(5) as threads:
        list(threads.map(read, range(5)))
    assert disk.most <= 2
    assert len(disk.order) == 1000


def test_the_last_one_is_the_next_one() -> None:
    disk = Disk()
    first, second, _ = shared([End(disk) for _ in range(3)], 3)
    for reader in (first, second, first):
        reader.read_into(0, memoryview(bytearray(5)))
    assert len(set(disk.order)) == 1


def test_who_waits_for_one_waits_for_the_server() -> None:
    disk = Disk()
    disk.answers = threading.Event()
    first, second = shared([End(disk)], 2)
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(first.read_into, 0, memoryview(bytearray(5)))
        assert disk.asked.wait(10)
        other = threads.submit(second.read_into, 0, memoryview(bytearray(5)))
        time.sleep(0.05)
        assert not other.done()
        disk.answers.set()
        one.result(10)
        other.result(10)
    assert first.waited == pytest.approx(1.0, abs=0.01)
    assert 1.02 < second.waited < 3


@pytest.mark.parametrize("has_one", [True, False])
def test_stopping_who_reads_and_who_waits(has_one: bool) -> None:
    disk = Disk()
    disk.answers = threading.Event()
    end = End(disk)
    reads, waits = shared([end], 2)
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(reads.read_into, 0, memoryview(bytearray(5)))
        assert disk.asked.wait(10)
        other = threads.submit(waits.read_into, 0, memoryview(bytearray(5)))
        if has_one:
            reads.stop()
            with pytest.raises(SourceError, match="stopped"):
                one.result(10)
            with pytest.raises(SourceError, match="stopped"):  # its reader is given up
                other.result(10)
        else:
            waits.stop()
            with pytest.raises(SourceError, match="nothing more"):
                other.result(10)
            assert not one.done()
            disk.answers.set()
            one.result(10)
    with pytest.raises(SourceError):
        (reads if has_one else waits).read_into(0, memoryview(bytearray(5)))


def test_a_reader_that_failed_is_given_back() -> None:
    disk = Disk()
    end = End(disk)
    (reader,) = shared([end], 1)
    end._stopped = True
    for _ in range(2):
        with pytest.raises(SourceError, match="stopped"):
            reader.read_into(0, memoryview(bytearray(5)))
