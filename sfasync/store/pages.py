"""The page tree of a disk: building it from chunks that finish in any order, and reading it.

A page holds the digests of up to 128 children and is itself a node of the content tree; it is stored as a blob of kind
PAGE under its digest. A node of zeros has no page. Neither side ever holds more than a window of pages.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from ..errors import StateError
from .tree import DIGEST, FANOUT, ZERO, Geometry, join, page_digest, runs, split_page

MAX_OPEN = 4096
"""Pages of one disk under construction at once: 16 MiB of digests, for 512 GiB of 1 MiB chunks in any order."""

Node = tuple[int, bytes]
"""A node of a level that is not zero: its number and its digest."""

_number = itemgetter(0)

_CACHED = 64
_ZERO_PAGE = bytes(DIGEST * FANOUT)

SetNodes = Callable[[int, int, int], None]
"""Sets the nodes of a level, from the first to before the end."""


class _Page:
    """A page under construction."""

    __slots__ = ("digests", "filled")

    def __init__(self, children: int) -> None:
        self.digests = bytearray(children * DIGEST)
        self.filled = 0  # a bit for each child

    def fill(self, slot: int, digests: bytes) -> None:
        """The digests of adjacent children."""
        bits = ((1 << len(digests) // DIGEST) - 1) << slot
        if self.filled & bits:
            raise StateError("a range of the disk was written twice")
        self.filled |= bits
        self.digests[slot * DIGEST : slot * DIGEST + len(digests)] = digests

    @property
    def complete(self) -> bool:
        return self.filled == (1 << len(self.digests) // DIGEST) - 1


class PageBuilder:
    """Builds the page tree of a disk. Not for several threads at once.

    Args:
        geometry: Of the disk.
        store: Called with each page that is complete, and its digest.
    """

    def __init__(self, geometry: Geometry, store: Callable[[bytes, bytes], None]) -> None:
        self._geometry = geometry
        self._depth = geometry.depth
        self._store = store
        self._open: dict[tuple[int, int], _Page] = {}
        self._root: bytes | None = None if geometry.size else ZERO

    def put(self, index: int, digest: bytes) -> None:
        """The digest of a chunk.

        Raises:
            StateError: It has one already, or chunks finish too far apart.
        """
        self._set(0, index, digest)

    def put_zeros(self, first: int, count: int) -> None:
        """Chunks of zeros; takes no longer for many than for few."""
        self.put_sparse(first, count, ())

    def put_sparse(self, first: int, count: int, digests: Sequence[Node]) -> None:
        """Chunks next to each other, all of zeros but for those given; it is these that take time.

        Args:
            first: The first chunk.
            count: How many.
            digests: Of the chunks that are not zeros, in order.

        Raises:
            StateError: As of `put`.
        """
        self._set_sparse(0, first, first + count, digests)

    def put_kept(self, first: int, count: int, parent: TreeReader) -> None:
        """Chunks taken over from another disk: whole pages as they are, without reading what is below them.

        Raises:
            StateError: As `put`; or a chunk has another length there.
            IntegrityError: A page of the parent is lost.
        """

        def keep(level: int, first: int, end: int) -> None:
            whole = min(parent.geometry.size, self._geometry.size) // self._geometry.span(level)
            if first < whole:
                self._set(level, first, parent.digests(level, first, min(end, whole)))
            for index in range(max(first, whole), end):
                keep_last(level, index)

        def keep_last(level: int, index: int) -> None:
            """A node that is cut short, here or there."""
            if parent.geometry.length(level, index) == self._geometry.length(level, index):
                self._set(level, index, parent.digests(level, index, index + 1))
            elif level == 0:
                raise StateError(f"chunk {index} cannot be kept: it has another length in the parent")
            else:
                below = index * FANOUT
                keep(level - 1, below, below + self._geometry.children(level, index))

        self._set_range(0, first, first + count, keep)

    def root(self) -> bytes:
        """The root of the tree.

        Raises:
            StateError: Some chunk has no digest.
        """
        if self._root is None or self._open:
            raise StateError("the disk was not written completely")
        return self._root

    def _set_range(self, level: int, first: int, end: int, set_nodes: SetNodes) -> None:
        """Set adjacent nodes of a level, as whole pages where they make up whole pages."""
        above, above_end = self._whole_pages(level, first, end)
        if above >= above_end:
            set_nodes(level, first, end)
            return
        if first < above * FANOUT:
            set_nodes(level, first, above * FANOUT)
        self._set_range(level + 1, above, above_end, set_nodes)
        if above_end * FANOUT < end:
            set_nodes(level, above_end * FANOUT, end)

    def _set_sparse(self, level: int, first: int, end: int, nodes: Sequence[Node]) -> None:
        """Set adjacent nodes of a level, of which those that are not given are zeros. Pages that they make up are
        stored at once, and are nodes among zeros of the next level.
        """
        above, above_end = self._whole_pages(level, first, end)
        if above >= above_end:
            self._set(level, first, _among_zeros(first, end, nodes))
            return
        inner, inner_end = above * FANOUT, min(above_end * FANOUT, end)
        head, tail = bisect_left(nodes, inner, key=_number), bisect_left(nodes, inner_end, key=_number)
        if first < inner:
            self._set(level, first, _among_zeros(first, inner, nodes[:head]))
        pages = groupby(nodes[head:tail], lambda node: node[0] // FANOUT)
        self._set_sparse(
            level + 1, above, above_end, [(page, self._put_page(level + 1, page, list(below))) for page, below in pages]
        )
        if inner_end < end:
            self._set(level, inner_end, _among_zeros(inner_end, end, nodes[tail:]))

    def _whole_pages(self, level: int, first: int, end: int) -> tuple[int, int]:
        """The pages, from the first to before the end, whose nodes below are all of a range of a level."""
        if level == self._depth:
            return 0, 0
        is_last = end == self._geometry.count(level)
        return -(-first // FANOUT), self._geometry.count(level + 1) if is_last else end // FANOUT

    def _put_page(self, level: int, index: int, nodes: Sequence[Node]) -> bytes:
        """Store a page that is complete, of which only the given children are not zeros; gives its digest."""
        first, count = index * FANOUT, self._geometry.children(level, index)
        digest = join({child - first: digest for child, digest in nodes}, count)
        self._store(_among_zeros(first, first + count, nodes), digest)
        return digest

    def _set(self, level: int, first: int, digests: bytes) -> None:
        """Set adjacent nodes, and every page that they complete."""
        if level == self._depth:
            if self._root is not None:
                raise StateError("a range of the disk was written twice")
            self._root = digests
            return
        done = 0
        while done < len(digests):
            number, slot = divmod(first + done // DIGEST, FANOUT)
            some = digests[done : done + (FANOUT - slot) * DIGEST]
            self._fill((level + 1, number), slot, some)
            done += len(some)

    def _fill(self, place: tuple[int, int], slot: int, digests: bytes) -> None:
        page = self._open.get(place)
        if page is None:
            if len(self._open) >= MAX_OPEN:
                raise StateError("the disk is written in too many places at once")
            page = self._open[place] = _Page(self._geometry.children(*place))
        page.fill(slot, digests)
        if page.complete:
            del self._open[place]
            content = bytes(page.digests)
            above = page_digest(content)
            if above != ZERO:
                self._store(content, above)
            self._set(*place, above)


def _among_zeros(first: int, end: int, nodes: Sequence[Node]) -> bytes:
    """The digests of adjacent nodes, of which those that are not given are zeros."""
    digests = bytearray((end - first) * DIGEST)
    for index, digest in nodes:
        digests[(index - first) * DIGEST : (index - first + 1) * DIGEST] = digest
    return bytes(digests)


class TreeReader:
    """Reads the page tree of a disk. Calls block; any thread may make them.

    Args:
        geometry: Of the disk.
        root: Its root digest.
        load: Gives the page of a digest and a length in bytes, checked.
    """

    def __init__(self, geometry: Geometry, root: bytes, load: Callable[[bytes, int], bytes]) -> None:
        self.geometry = geometry
        self._root = root
        self._depth = geometry.depth
        self._load = load
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def digest(self, level: int, index: int) -> bytes:
        """The digest of a node; level 0 are the chunks.

        Raises:
            IntegrityError: A page above it is lost or damaged.
        """
        if level == self._depth:
            return self._root
        number, slot = divmod(index, FANOUT)
        return self._page(level + 1, number)[slot * DIGEST : (slot + 1) * DIGEST]

    def digests(self, level: int, first: int, end: int) -> bytes:
        """The digests of adjacent nodes, one after the other; errors as of `digest`."""
        if level == self._depth:
            return self._root
        found = []
        while first < end:
            number, slot = divmod(first, FANOUT)
            stop = min(end, (number + 1) * FANOUT)
            found.append(self._page(level + 1, number)[slot * DIGEST : (slot + stop - first) * DIGEST])
            first = stop
        return b"".join(found)

    def runs(self, first: int, end: int) -> Iterator[tuple[bool, int]]:
        """Chunks from `first` to before `end`, as runs: (whether zero, how many). Neighbours may say the same.

        Reads no page of zeros: the time depends on the data, not on the size.
        """
        while first < end:
            level, index = self._highest(first)
            if level > 0:
                stop = min(end, (index + 1) * FANOUT**level)
                yield True, stop - first
            else:
                number, slot = divmod(first, FANOUT)
                stop = min(end, (number + 1) * FANOUT)
                yield from runs(self._siblings(number)[slot : slot + stop - first])
            first = stop

    def _highest(self, chunk: int) -> tuple[int, int]:
        """Level and index of the highest node of zeros over a chunk that has pages below it; or the chunk itself."""
        for level in range(self._depth, 0, -1):
            index = chunk // FANOUT**level
            if self.digest(level, index) == ZERO:
                return level, index
        return 0, chunk

    def _siblings(self, number: int) -> list[bytes]:
        """The digests of the chunks in a page; of the only chunk, where there is no page."""
        return split_page(self._page(1, number)) if self._depth else [self._root]

    def _page(self, level: int, index: int) -> bytes:
        place = (level, index)
        with self._lock:
            page = self._cache.get(place)
            if page is not None:
                self._cache.move_to_end(place)
                return page
        digest = self.digest(level, index)
        if digest == ZERO:
            return _ZERO_PAGE
        page = self._load(digest, self.geometry.children(level, index) * DIGEST)
        with self._lock:
            self._cache[place] = page
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return page
