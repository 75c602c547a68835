from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.errors import ConnectionLostError, ExportError, NbdError, RemoteProtocolError, SfasyncError, TlsError
from sfasync.models import TlsStyle
from sfasync.nbd.handshake import ExportEntry, ExportInfo, Handshake, listing, opening, querying
from sfasync.nbd.wire import BlockSizes

from ..support import peer

_T = TypeVar("_T")

SIZE = 1 << 30
GIVEN_SR = peer.greeting() + peer.reply(peer.STRUCTURED_REPLY, peer.ACK)
CONTEXTS = ["base:allocation", "qemu:allocation-depth"]
CLIENT_FLAGS = struct.pack(">I", peer.FIXED | peer.NO_ZEROES)


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def asked(export: bytes) -> bytes:
    """The data of GO and INFO: the name, and three wishes: name, description, block size."""
    return struct.pack(">I", len(export)) + export + struct.pack(">HHHH", 3, 1, 2, 3)


def queries(export: bytes, *names: bytes) -> bytes:
    counted = [struct.pack(">I", len(name)) + name for name in (export, *names)]
    return counted[0] + struct.pack(">I", len(names)) + b"".join(counted[1:])


def open_(export: str = "disk", *, tls: TlsStyle | None = None) -> Handshake[ExportInfo]:
    return opening("peer", tls=tls, export=export, contexts=CONTEXTS)


def drive(handshake: Handshake[_T], stream: bytes, cuts: Iterable[int] = ()) -> bytes:
    """Feed a server's words in pieces of the given sizes, then all the rest; gives what the client said."""
    said = handshake.outgoing()
    sizes = iter(cuts)
    rest = memoryview(stream)
    while rest:
        buffer = handshake.next_buffer()
        assert len(buffer) > 0
        count = min(next(sizes, len(rest)), len(rest), len(buffer))
        buffer[:count] = rest[:count]
        rest = rest[count:]
        handshake.received(count)
        said += handshake.outgoing()
        if handshake.wants_tls:
            assert not rest, "plain text went on behind the agreement to TLS"
    return said


FULL = (
    GIVEN_SR
    + peer.context(7, b"base:allocation")
    + peer.context(9, b"qemu:allocation-depth")
    + peer.reply(peer.SET_META_CONTEXT, peer.ACK)
    + peer.info_export(SIZE, 0x5)
    + peer.info_block_size(512, 4096, 1 << 25)
    + peer.info_text(1, b"the disk")
    + peer.info_text(2, b"of web-01")
    + peer.reply(peer.GO, peer.INFO, b"\0\x63unknown")
    + peer.reply(peer.GO, peer.ACK)
)
FULL_INFO = ExportInfo(
    name="the disk",
    size=SIZE,
    flags=0x5,
    block_sizes=BlockSizes(512, 4096, 1 << 25),
    description="of web-01",
    contexts={"base:allocation": 7, "qemu:allocation-depth": 9},
    structured=True,
)


@given(st.lists(st.integers(1, 40), max_size=60))
def test_any_fragmentation_opens_the_export(cuts: list[int]) -> None:
    handshake = open_()
    said = drive(handshake, FULL, cuts)
    assert handshake.done
    assert handshake.result == FULL_INFO
    assert said == (
        CLIENT_FLAGS
        + option(peer.STRUCTURED_REPLY)
        + option(peer.SET_META_CONTEXT, queries(b"disk", *(name.encode() for name in CONTEXTS)))
        + option(peer.GO, asked(b"disk"))
    )


def test_byte_by_byte() -> None:
    handshake = open_()
    drive(handshake, FULL, [1] * len(FULL))
    assert handshake.result == FULL_INFO


