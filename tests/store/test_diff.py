"""Where two backups differ."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sfasync.errors import BackupNotFoundError, IntegrityError
from sfasync.models import Difference
from sfasync.store.diff import changed
from sfasync.store.pages import PageBuilder, TreeReader
from sfasync.store.repository import Repository
from sfasync.store.seal import BlobKind
from sfasync.store.tree import ZERO, Geometry

from .support import CHUNK, back_up, noise

FULL = 128 * 128 + 5  # chunks: three levels of pages

Contents = dict[int, int]


class Pages:
    """A store of pages that counts what is read from it."""

    def __init__(self) -> None:
        self.pages: dict[bytes, bytes] = {}
        self.read = 0

    def tree(self, size: int, contents: Contents) -> TreeReader:
        """A disk whose chunks have these digests; the others are zeros."""
        geometry = Geometry(size, CHUNK)
        builder = PageBuilder(geometry, self.store)
        count, position = geometry.count(0), 0
        for index in sorted(contents):
            if index < count:
                if position < index:
                    builder.put_zeros(position, index - position)
                builder.put(index, digest(contents[index]))
                position = index + 1
        if position < count:
            builder.put_zeros(position, count - position)
        return TreeReader(geometry, builder.root(), self.load)

    def store(self, page: bytes, name: bytes) -> None:
        self.pages[name] = page

    def load(self, name: bytes, length: int) -> bytes:
        self.read += 1
        page = self.pages[name]
        assert len(page) == length
        return page


def digest(content: int) -> bytes:
    return content.to_bytes(32, "big")


def expected(size: int, one: Contents, two: Contents, ends: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The slow and obvious way; `ends` are the sizes of both."""
    for index in range(-(-size // CHUNK)):
        lengths = {min(CHUNK, end - index * CHUNK) for end in ends}
        first, second = one.get(index, 0), two.get(index, 0)
        if first != second or (len(lengths) > 1 and first):
            yield index * CHUNK, min(lengths)


SIZES = st.one_of(
    st.sampled_from([0, 1, CHUNK, CHUNK + 1, 128 * CHUNK, 128 * CHUNK + 1, 300 * CHUNK, FULL * CHUNK - 7]),
    st.integers(0, 600 * CHUNK),
)
CONTENTS = st.dictionaries(st.integers(0, 600), st.integers(0, 2), max_size=12)


@given(SIZES, SIZES, CONTENTS, CONTENTS)
@example(FULL * CHUNK, CHUNK, {0: 1}, {0: 1})
@settings(deadline=None, max_examples=150)
def test_it_is_what_a_comparison_of_all_chunks_finds(one: int, two: int, first: Contents, second: Contents) -> None:
    pages = Pages()
    found = list(changed(pages.tree(one, first), pages.tree(two, second)))
    assert found == list(expected(min(one, two), first, second, (one, two)))


def test_equal_subtrees_are_not_read() -> None:
    pages = Pages()
    size = 128 * 128 * 10 * CHUNK
    contents = {index * 128: 1 for index in range(128 * 10)}
    one, two = pages.tree(size, contents), pages.tree(size, contents | {128 * 77: 2})
    assert list(changed(one, pages.tree(size, contents))) == []
    assert pages.read == 0
    assert list(changed(one, two)) == [(128 * 77 * CHUNK, CHUNK)]
    assert pages.read == 6, "three levels of either"


def test_the_zero_digest_is_none() -> None:
    assert digest(0) == ZERO


async def test_disks_of_two_backups(repository: Repository) -> None:
    base = noise(6 * CHUNK + 100, 1)
    other = bytearray(base)
    other[CHUNK + 5] ^= 1
    other[2 * CHUNK] ^= 1
    other[-1] ^= 1
    first = await back_up(repository, "a", {"same": base, "vda": base, "gone": b"x", "short": base, "empty": b""})
    second = await back_up(
        repository, "a", {"vda": bytes(other), "same": base, "short": base[: 2 * CHUNK], "empty": b"", "new": b"yz"}
    )
    found = [difference async for difference in repository.diff(first, second)]
    assert found == [
        Difference("vda", "changed", CHUNK, 2 * CHUNK),
        Difference("vda", "changed", 6 * CHUNK, 100),
        Difference("gone", "removed", 0, 1),
        Difference("short", "removed", 2 * CHUNK, len(base) - 2 * CHUNK),
        Difference("new", "added", 0, 2),
    ]
    assert [difference async for difference in repository.diff(second, first, "short")] == [
        Difference("short", "added", 2 * CHUNK, len(base) - 2 * CHUNK)
    ]
    assert [difference async for difference in repository.diff(first, first)] == []
    with pytest.raises(BackupNotFoundError, match="neither backup has a disk 'none'"):
        await anext(repository.diff(first, second, "none"))


async def test_no_chunk_is_read(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await back_up(repository, "a", {"vda": noise(3 * CHUNK, 1)})
    second = await back_up(repository, "a", {"vda": noise(3 * CHUNK, 2)})
    kinds = []
    read = repository._blobs.read

    def counted(kind: BlobKind, name: bytes, length: int) -> bytes:
        kinds.append(kind)
        return read(kind, name, length)

    monkeypatch.setattr(repository._blobs, "read", counted)
    found = [difference async for difference in repository.diff(first, second)]
    assert found == [Difference("vda", "changed", 0, 3 * CHUNK)]
    assert kinds == [BlobKind.PAGE, BlobKind.PAGE]


async def test_a_lost_page_is_damage(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await back_up(repository, "a", {"vda": noise(3 * CHUNK, 1)})
    second = await back_up(repository, "a", {"vda": noise(3 * CHUNK, 2)})

    def lost(kind: BlobKind, name: bytes, length: int) -> bytes:
        raise IntegrityError("lost")

    monkeypatch.setattr(repository._blobs, "read", lost)
    with pytest.raises(IntegrityError) as caught:
        await anext(repository.diff(first, second))
    assert caught.value.disk == "vda"
