"""The fuzz target itself: honest conversations come to their end, damaged ones to a typed error."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.target import HANDSHAKES, conversations, feed, mutated

CONVERSATIONS = [(kind, bursts) for kind in HANDSHAKES for bursts in conversations(kind)]
TYPED = {"done", "ConnectionLostError", "ExportError", "RemoteProtocolError", "TlsError"}


@pytest.mark.parametrize(("kind", "bursts"), CONVERSATIONS)
@pytest.mark.parametrize("seed", range(4))
def test_honest_conversations_end_well(kind: str, bursts: list[bytes], seed: int) -> None:
    """An export stays open until the connection ends, behind everything that was said."""
    assert feed(kind, bursts, random.Random(seed)) == ("ConnectionLostError" if kind.startswith("open") else "done")


@pytest.mark.parametrize("start", range(0, 4000, 1000))
def test_damage_ends_in_typed_errors(start: int) -> None:
    outcomes = set()
    for seed in range(start, start + 1000):
        chance = random.Random(seed)
        outcomes.add(feed(*mutated(chance), chance))
    assert outcomes == TYPED


@given(st.sampled_from(list(HANDSHAKES)), st.lists(st.binary(max_size=400), max_size=4), st.integers(0))
def test_garbage_ends_in_typed_errors(kind: str, bursts: list[bytes], seed: int) -> None:
    assert feed(kind, bursts, random.Random(seed)) in TYPED


@given(st.sampled_from(CONVERSATIONS), st.data())
def test_any_piece_may_be_anything(conversation: tuple[str, list[bytes]], data: st.DataObject) -> None:
    kind, bursts = conversation[0], list(conversation[1])
    hurt = data.draw(st.integers(0, len(bursts) - 1))
    start = data.draw(st.integers(0, len(bursts[hurt])))
    end = data.draw(st.integers(start, len(bursts[hurt])))
    bursts[hurt] = bursts[hurt][:start] + data.draw(st.binary(max_size=64)) + bursts[hurt][end:]
    assert feed(kind, bursts, random.Random(start)) in TYPED