@given(st.integers(0, len(FULL) - 1), st.binary(min_size=1, max_size=8), st.lists(st.integers(1, 300), max_size=20))
def test_damage_gives_an_export_or_a_typed_error(at: int, damage: bytes, cuts: list[int]) -> None:
    damaged = (FULL[:at] + damage + FULL[at + len(damage) :])[: len(FULL)]
    handshake = open_()
    try:
        drive(handshake, damaged, cuts)
    except (NbdError, TlsError) as error:
        assert str(error).startswith("peer: ")
        assert "\n" not in str(error)
    else:
        if not handshake.done:
            assert isinstance(handshake.closed(), SfasyncError)


@given(st.binary(max_size=300))
def test_garbage_after_the_greeting_gives_only_typed_errors(garbage: bytes) -> None:
    with contextlib.suppress(NbdError, TlsError):
        drive(open_(), peer.greeting() + garbage)


# --- older and lesser servers ----------------------------------------------------------------------------------------


def test_without_structured_replies_there_are_no_contexts() -> None:
    handshake = open_()
    said = drive(handshake, peer.opened(SIZE, structured=False))
    assert handshake.result.contexts == {}
    assert not handshake.result.structured
    assert option(peer.GO, asked(b"disk")) in said


def test_contexts_that_are_refused_are_none() -> None:
    handshake = open_()
    drive(
        handshake,
        GIVEN_SR
        + peer.context(7, b"base:allocation")
        + peer.reply(peer.SET_META_CONTEXT, peer.ERR_UNSUP)
        + peer.info_export(SIZE)
        + peer.reply(peer.GO, peer.ACK),
    )
    assert handshake.result.contexts == {}
    assert handshake.result.structured


@pytest.mark.parametrize("flags", [peer.FIXED, peer.FIXED | peer.NO_ZEROES])
def test_a_server_without_go_is_asked_by_name(flags: int) -> None:
    handshake = open_()
    zeros = b"" if flags & peer.NO_ZEROES else bytes(124)
    said = drive(
        handshake,
        peer.greeting(flags)
        + peer.reply(peer.STRUCTURED_REPLY, peer.ERR_UNSUP)
        + peer.reply(peer.GO, peer.ERR_UNSUP)
        + struct.pack(">QH", SIZE, 0x3)
        + zeros,
    )
    assert handshake.result == ExportInfo(name="disk", size=SIZE, flags=0x3)
    assert said == (
        struct.pack(">I", flags)
        + option(peer.STRUCTURED_REPLY)
        + option(peer.GO, asked(b"disk"))
        + option(peer.EXPORT_NAME, b"disk")
    )


def test_a_server_without_options_is_asked_by_name_only() -> None:
    handshake = open_()
    said = drive(handshake, peer.greeting(0) + struct.pack(">QH", SIZE, 0x1) + bytes(124))
    assert handshake.result.size == SIZE
    assert said == struct.pack(">I", 0) + option(peer.EXPORT_NAME, b"disk")


# --- asking ----------------------------------------------------------------------------------------------------------


def test_listing_gives_the_exports_and_parts_in_peace() -> None:
    handshake = listing("peer", tls=None)
    said = drive(handshake, GIVEN_SR + peer.listed(b"a", b"first") + peer.listed(b"") + peer.reply(peer.LIST, peer.ACK))
    assert handshake.result == [ExportEntry("a", "first"), ExportEntry("")]
    assert said.endswith(option(peer.LIST) + option(2))


def test_listing_may_be_forbidden() -> None:
    with pytest.raises(ExportError, match="refuses the list of exports: forbidden by policy \\(no\\)"):
        drive(listing("peer", tls=None), GIVEN_SR + peer.reply(peer.LIST, peer.ERR_POLICY, b"no"))


def test_querying_tells_of_an_export_that_could_not_be_opened() -> None:
    handshake = querying("peer", tls=None, export="disk")
    said = drive(
        handshake,
        GIVEN_SR
        + peer.context(0, b"base:allocation", peer.LIST_META_CONTEXT)
        + peer.context(0, b"qemu:dirty-bitmap:b", peer.LIST_META_CONTEXT)
        + peer.reply(peer.LIST_META_CONTEXT, peer.ACK)
        + peer.info_export(0, option=peer.OPT_INFO)
        + peer.reply(peer.OPT_INFO, peer.ACK),
    )
    assert handshake.result.size == 0
    assert list(handshake.result.contexts) == ["base:allocation", "qemu:dirty-bitmap:b"]
    assert said.endswith(
        option(peer.LIST_META_CONTEXT, queries(b"disk")) + option(peer.OPT_INFO, asked(b"disk")) + option(2)
    )


