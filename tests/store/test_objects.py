"""Frames: every byte counts, and an object is only what it says it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.errors import IntegrityError, RepositoryVersionError
from sfasync.store.objects import (
    MAGIC,
    ObjectKind,
    check_writable,
    decode,
    decode_head,
    encode,
    encode_head,
    frame_digest,
)

REPOSITORY = bytes(range(16))
KEY = "domains/default/index/0011"


def rewritten(data: bytes, offset: int, new: bytes) -> bytes:
    """A frame with other bytes in one place, and a digest that is right for them."""
    body = bytearray(data[:-32])
    body[offset : offset + len(new)] = new
    return bytes(body) + frame_digest().update(body).digest()


@given(payload=st.binary(max_size=300), kind=st.sampled_from(ObjectKind))
def test_what_is_encoded_is_decoded(payload: bytes, kind: ObjectKind) -> None:
    frame = decode(encode(kind, KEY, REPOSITORY, payload), KEY, REPOSITORY, kind)
    assert frame.payload == payload
    assert (frame.head.kind, frame.head.repository, frame.head.key) == (kind, REPOSITORY, KEY)


def test_the_layout_is_the_documented_one() -> None:
    data = encode(ObjectKind.INDEX, "k", REPOSITORY, b"payload")
    assert data[:8] == MAGIC == bytes.fromhex("89534641 0d0a1a0a")
    assert data[8:10] == b"\x01\x00"
    assert data[10:12] == b"\x03\x00"
    assert data[12:20] == bytes(8)
    assert data[20:36] == REPOSITORY
    assert data[36:38] == b"\x01\x00"
    assert data[38:39] == b"k"
    assert data[39:47] == (7).to_bytes(8, "little")
    assert data[47:54] == b"payload"
    assert len(data) == 54 + 32


def test_every_flipped_bit_is_found() -> None:
    data = encode(ObjectKind.SESSION, KEY, REPOSITORY, b"some payload")
    for offset in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[offset] ^= 1 << bit
            with pytest.raises(IntegrityError):
                decode(bytes(damaged), KEY, REPOSITORY, ObjectKind.SESSION)


def test_every_truncation_and_extension_is_found() -> None:
    data = encode(ObjectKind.SESSION, KEY, REPOSITORY, b"some payload")
    for end in range(len(data)):
        with pytest.raises(IntegrityError):
            decode(data[:end], KEY, REPOSITORY, ObjectKind.SESSION)
    with pytest.raises(IntegrityError):
        decode(data + b"\x00", KEY, REPOSITORY, ObjectKind.SESSION)


@given(st.binary(max_size=400))
def test_garbage_gives_only_typed_errors(garbage: bytes) -> None:
    for data in (garbage, MAGIC + garbage, rewritten(bytes(32) + garbage + bytes(32), 0, MAGIC + b"\x01\x00")):
        with pytest.raises((IntegrityError, RepositoryVersionError)):
            decode(data, KEY, REPOSITORY, ObjectKind.INDEX)


def test_an_object_in_the_wrong_place_is_refused() -> None:
    data = encode(ObjectKind.MANIFEST, KEY, REPOSITORY, b"")
    with pytest.raises(IntegrityError, match=f"says that it is {KEY}"):
        decode(data, "domains/default/index/0012", REPOSITORY, ObjectKind.MANIFEST)
    with pytest.raises(IntegrityError, match="another repository"):
        decode(data, KEY, bytes(16), ObjectKind.MANIFEST)
    with pytest.raises(IntegrityError, match="of kind manifest"):
        decode(data, KEY, REPOSITORY, ObjectKind.INDEX, ObjectKind.VOID)
    assert decode(data, KEY, None, ObjectKind.MANIFEST).head.repository == REPOSITORY


@pytest.mark.parametrize(
    ("offset", "new", "message"),
    [(8, b"\x02\x00", "format version 2"), (12, b"\x04\x00\x00\x00", "features 0x4"), (10, b"\x63\x00", "kind 99")],
)
def test_what_is_newer_is_told_from_what_is_damaged(offset: int, new: bytes, message: str) -> None:
    data = rewritten(encode(ObjectKind.CONFIG, KEY, REPOSITORY, b"x"), offset, new)
    with pytest.raises(RepositoryVersionError, match=message):
        decode(data, KEY, REPOSITORY, ObjectKind.CONFIG)


@pytest.mark.parametrize("features", [b"\x01\x00\x00\x00", b"\x00\x00\x00\x80"])
def test_a_feature_for_writers_does_not_stop_readers(features: bytes) -> None:
    plain = encode(ObjectKind.CONFIG, KEY, REPOSITORY, b"x")
    check_writable(plain, KEY)
    data = rewritten(plain, 16, features)
    assert bytes(decode(data, KEY, REPOSITORY, ObjectKind.CONFIG).payload) == b"x"
    with pytest.raises(RepositoryVersionError, match="may only be written"):
        check_writable(data, KEY)


@pytest.mark.parametrize(
    ("offset", "new"),
    [(36, b"\xff\xff"), (36, b"\xff\x00"), (38, b"\xff"), (38 + len(KEY), b"\x02"), (38 + len(KEY), b"\xff" * 8)],
)
def test_wrong_lengths_are_refused(offset: int, new: bytes) -> None:
    data = rewritten(encode(ObjectKind.CONFIG, KEY, REPOSITORY, b"x"), offset, new)
    with pytest.raises(IntegrityError):
        decode(data, KEY, REPOSITORY, ObjectKind.CONFIG)


def test_a_head_that_breaks_off_is_refused() -> None:
    head = encode_head(ObjectKind.PACK, KEY, REPOSITORY)
    assert decode_head(head, KEY).size == len(head)
    for end in range(len(head)):
        with pytest.raises(IntegrityError):
            decode_head(head[:end], KEY)
