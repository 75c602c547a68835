"""Plans, against slow obvious versions of themselves."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing

from hypothesis import given
from hypothesis import strategies as st

from sfasync.extents import Action, Step, align_down, align_up, chunks, loads, pieces, with_also, zero_outside
from sfasync.models import Extent


async def stream(extents: Iterable[Extent]) -> AsyncGenerator[Extent, None]:
    for extent in extents:
        yield extent


def extents_of(picture: str) -> list[Extent]:
    """One extent for each run: ``0`` is zero, ``-`` is a hole that is not known to be zero, anything else is data."""
    extents: list[Extent] = []
    for offset, letter in enumerate(picture):
        if extents and picture[offset - 1] == letter:
            extents[-1] = extents[-1]._replace(length=extents[-1].length + 1)
        else:
            extents.append(Extent(offset, 1, zero=letter == "0", hole=letter == "-"))
    return extents


def changed_of(picture: str) -> list[Extent]:
    return [extent for extent in extents_of(picture) if picture[extent.offset] == "x"]


def picture_of(steps: list[Step]) -> str:
    """``D`` for data that is read, ``z`` for zeros inside it, ``Z`` and ``K`` for steps of those."""
    drawn = ""
    for step in steps:
        assert step.offset == len(drawn)
        assert step.length > 0
        if step.action is Action.DATA:
            letters = ["z"] * step.length
            for start, end in step.reads():
                letters[start - step.offset : end - step.offset] = "D" * (end - start)
            drawn += "".join(letters)
        else:
            drawn += {Action.ZERO: "Z", Action.KEEP: "K"}[step.action] * step.length
    return drawn


async def copy_plan(picture: str, *, piece: int = 4, alignment: int = 1) -> list[Step]:
    plan = pieces(stream(extents_of(picture)), size=len(picture), piece=piece, alignment=alignment)
    return [step async for step in plan]


async def backup_plan(
    picture: str, changed: str | None = None, *, parent_size: int | None = None, alignment: int = 1
) -> list[Step]:
    plan = chunks(
        stream(extents_of(picture)),
        size=len(picture),
        chunk=4,
        alignment=alignment,
        changed=None if changed is None else stream(changed_of(changed)),
        parent_size=parent_size,
    )
    return [step async for step in plan]


async def test_pieces_keep_zeros_and_cut_data() -> None:
    steps = await copy_plan("aaaaaa0000000bb", alignment=2)
    assert picture_of(steps) == "DDDDDDZZZZZZDDD"
    assert [step.length for step in steps] == [4, 2, 6, 3]


async def test_pieces_round_zeros_inward_but_not_at_the_end_of_the_disk() -> None:
    assert picture_of(await copy_plan("a00000000", alignment=4)) == "DDDDZZZZZ"


async def test_pieces_read_holes_that_are_not_said_to_be_zero() -> None:
    assert picture_of(await copy_plan("aa----00")) == "DDDDDDZZ"


async def test_pieces_of_an_empty_disk() -> None:
    assert await copy_plan("") == []


async def test_chunks_without_changes_known() -> None:
    assert picture_of(await backup_plan("aaaa0000b00b00")) == "DDDDZZZZDzzDZZ"


async def test_chunks_of_the_docstring() -> None:
    plan = await backup_plan("aaaabXbb0000dd00", ".....x..........", parent_size=16)
    assert picture_of(plan) == "KKKKDDDDZZZZKKKK"


async def test_zero_wins_over_keep() -> None:
    assert picture_of(await backup_plan("aaaa0000", "........", parent_size=8)) == "KKKKZZZZ"


async def test_zeros_that_end_in_a_kept_chunk() -> None:
    assert picture_of(await backup_plan("aaaa000000aabbbb", "." * 16, parent_size=16)) == "KKKKZZZZKKKKKKKK"


async def test_old_partial_last_chunk_of_a_grown_disk_is_read() -> None:
    assert picture_of(await backup_plan("aaaabbbbcccc", "............", parent_size=6)) == "KKKKDDDDDDDD"


async def test_new_partial_last_chunk_of_a_shrunk_disk_is_read() -> None:
    assert picture_of(await backup_plan("aaaabb", "......", parent_size=8)) == "KKKKDD"


async def test_partial_last_chunk_of_a_disk_of_the_same_size_is_kept() -> None:
    assert picture_of(await backup_plan("aaaabb", "......", parent_size=6)) == "KKKKKK"


async def test_short_runs_of_zeros_inside_a_chunk_are_read() -> None:
    picture = "a0a00aaa0000a000"
    plan = chunks(stream(extents_of(picture)), size=16, chunk=8, alignment=1, gap=3)
    assert picture_of([step async for step in plan]) == "DDDDDDDDzzzzDzzz"


async def loads_of(picture: str, *, most: int = 32) -> list[str]:
    plan = chunks(stream(extents_of(picture)), size=len(picture), chunk=4, alignment=1)
    drawn, position = [], 0
    async for load in loads(plan, most=most):
        moved = [step._replace(offset=step.offset - position, zeros=_moved(step, position)) for step in load]
        drawn.append(picture_of(moved))
        position += len(drawn[-1])
    return drawn


def _moved(step: Step, position: int) -> tuple[tuple[int, int], ...]:
    return tuple((start - position, end - position) for start, end in step.zeros)


async def test_chunks_with_zeros_inside_go_together_as_far_as_one_slot_takes_them() -> None:
    assert await loads_of("aaaaa00000000a0a0000aaaa") == ["DDDD", "DzzzZZZZzDzDZZZZ", "DDDD"]
    assert await loads_of("0000a0000000aa000000") == ["ZZZZ", "DzzzZZZZDDzzZZZZ"]
    assert await loads_of("aa000aa0a000aaa0") == ["DDzzzDDz", "DzzzDDDz"]
    assert await loads_of("a000a000a000a000a000") == ["DzzzDzzzDzzzDzzz", "Dzzz"]
    assert await loads_of("a000a000a000a000", most=3) == ["DzzzDzzzDzzz", "Dzzz"]
    assert await loads_of("a000000000000000a000", most=2) == ["DzzzZZZZZZZZZZZZ", "Dzzz"]
    assert await loads_of("a000a0") == ["DzzzDz"]
    assert await loads_of("") == []


async def test_what_is_kept_or_copied_goes_alone() -> None:
    steps = [Step(Action.ZERO, 0, 4), Step(Action.ZERO, 4, 4), Step(Action.DATA, 8, 4), Step(Action.KEEP, 12, 4)]

    async def plan() -> AsyncIterator[Step]:
        for step in steps:
            yield step

    assert [load async for load in loads(plan(), most=32)] == [[step] for step in steps]


async def test_a_long_zero_run_is_one_step() -> None:
    size = 1 << 60
    steps = [s async for s in chunks(stream([Extent(0, size, zero=True)]), size=size, chunk=1 << 20, alignment=1)]
    assert steps == [Step(Action.ZERO, 0, size)]


DISK = st.text(alphabet="ab0-", max_size=60)


@given(DISK, st.sampled_from([1, 2, 4]), st.sampled_from([4, 8]))
async def test_pieces_against_the_obvious_version(picture: str, alignment: int, piece: int) -> None:
    size = len(picture)
    steps = await copy_plan(picture, piece=piece, alignment=alignment)
    drawn = picture_of(steps)
    assert len(drawn) == size
    for start in range(0, size, alignment):
        block = picture[start : start + alignment]
        assert set(drawn[start : start + alignment]) == ({"Z"} if set(block) == {"0"} else {"D"})
    for step in steps:
        assert step.offset % alignment == 0
        assert step.action is Action.ZERO or step.length <= piece


@given(DISK, st.data(), st.sampled_from([1, 2, 4]))
async def test_chunks_against_the_obvious_version(picture: str, data: st.DataObject, alignment: int) -> None:
    size = len(picture)
    changed = data.draw(st.none() | st.text(alphabet=".x", min_size=size, max_size=size))
    parent_size = data.draw(st.integers(0, size + 8))
    drawn = picture_of(await backup_plan(picture, changed, parent_size=parent_size, alignment=alignment))
    assert len(drawn) == size
    for start in range(0, size, 4):
        chunk, plan = picture[start : start + 4], drawn[start : start + 4]
        length = len(chunk)
        parent_length = max(0, min(4, parent_size - start))
        if set(chunk) == {"0"}:
            assert plan == "Z" * length
        elif changed is not None and "x" not in changed[start : start + 4] and length == parent_length:
            assert plan == "K" * length
        else:
            for block in range(0, length, alignment):
                zero = set(chunk[block : block + alignment]) == {"0"}
                assert set(plan[block : block + alignment]) == ({"z"} if zero else {"D"})


@given(st.integers(0, 1 << 63), st.sampled_from([1, 512, 4096, 1 << 20]))
def test_alignment(value: int, alignment: int) -> None:
    down, up = align_down(value, alignment), align_up(value, alignment)
    assert down <= value <= up
    assert down % alignment == up % alignment == 0
    assert up - down in (0, alignment)


async def test_a_plan_may_begin_in_the_middle() -> None:
    extents = [Extent(5, 3), Extent(8, 8, zero=True), Extent(16, 2)]
    plan = [step async for step in pieces(stream(extents), size=18, piece=4, alignment=1, start=5)]
    assert [(step.action, step.offset, step.length) for step in plan] == [
        (Action.DATA, 5, 3),
        (Action.ZERO, 8, 8),
        (Action.DATA, 16, 2),
    ]


RANGES = st.lists(st.tuples(st.integers(0, 99), st.integers(1, 9)), max_size=12).map(sorted)


@given(RANGES, RANGES)
async def test_ranges_that_are_also_meant_come_in_order(
    changed: list[tuple[int, int]], also: list[tuple[int, int]]
) -> None:
    one, other = [Extent(*pair) for pair in changed], [Extent(*pair) for pair in also]
    found = [extent async for extent in with_also(stream(one), other)]
    assert [extent.offset for extent in found] == sorted(extent.offset for extent in one + other)
    assert sorted(found) == sorted(one + other)


async def test_what_is_not_allocated_reads_as_zeros() -> None:
    extents = extents_of("aaaabbbb0000cccc")
    allocated = [Extent(2, 4), Extent(12, 2)]
    found = [extent async for extent in zero_outside(stream(extents), stream(allocated))]
    assert "".join(("0" if extent.zero else "x") * extent.length for extent in found) == "00xxxx000000xx00"


@given(st.text("ab0-", max_size=40), st.text("x.", max_size=40))
async def test_allocation_against_the_obvious_version(picture: str, allocated: str) -> None:
    allocated = allocated[: len(picture)].ljust(len(picture), ".")
    extents = extents_of(picture)
    zero = {offset for extent in extents if extent.zero for offset in range(extent.offset, extent.end)}
    async with aclosing(stream(changed_of(allocated))) as ranges:  # those beyond the last extent are not asked for
        found = [extent async for extent in zero_outside(stream(extents), ranges)]
    assert [extent.offset for extent in found[1:]] == [extent.end for extent in found[:-1]]
    assert sum(extent.length for extent in found) == len(picture)
    expected = zero | {offset for offset, letter in enumerate(allocated) if letter == "."}
    assert {offset for extent in found if extent.zero for offset in range(extent.offset, extent.end)} == expected