@pytest.mark.parametrize("flags", [0, peer.FIXED])
def test_old_servers_cannot_be_asked(flags: int) -> None:
    stream = peer.greeting(flags)
    if flags:
        stream += peer.reply(peer.STRUCTURED_REPLY, peer.ERR_UNSUP) + peer.reply(peer.OPT_INFO, peer.ERR_UNSUP)
    with pytest.raises(ExportError, match="too old to be asked"):
        drive(querying("peer", tls=None, export=""), stream)


# --- TLS -------------------------------------------------------------------------------------------------------------

STARTED = peer.greeting() + peer.reply(peer.STARTTLS, peer.ACK)


def test_tls_comes_first_and_all_else_after_it() -> None:
    handshake = open_(tls="starttls")
    assert drive(handshake, STARTED) == CLIENT_FLAGS + option(peer.STARTTLS)
    assert handshake.wants_tls
    handshake.tls_started()
    assert handshake.outgoing() == option(peer.STRUCTURED_REPLY)
    drive(handshake, peer.opened(SIZE)[len(peer.greeting()) :])
    assert handshake.result.size == SIZE


@given(st.integers(1, len(STARTED) - 1), st.binary(min_size=1, max_size=100))
def test_a_byte_behind_the_agreement_is_fatal(cut: int, behind: bytes) -> None:
    """What comes later goes to TLS, which refuses it; what comes with the agreement must be refused here."""
    handshake = open_(tls="starttls")
    with pytest.raises(TlsError, match="tampering"):
        drive(handshake, STARTED + behind, [cut])


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (peer.greeting(0), "lacks TLS"),
        (b"NBDMAGIC" + struct.pack(">QQI", 0x00420281861253, SIZE, 0) + bytes(124), "oldstyle"),
        (peer.greeting() + peer.reply(peer.STARTTLS, peer.ERR_UNSUP, b"no\nway"), r"not supported \(no\\nway\)"),
        (peer.greeting() + peer.reply(peer.STARTTLS, peer.ERR_POLICY), "forbidden by policy"),
        (peer.greeting() + peer.reply(peer.STARTTLS, peer.ACK, b"x"), "does not start TLS"),
        (peer.greeting() + peer.reply(peer.STARTTLS, peer.INFO), "does not start TLS"),
    ],
)
def test_anything_but_agreement_to_tls_ends_it(stream: bytes, message: str) -> None:
    handshake = open_("secret", tls="starttls")
    with pytest.raises(TlsError, match=message):
        drive(handshake, stream)
    assert b"secret" not in handshake.outgoing()


@pytest.mark.parametrize(
    "stream",
    [
        peer.greeting() + peer.reply(peer.STRUCTURED_REPLY, peer.ERR_TLS_REQD),
        GIVEN_SR + peer.reply(peer.SET_META_CONTEXT, peer.ERR_TLS_REQD),
        peer.opened()[: -len(peer.reply(7, 1) + peer.info_export(0))] + peer.reply(peer.GO, peer.ERR_TLS_REQD),
    ],
)
def test_a_server_that_demands_tls_is_a_matter_of_tls(stream: bytes) -> None:
    with pytest.raises(TlsError, match="demands TLS; use an nbds URI"):
        drive(open_(), stream)


def test_tls_before_the_greeting() -> None:
    handshake = open_(tls="direct")
    assert handshake.wants_tls
    assert not handshake.outgoing()
    handshake.tls_started()
    assert not handshake.wants_tls
    drive(handshake, peer.opened())
    assert handshake.result.size == 1 << 20


def test_plain_text_before_tls_is_refused() -> None:
    with pytest.raises(TlsError, match="tampering"):
        drive(open_(tls="direct"), peer.greeting())


