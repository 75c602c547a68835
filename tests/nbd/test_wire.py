import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.errors import RemoteProtocolError
from sfasync.nbd import const, wire


def test_options_look_as_the_protocol_says() -> None:
    assert wire.encode_option(const.OPT_ABORT) == b"IHAVEOPT\0\0\0\x02\0\0\0\0"
    assert wire.encode_option(const.OPT_EXPORT_NAME, b"disk") == b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk"
    assert wire.encode_info(b"d", (1, 3)) == b"\0\0\0\x01d\0\x02\0\x01\0\x03"
    assert wire.encode_contexts(b"", [b"a:b"]) == b"\0\0\0\0\0\0\0\x01\0\0\0\x03a:b"


def test_the_disconnect_request_has_no_range() -> None:
    assert wire.encode_disconnect() == b"\x25\x60\x95\x13\0\0\0\x02" + bytes(20)


@given(st.text(max_size=40), st.text(max_size=40))
def test_export_entries_survive(name: str, description: str) -> None:
    payload = struct.pack(">I", len(name.encode())) + name.encode() + description.encode()
    assert wire.decode_server(payload) == (name, description)


@given(st.integers(0, 2**32 - 1), st.text(max_size=40))
def test_contexts_survive(number: int, name: str) -> None:
    assert wire.decode_context(struct.pack(">I", number) + name.encode()) == (number, name)


def test_information_is_decoded() -> None:
    assert wire.decode_info_type(b"\0\x03rest") == 3
    assert wire.decode_info_export(struct.pack(">HQH", 0, 1 << 40, 5)) == (1 << 40, 5)
    assert wire.decode_info_block_size(struct.pack(">HIII", 3, 512, 4096, 1 << 25)) == (512, 4096, 1 << 25)
    assert wire.decode_info_text(b"\0\x02text", "it") == "text"


DECODERS: list[Callable[[bytes], object]] = [
    wire.decode_server,
    wire.decode_context,
    wire.decode_info_type,
    wire.decode_info_export,
    wire.decode_info_block_size,
    lambda payload: wire.decode_info_text(payload, "it"),
    lambda payload: wire.decode_error(memoryview(payload), const.REPLY_TYPE_ERROR),
    lambda payload: wire.decode_error(memoryview(payload), const.REPLY_TYPE_ERROR_OFFSET),
]


@pytest.mark.parametrize("decode", DECODERS)
@given(payload=st.binary(max_size=64))
def test_garbage_gives_only_the_protocol_error(decode: Callable[[bytes], object], payload: bytes) -> None:
    try:
        decode(payload)
    except RemoteProtocolError as error:
        assert "\n" not in str(error)


def test_strings_are_bounded() -> None:
    assert wire.decode_text(b"x" * 4096, "it")
    with pytest.raises(RemoteProtocolError, match="it is 4097 bytes long"):
        wire.decode_text(b"x" * 4097, "it")


def test_errors_are_decoded() -> None:
    payload = struct.pack(">IH", 5, 3) + b"bad" + struct.pack(">Q", 77)
    assert wire.decode_error(memoryview(payload), const.REPLY_TYPE_ERROR_OFFSET) == (5, "bad", 77)
    assert wire.decode_error(memoryview(payload), const.REPLY_TYPE_ERROR) == (5, "bad", None)


@pytest.mark.parametrize("payload", [b"\0\0\0\0\0\0", b"\0\0\0\x05\0\x01", b"\0\0\0\x05\0"])
def test_errors_without_an_error_or_with_too_long_a_text_are_refused(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.decode_error(memoryview(payload), const.REPLY_TYPE_ERROR)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 2**32 - 1)), min_size=1, max_size=20),
    st.integers(0, 100),
    st.integers(1, 200),
)
def test_descriptors_are_adjacent_and_clipped(descriptors: list[tuple[int, int]], offset: int, length: int) -> None:
    payload = bytes(4) + b"".join(struct.pack(">II", *descriptor) for descriptor in descriptors)
    flags_of_bytes = [flags for count, flags in descriptors for _ in range(count)][:length]
    found = list(wire.decode_descriptors(payload, offset, offset + length))
    assert [flags for _, count, flags in found for _ in range(count)] == flags_of_bytes
    position = offset
    for at, count, _ in found:
        assert at == position
        position += count


def test_a_descriptor_without_length_is_refused() -> None:
    payload = bytes(4) + struct.pack(">IIII", 512, 0, 0, 0)
    with pytest.raises(RemoteProtocolError, match="at 4608 has no length"):
        list(wire.decode_descriptors(payload, 4096, 8192))
