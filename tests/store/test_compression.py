"""Every codec makes the same frames and believes the same ones, whoever made them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from itertools import product

import pytest

from sfasync.store import compression
from sfasync.store.compression import Codec, CompressionError, Direct, Parameter, Portable, codec
from sfasync.units import KiB, MiB

from .support import noise, text

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Make = Callable[[dict[int, int]], Codec]


def direct(parameters: dict[int, int]) -> Codec:
    library = compression._library()
    assert library is not None
    return Direct(library, parameters)


MAKERS: list[Make] = [direct, Portable]
PARAMETERS: dict[int, int] = {Parameter.compression_level: 1, Parameter.min_match: 6}


@pytest.fixture(params=MAKERS)
def made(request: pytest.FixtureRequest) -> Codec:
    make: Make = request.param
    return make(PARAMETERS)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    compression._library.cache_clear()
    yield
    compression._library.cache_clear()


@pytest.mark.parametrize(("makes", "opens"), list(product(MAKERS, MAKERS)))
@pytest.mark.parametrize("data", [b"a", text(5000), text(MiB), noise(300 * KiB), bytes(4 * MiB)], ids=len)
def test_one_opens_what_another_makes(makes: Make, opens: Make, data: bytes) -> None:
    frame = bytes(makes(PARAMETERS).compress(memoryview(data)))
    opener = opens(PARAMETERS)
    assert opener.gives_back(frame, data)
    buffer = bytearray(len(data))
    opener.decompress(memoryview(frame), memoryview(buffer))
    assert buffer == data


def test_frames_do_not_depend_on_the_codec() -> None:
    first, second = direct(PARAMETERS), Portable(PARAMETERS)
    for data in (text(MiB), noise(MiB), text(200 * KiB, 7)):
        assert bytes(first.compress(data)) == second.compress(data)


def test_other_data_is_noticed(made: Codec) -> None:
    data = bytearray(text(MiB))
    frame = bytes(made.compress(data))
    data[-1] ^= 1
    assert not made.gives_back(frame, data)


def test_sizes_in_any_order(made: Codec) -> None:
    """Memory of an earlier, larger blob does not show in a later one."""
    for size in (MiB, 1, 3 * MiB, 4096, MiB):
        data = text(size, size)
        frame = bytes(made.compress(data))
        buffer = bytearray(size + 2)
        made.decompress(frame, memoryview(buffer)[1:-1])
        assert buffer == b"\0" + data + b"\0"


def test_the_zeros_around_the_data_are_compared_too(made: Codec) -> None:
    data = text(5000)
    frame = bytes(made.compress(bytes(100) + data + bytes(200)))
    assert made.gives_back(frame, data, before=100, after=200)
    for changed in (b"x" + bytes(99) + data + bytes(200), bytes(100) + data + bytes(199) + b"x"):
        assert not made.gives_back(bytes(made.compress(changed)), data, before=100, after=200)
    assert not made.gives_back(frame, data[:-1] + b"?", before=100, after=200)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"garbage",
        zstd.compress(text(4999)),
        zstd.compress(text(5001)),
        zstd.compress(text(5000))[:-1],
        zstd.compress(text(5000)) + b"x",
        zstd.compress(text(5000)) * 2,
        zstd.compress(text(2500)) * 2,
        bytes.fromhex("502a4d18 04000000 00000000") + zstd.compress(text(5000)),  # a skippable frame before it
        zstd.compress(text(5000)) + bytes.fromhex("502a4d18 04000000 00000000"),
        zstd.ZstdCompressor(options={Parameter.content_size_flag: 0}).compress(text(5000), 2),
        zstd.compress(text(5000), options={Parameter.checksum_flag: 1})[:-1] + b"x",
    ],
)
def test_what_is_not_one_frame_of_that_much_is_refused(made: Codec, frame: bytes) -> None:
    with pytest.raises(CompressionError):
        made.decompress(frame, memoryview(bytearray(5000)))
    good = zstd.compress(text(5000))
    assert made.gives_back(good, text(5000)), "a failure leaves nothing behind"


def test_memory_that_cannot_be_written_is_refused(made: Codec) -> None:
    with pytest.raises((BufferError, TypeError)):
        made.decompress(zstd.compress(text(5000)), memoryview(bytes(5000)))


def test_a_parameter_that_there_is_not_is_told() -> None:
    with pytest.raises(CompressionError, match="out of bound"):
        direct({Parameter.window_log: 99})


def test_a_lack_of_memory_is_not_called_damage() -> None:
    library = compression._library()
    assert library is not None
    with pytest.raises(MemoryError):
        library.checked((1 << 64) - 64)  # ZSTD_error_memory_allocation (zstd_errors.h)


def test_contexts_go_with_their_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    library = compression._library()
    assert library is not None
    freed: list[int] = []

    def freeing(free: Callable[[int], int]) -> Callable[[int], None]:
        return lambda context: freed.append(context) if free(context) == 0 else None

    for name in ("free_compression", "free_decompression"):
        monkeypatch.setattr(library, name, freeing(getattr(library, name)))
    made = Direct(library, PARAMETERS)
    contexts = [made._decompression, made._compression]
    del made
    gc.collect()
    assert sorted(freed) == sorted(contexts)


@pytest.mark.usefixtures("no_library")
def test_the_library_is_called_where_its_names_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(codec(PARAMETERS), Direct)
    compression._library.cache_clear()
    monkeypatch.setattr(compression, "_EXTENSION", "_json")
    assert isinstance(codec(PARAMETERS), Portable)