def test_direct_tls_does_without_fixed_newstyle() -> None:
    handshake = open_(tls="direct")
    handshake.tls_started()
    drive(handshake, peer.greeting(peer.NO_ZEROES) + struct.pack(">QH", SIZE, 1))
    assert handshake.result.size == SIZE


# --- the end of the stream -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tls", "stream", "kind"),
    [
        (None, b"", ConnectionLostError),
        (None, GIVEN_SR, ConnectionLostError),
        (None, peer.greeting(0), ExportError),
        ("starttls", b"", ConnectionLostError),
        ("starttls", peer.greeting(), TlsError),
        ("starttls", STARTED, TlsError),
    ],
)
def test_what_the_end_of_the_stream_means(tls: TlsStyle | None, stream: bytes, kind: type[SfasyncError]) -> None:
    handshake = open_(tls=tls)
    drive(handshake, stream)
    assert type(handshake.closed()) is kind
    assert str(handshake.closed()).startswith("peer: ")


def test_the_end_after_tls_but_before_an_answer_is_a_matter_of_tls() -> None:
    handshake = open_(tls="starttls")
    drive(handshake, STARTED)
    handshake.tls_started()
    assert isinstance(handshake.closed(), TlsError)
    drive(handshake, peer.reply(peer.STRUCTURED_REPLY, peer.ACK))
    assert isinstance(handshake.closed(), ConnectionLostError)


def test_the_end_before_the_greeting_is_a_matter_of_tls_when_that_is_direct() -> None:
    handshake = open_(tls="direct")
    assert isinstance(handshake.closed(), TlsError)
    handshake.tls_started()
    assert isinstance(handshake.closed(), TlsError)
    drive(handshake, peer.greeting())
    assert isinstance(handshake.closed(), ConnectionLostError)


# --- refusals and lies -----------------------------------------------------------------------------------------------

TO_GO = peer.opened()[: -len(peer.reply(7, 1) + peer.info_export(0))]


@pytest.mark.parametrize(
    ("stream", "kind", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian", RemoteProtocolError, "not an NBD server"),
        (b"NBDMAGIC" + bytes(8), RemoteProtocolError, "no known style"),
        (b"NBDMAGIC" + struct.pack(">QQI", 0x00420281861253, SIZE, 0), ExportError, "oldstyle"),
        (TO_GO + peer.reply(peer.GO, peer.ERR_UNKNOWN), ExportError, "refuses export 'disk': unknown export"),
        (TO_GO + peer.reply(peer.GO, 0x80000008), ExportError, "block size negotiation"),
        (TO_GO + peer.reply(peer.GO, 0x80001234, b"\x1b[2J\xff"), ExportError, r"0x80001234 \(\\x1b\[2J�\)"),
        (TO_GO + peer.reply(peer.GO, peer.ACK), RemoteProtocolError, "without NBD_INFO_EXPORT"),
        (TO_GO + peer.reply(peer.GO, peer.SERVER), RemoteProtocolError, "type 0x2 to NBD_OPT_GO"),
        (TO_GO + peer.info_export(1, option=peer.OPT_INFO), RemoteProtocolError, "reply to option 6"),
        (TO_GO + peer.reply(peer.GO, peer.INFO, b"x"), RemoteProtocolError, "too short"),
        (TO_GO + peer.reply(peer.GO, peer.INFO, bytes(3)), RemoteProtocolError, "NBD_INFO_EXPORT has 3 bytes"),
        (TO_GO + b"x" * 20, RemoteProtocolError, "wrong magic"),
        (TO_GO + peer.reply(peer.GO, peer.INFO, length=(64 << 10) + 1), RemoteProtocolError, "65536 is the limit"),
        (TO_GO + peer.reply(peer.GO, peer.ERR_UNKNOWN, length=4097), RemoteProtocolError, "4096 is the limit"),
        (TO_GO + peer.info_text(2, b"x") * 65, RemoteProtocolError, "more than 64 information replies"),
        (TO_GO + peer.info_text(2, b"x" * 5000), RemoteProtocolError, "5000 bytes long"),
        (GIVEN_SR + peer.context(1, b"base:allocation") * 2, RemoteProtocolError, "named twice"),
        (GIVEN_SR + peer.context(1, b"a:b"), RemoteProtocolError, "context 'a:b' was not asked for"),
        (
            GIVEN_SR
            + b"".join(peer.context(1, name.encode()) for name in CONTEXTS)
            + peer.reply(peer.SET_META_CONTEXT, peer.ACK),
            RemoteProtocolError,
            "share one id",
        ),
        (GIVEN_SR + peer.reply(peer.SET_META_CONTEXT, peer.SERVER), RemoteProtocolError, "type 0x2"),
        (peer.greeting() + peer.reply(peer.STRUCTURED_REPLY, peer.INFO), RemoteProtocolError, "type 0x3"),
        (peer.opened() + b"x", RemoteProtocolError, "nobody asked for"),
    ],
)
def test_refusals_and_lies(stream: bytes, kind: type[SfasyncError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        drive(open_(), stream)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", [peer.listed(b"x"), peer.listed(b"x" * 4096, b"y" * 4096)])
def test_endless_lists_end(entry: bytes) -> None:
    handshake = listing("peer", tls=None)
    with pytest.raises(RemoteProtocolError, match="more than 10000 entries or 4194304 bytes"):
        drive(handshake, GIVEN_SR + entry * 10_001)


def test_endless_contexts_end() -> None:
    names = [f"a:{number}" for number in range(65)]
    asked_for = opening("peer", tls=None, export="", contexts=names)
    on_offer = querying("peer", tls=None, export="")
    for handshake, number in ((asked_for, peer.SET_META_CONTEXT), (on_offer, peer.LIST_META_CONTEXT)):
        said = b"".join(peer.context(index, name.encode(), number) for index, name in enumerate(names))
        with pytest.raises(RemoteProtocolError, match="more than 64 metadata contexts"):
            drive(handshake, GIVEN_SR + said)


@pytest.mark.parametrize(
    ("size", "sizes", "message"),
    [
        (1 << 63, None, "size is 9223372036854775808"),
        (SIZE, (0, 4096, 1 << 25), "minimum block size 0"),
        (SIZE, (513, 4096, 1 << 25), "minimum block size 513"),
        (SIZE, (1 << 17, 1 << 17, 1 << 25), "minimum block size 131072"),
        (SIZE, (4096, 512, 1 << 25), "preferred block size 512 is below"),
        (SIZE, (512, 4096, 512), "maximum block size 512 is below"),
        (SIZE, (512, 512, 0), "maximum block size 0 is below"),
        (SIZE + 512, (4096, 4096, 1 << 25), "size 1073742336 is no multiple of its minimum"),
    ],
)
def test_exports_that_cannot_be_used_are_refused_with_the_field(
    size: int, sizes: tuple[int, int, int] | None, message: str
) -> None:
    told = peer.info_block_size(*sizes) if sizes else b""
    with pytest.raises(ExportError, match=f"peer: export 'disk' cannot be used: its {message}"):
        drive(open_(), TO_GO + peer.info_export(size) + told + peer.reply(peer.GO, peer.ACK))


def test_a_small_export_may_have_a_small_maximum() -> None:
    handshake = open_()
    stream = TO_GO + peer.info_export(1024) + peer.info_block_size(512, 4096, 1024) + peer.reply(peer.GO, peer.ACK)
    drive(handshake, stream)
    assert handshake.result.block_sizes == (512, 4096, 1024)


@pytest.mark.parametrize("make", [lambda name: open_(name), lambda name: querying("peer", tls=None, export=name)])
@pytest.mark.parametrize("name", ["x" * 4097, "\ud800"])
def test_names_that_the_protocol_cannot_carry(make: Callable[[str], object], name: str) -> None:
    with pytest.raises(ExportError):
        make(name)
