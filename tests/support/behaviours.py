"""Servers that lie, stall and break off: one small script for each way to do it.

A behaviour says what the server does, which call of ours meets it, and how that has to end. Threats are numbered as in
`THREATS`. A script that comes to its end leaves the connection open: whatever the client does then, it does because of
what it was told.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from sfasync.errors import (
    ConnectionLostError,
    DeadlineError,
    ExportError,
    RemoteProtocolError,
    RequestError,
    SfasyncError,
    TlsError,
)
from sfasync.models import ExportAddress, Timeouts, TlsStyle
from sfasync.nbd.handshake import ExportInfo
from sfasync.transport.export import Export, open_export
from sfasync.transport.inquiry import list_exports, query_export

from . import peer
from .liar import Client

THREATS: Final = {
    "T1": "replies to options that are huge, endless or to something else",
    "T2": "sizes and block sizes that cannot be",
    "T3": "replies with wrong magic, cookie or kind",
    "T4": "chunks outside of their request, over each other, missing, or without end",
    "T5": "block status without progress, of another context, or huge",
    "T7": "one byte now and then, or none at all",
    "T8": "different answers to the same question",
    "T9": "control characters and kilobytes in texts",
    "T11": "the connection ends at any byte, in any way",
    "T12": "TLS that is refused or stripped",
    "T13": "plain text behind the agreement to TLS",
    "T14": "what was said before TLS is taken up in it",
    "T15": "a certificate of somebody else, or none, or old TLS",
    "T16": "session keys in the file that SSLKEYLOGFILE names",
}

SIZE: Final = 1 << 20
"""Bytes of an export that is opened honestly."""

READ: Final = 4096
"""Bytes that are read, from the beginning."""

Script = Callable[[Client, ssl.SSLContext], Awaitable[None]]
Asking = Callable[[ExportAddress, Timeouts], Awaitable[object]]
Using = Callable[[Export], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """One way to be hostile, and what must come of it.

    Attributes:
        name: Of the script.
        threat: One of `THREATS`.
        script: What the server does on each connection.
        asking: The call that fails before there is an export; None if one can be opened.
        using: The call of an open export that fails.
        error: With exactly this type.
        says: A regular expression for the message.
        lives: Whether the connection must live on.
        patient: Whether the deadlines are the usual ones; otherwise they are a fraction of a second.
        tls: How TLS begins, if it does.
    """

    name: str
    threat: str
    script: Script
    asking: Asking | None = None
    using: Using | None = None
    error: type[SfasyncError]
    says: str
    lives: bool = False
    patient: bool = True
    tls: TlsStyle | None = None


BEHAVIOURS: Final[list[Behaviour]] = []


# --- what we do meanwhile --------------------------------------------------------------------------------------------


async def opens(address: ExportAddress, timeouts: Timeouts) -> None:
    async with await open_export(address, timeouts=timeouts):
        pass


async def opens_twice(address: ExportAddress, timeouts: Timeouts) -> None:
    async with await open_export(address, timeouts=timeouts, connections=2) as export:
        await export.connected()
        await export.read(0, 512)


async def lists(address: ExportAddress, timeouts: Timeouts) -> None:
    await list_exports(address, timeouts=timeouts)


async def queries(address: ExportAddress, timeouts: Timeouts) -> ExportInfo:
    return await query_export(address, timeouts=timeouts)


async def reads(export: Export) -> None:
    await export.read(0, READ)


async def reads_twice(export: Export) -> None:
    async with asyncio.timeout(10):
        first = asyncio.create_task(export.read(0, READ))
        second = asyncio.create_task(export.read(READ, READ))
        await asyncio.wait([first, second])
    second.exception()  # seen
    first.result()


async def writes(export: Export) -> None:
    await export.write(0, bytes(READ))


async def writes_all(export: Export) -> None:
    await asyncio.gather(*(export.write(0, bytes(SIZE)) for _ in range(8)))


async def flushes(export: Export) -> None:
    await export.flush()


async def maps(export: Export) -> None:
    async for _ in export.extents():
        pass


async def maps_a_context(export: Export) -> None:
    async for _ in export.block_status("base:allocation", 0, export.size):
        pass


# --- how a behaviour is entered --------------------------------------------------------------------------------------


def meets(
    call: Asking,
    threat: str,
    error: type[SfasyncError],
    says: str,
    *,
    patient: bool = True,
    tls: TlsStyle | None = None,
) -> Callable[[Script], Script]:
    """A behaviour met by a call before there is an export."""

    def enter(script: Script) -> Script:
        BEHAVIOURS.append(
            Behaviour(
                name=_name(script),
                threat=threat,
                script=script,
                asking=call,
                error=error,
                says=says,
                patient=patient,
                tls=tls,
            )
        )
        return script

    return enter


def suffers(
    call: Using,
    threat: str,
    error: type[SfasyncError],
    says: str,
    *,
    lives: bool = False,
    patient: bool = True,
) -> Callable[[Script], Script]:
    """A behaviour met by a call of an open export."""

    def enter(script: Script) -> Script:
        BEHAVIOURS.append(
            Behaviour(
                name=_name(script),
                threat=threat,
                script=script,
                using=call,
                error=error,
                says=says,
                lives=lives,
                patient=patient,
            )
        )
        return script

    return enter


def _name(script: Script) -> str:
    return str(getattr(script, "__name__", script))


# --- honest parts ----------------------------------------------------------------------------------------------------


async def structured(client: Client) -> None:
    """Up to the agreement on structured replies."""
    await client.say(peer.greeting())
    await client.flags()
    await client.option()
    await client.say(peer.reply(peer.STRUCTURED_REPLY, peer.ACK))


async def to_go(client: Client) -> None:
    """Up to the moment where the client has asked for the export."""
    await structured(client)
    await client.option()
    await client.say(peer.context(7, b"base:allocation") + peer.reply(peer.SET_META_CONTEXT, peer.ACK))
    await client.option()


async def without_go(client: Client) -> None:
    """Up to the moment where the client has asked for the export by name, because it has to."""
    await client.say(peer.greeting(peer.FIXED))
    await client.flags()
    while (await client.option())[0] != peer.EXPORT_NAME:
        await client.say(peer.reply(client.asked, peer.ERR_UNSUP))


async def to_starttls(client: Client) -> None:
    await client.say(peer.greeting())
    await client.flags()
    await client.option()


async def in_tls(client: Client, context: ssl.SSLContext) -> None:
    """Up to the first option under TLS."""
    await to_starttls(client)
    await client.say(AGREED)
    await client.start_tls(context)
    await client.option()


async def to_request(client: Client) -> int:
    """Up to the first request; gives its cookie."""
    await client.open(SIZE)
    return (await client.request()).cookie


async def serves_a_read(client: Client) -> None:
    request = await client.request()
    await client.say(peer.data(request.cookie, request.offset, bytes(request.length), done=True))


GO = peer.reply(peer.GO, peer.ACK)
AGREED = peer.reply(peer.STARTTLS, peer.ACK)
TERMINAL = b"\x1b[2J\r\n\0\x07 \xe2\x80\xae \xff"
"""What a terminal would obey: escapes, new lines, a bell, the direction of writing."""


# --- greetings -------------------------------------------------------------------------------------------------------


@meets(opens, "T3", RemoteProtocolError, "this is not an NBD server")
async def speaks_ssh(client: Client, _: ssl.SSLContext) -> None:
    await client.say(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")


@meets(opens, "T12", ExportError, "oldstyle NBD")
async def speaks_oldstyle(client: Client, _: ssl.SSLContext) -> None:
    await client.say(b"NBDMAGIC" + struct.pack(">QQI", 0x00420281861253, SIZE, 0) + bytes(124))


@meets(opens, "T3", RemoteProtocolError, "of no known style")
async def greets_in_no_known_style(client: Client, _: ssl.SSLContext) -> None:
    await client.say(b"NBDMAGIC" + b"IHAVEOPX" + bytes(2))


@meets(opens, "T11", ConnectionLostError, "waiting for the server's greeting")
async def hangs_up_at_once(client: Client, _: ssl.SSLContext) -> None:
    client.hang_up()


@meets(opens, "T7", DeadlineError, r"the server's greeting did not come within 0\.\d+ s", patient=False)
async def says_nothing(client: Client, _: ssl.SSLContext) -> None:
    await client.silence()


@meets(opens, "T7", DeadlineError, "the answer to NBD_OPT_STRUCTURED_REPLY did not come", patient=False)
async def drips(client: Client, _: ssl.SSLContext) -> None:
    await client.say(peer.greeting())
    for byte in peer.reply(peer.STRUCTURED_REPLY, peer.ACK):
        await asyncio.sleep(0.1)
        await client.say(bytes([byte]))


@meets(opens, "T11", ConnectionLostError, "waiting for the answer to NBD_OPT_STRUCTURED_REPLY")
async def closes_its_half(client: Client, _: ssl.SSLContext) -> None:
    await client.say(peer.greeting())
    client.half_close()


# --- replies to options ----------------------------------------------------------------------------------------------


@meets(opens, "T1", RemoteProtocolError, "an option reply of 4294967295 bytes; 65536 is the limit")
async def announces_a_huge_option_reply(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.reply(peer.GO, peer.INFO, length=2**32 - 1))


@meets(opens, "T1", RemoteProtocolError, "an option reply of 4097 bytes; 4096 is the limit")
async def announces_a_long_refusal(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.reply(peer.GO, peer.ERR_UNKNOWN, length=4097))


@meets(opens, "T1", RemoteProtocolError, "a reply to option 6 came for NBD_OPT_GO")
async def answers_another_option(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.info_export(SIZE, option=peer.OPT_INFO))


@meets(opens, "T3", RemoteProtocolError, "an option reply has the wrong magic number")
async def answers_an_option_with_a_request_reply(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.simple(1) * 2)


@meets(opens, "T1", RemoteProtocolError, "a reply of type 0x2 to NBD_OPT_GO")
async def answers_go_with_a_list(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.reply(peer.GO, peer.SERVER, struct.pack(">I", 1) + b"x"))


@meets(opens, "T1", RemoteProtocolError, "a reply of type 0x3 to NBD_OPT_STRUCTURED_REPLY")
async def answers_yes_or_no_with_information(client: Client, _: ssl.SSLContext) -> None:
    await client.say(peer.greeting())
    await client.option_after_flags()
    await client.say(peer.reply(peer.STRUCTURED_REPLY, peer.INFO, bytes(12)))


@meets(opens, "T1", RemoteProtocolError, "more than 64 information replies")
async def informs_for_ever(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    while True:
        await client.say(peer.info_text(2, b"a description"))


@meets(lists, "T1", RemoteProtocolError, "more than 10000 entries")
async def lists_for_ever(client: Client, _: ssl.SSLContext) -> None:
    await structured(client)
    await client.option()
    while True:
        await client.say(peer.listed(b"disk") * 100)


@meets(lists, "T1", RemoteProtocolError, "or 4194304 bytes")
async def lists_volumes(client: Client, _: ssl.SSLContext) -> None:
    await structured(client)
    await client.option()
    for _number in range(10_000):
        await client.say(peer.listed(b"n" * 4092 + "😀".encode(), b"d" * 4092 + "😀".encode()))
    await client.say(peer.reply(peer.LIST, peer.ACK))


@meets(lists, "T1", RemoteProtocolError, "longer than its entry")
async def lists_a_name_that_is_not_there(client: Client, _: ssl.SSLContext) -> None:
    await structured(client)
    await client.option()
    await client.say(peer.reply(peer.LIST, peer.SERVER, struct.pack(">I", 1 << 31) + b"disk"))


@meets(lists, "T1", RemoteProtocolError, "an entry of the export list is too short")
async def lists_an_entry_of_nothing(client: Client, _: ssl.SSLContext) -> None:
    await structured(client)
    await client.option()
    await client.say(peer.reply(peer.LIST, peer.SERVER))


@meets(lists, "T9", RemoteProtocolError, "an export name is not UTF-8")
async def lists_a_name_that_is_no_text(client: Client, _: ssl.SSLContext) -> None:
    await structured(client)
    await client.option()
    await client.say(peer.listed(b"\xff\xfe disk"))


@meets(
    lists, "T9", ExportError, r"refuses the list of exports: forbidden by policy \(\\x1b\[2J\\r\\n\\x00\\x07 \\u202e"
)
async def forbids_listing_in_control_characters(client: Client, _: ssl.SSLContext) -> None:
    await structured(client)
    await client.option()
    await client.say(peer.reply(peer.LIST, peer.ERR_POLICY, TERMINAL))


@meets(queries, "T1", RemoteProtocolError, "more than 64 metadata contexts")
async def has_contexts_for_ever(client: Client, _: ssl.SSLContext) -> None:
    await structured(client)
    await client.option()
    for number in range(1000):
        await client.say(peer.context(0, b"x:%d" % number, peer.LIST_META_CONTEXT))


@meets(opens, "T1", RemoteProtocolError, r"metadata context 'x:\\x1b' was not asked for")
async def selects_a_context_by_itself(client: Client, _: ssl.SSLContext) -> None:
    await structured(client)
    await client.option()
    await client.say(peer.context(8, b"x:\x1b") + peer.reply(peer.SET_META_CONTEXT, peer.ACK))


@meets(opens, "T1", RemoteProtocolError, "metadata context 'base:allocation' is named twice")
async def names_a_context_twice(client: Client, _: ssl.SSLContext) -> None:
    await structured(client)
    await client.option()
    await client.say(peer.context(7, b"base:allocation") + peer.context(8, b"base:allocation"))


@meets(opens, "T1", RemoteProtocolError, "a metadata context reply is too short")
async def gives_a_context_without_an_id(client: Client, _: ssl.SSLContext) -> None:
    await structured(client)
    await client.option()
    await client.say(peer.reply(peer.SET_META_CONTEXT, peer.META_CONTEXT, b"abc"))


@meets(opens, "T1", RemoteProtocolError, "an information reply is too short")
async def informs_of_nothing(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.reply(peer.GO, peer.INFO))


@meets(opens, "T1", RemoteProtocolError, "NBD_INFO_EXPORT has 10 bytes; it needs 12")
async def describes_an_export_without_flags(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.reply(peer.GO, peer.INFO, struct.pack(">HQ", 0, SIZE)) + GO)


@meets(opens, "T1", RemoteProtocolError, "NBD_INFO_BLOCK_SIZE has 6 bytes; it needs 14")
async def describes_one_block_size_of_three(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.info_export(SIZE) + peer.reply(peer.GO, peer.INFO, struct.pack(">HI", 3, 512)) + GO)


@meets(opens, "T1", RemoteProtocolError, "NBD_OPT_GO ended without NBD_INFO_EXPORT")
async def opens_an_export_without_describing_it(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(GO)


@meets(opens, "T9", RemoteProtocolError, "the export's name is not UTF-8")
async def has_a_name_that_is_no_text(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.info_text(1, b"\xc3\x28"))


@meets(opens, "T9", RemoteProtocolError, "the export's description is 5000 bytes long")
async def describes_at_length(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.info_text(2, b"word " * 1000))


@meets(opens, "T9", ExportError, r"unknown export \(\\x1b\[2J\\r\\n\\x00\\x07 \\u202e �\)$")
async def refuses_in_control_characters(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.reply(peer.GO, peer.ERR_UNKNOWN, TERMINAL))


@meets(opens, "T9", ExportError, r"refuses the default export: reply of type 0x80001234 \(x{256}…\)$")
async def refuses_at_length_for_a_reason_nobody_knows(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.reply(peer.GO, 0x80001234, b"x" * 4096))


@meets(opens, "T12", TlsError, "the server demands TLS")
async def demands_tls_of_the_unsuspecting(client: Client, _: ssl.SSLContext) -> None:
    await client.say(peer.greeting())
    await client.option_after_flags()
    await client.say(peer.reply(peer.STRUCTURED_REPLY, peer.ERR_TLS_REQD))


@meets(opens, "T3", RemoteProtocolError, "the server sent bytes that nobody asked for")
async def goes_on_talking(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.info_export(SIZE) + GO + peer.simple(1))


@meets(opens, "T11", ExportError, "the server hung up, waiting for the size of the default export")
async def does_not_like_the_name(client: Client, _: ssl.SSLContext) -> None:
    await without_go(client)
    client.hang_up()


@meets(opens, "T7", DeadlineError, "the size of the default export did not come", patient=False)
async def forgets_the_padding(client: Client, _: ssl.SSLContext) -> None:
    await without_go(client)
    await client.say(struct.pack(">QH", SIZE, peer.ALL_FLAGS) + bytes(123))


@meets(opens, "T2", ExportError, "its size is 18446744073709551615")
async def opens_by_name_what_no_number_holds(client: Client, _: ssl.SSLContext) -> None:
    await without_go(client)
    await client.say(struct.pack(">QH", 2**64 - 1, peer.ALL_FLAGS) + bytes(124))


# --- sizes -----------------------------------------------------------------------------------------------------------


@meets(opens, "T2", ExportError, "has a size of 0 bytes")
async def has_no_size(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.info_export(0) + GO)


@meets(opens, "T2", ExportError, "its size 1048577 is no multiple of its minimum block size 512")
async def has_half_a_block(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.info_export(SIZE + 1) + peer.info_block_size(512, 4096, 1 << 25) + GO)


@meets(opens, "T2", ExportError, "its minimum block size 513 is not a power of two")
async def has_crooked_blocks(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.info_block_size(513, 4096, 1 << 25) + peer.info_export(SIZE) + GO)


@meets(opens, "T2", ExportError, "its preferred block size 512 is below its minimum block size 4096")
async def prefers_less_than_it_takes(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.info_export(SIZE) + peer.info_block_size(4096, 512, 1 << 25) + GO)


@meets(opens, "T2", ExportError, "its maximum block size 512 is below its preferred block size 4096")
async def takes_less_than_it_prefers(client: Client, _: ssl.SSLContext) -> None:
    await to_go(client)
    await client.say(peer.info_export(SIZE) + peer.info_block_size(512, 4096, 512) + GO)


# --- TLS -------------------------------------------------------------------------------------------------------------


@meets(opens, "T12", TlsError, r"does not start TLS: forbidden by policy \(no\\nTLS\)", tls="starttls")
async def refuses_tls(client: Client, _: ssl.SSLContext) -> None:
    await to_starttls(client)
    await client.say(peer.reply(peer.STARTTLS, peer.ERR_POLICY, b"no\nTLS"))


@meets(opens, "T12", TlsError, "the server lacks TLS: it does not speak fixed newstyle", tls="starttls")
async def strips_the_flag_that_tls_needs(client: Client, _: ssl.SSLContext) -> None:
    await client.say(peer.greeting(peer.NO_ZEROES))


@meets(opens, "T12", TlsError, "oldstyle NBD", tls="starttls")
async def strips_all_options(client: Client, _: ssl.SSLContext) -> None:
    await client.say(b"NBDMAGIC" + struct.pack(">QQI", 0x00420281861253, SIZE, 0) + bytes(124))


@meets(opens, "T12", TlsError, "does not start TLS: reply of type 0x1", tls="starttls")
async def agrees_to_tls_with_a_remark(client: Client, _: ssl.SSLContext) -> None:
    await to_starttls(client)
    await client.say(peer.reply(peer.STARTTLS, peer.ACK, b"later"))


@meets(opens, "T12", RemoteProtocolError, "a reply to option 7 came for NBD_OPT_STARTTLS", tls="starttls")
async def opens_an_export_instead_of_tls(client: Client, _: ssl.SSLContext) -> None:
    await to_starttls(client)
    await client.say(peer.info_export(SIZE) + GO)


@meets(opens, "T13", TlsError, "plain text where TLS should begin", tls="starttls")
async def agrees_to_tls_and_goes_on_in_plain_text(client: Client, _: ssl.SSLContext) -> None:
    await to_starttls(client)
    await client.say(AGREED + peer.reply(peer.STRUCTURED_REPLY, peer.ACK))


@meets(opens, "T13", TlsError, "TLS failed", tls="starttls")
async def says_plain_text_into_the_tls_handshake(client: Client, _: ssl.SSLContext) -> None:
    await to_starttls(client)
    await client.say(AGREED)
    await client.hear(5)  # the client's hello has begun
    await client.say(peer.reply(peer.STRUCTURED_REPLY, peer.ACK))


@meets(opens, "T15", TlsError, "TLS failed: .*handshake failure", tls="starttls")
async def raises_an_alert(client: Client, _: ssl.SSLContext) -> None:
    await to_starttls(client)
    await client.say(AGREED)
    await client.hear(5)
    await client.say(b"\x15\x03\x03\x00\x02\x02\x28")


@meets(opens, "T7", DeadlineError, "TLS did not come", patient=False, tls="starttls")
async def stalls_in_the_tls_handshake(client: Client, _: ssl.SSLContext) -> None:
    await to_starttls(client)
    await client.say(AGREED)
    await client.silence()


@meets(opens, "T11", TlsError, "closed the connection when it was asked for TLS", tls="starttls")
async def hangs_up_when_asked_for_tls(client: Client, _: ssl.SSLContext) -> None:
    await to_starttls(client)
    client.hang_up()


@meets(opens, "T14", RemoteProtocolError, "an option reply has the wrong magic number", tls="starttls")
async def begins_again_under_tls(client: Client, context: ssl.SSLContext) -> None:
    await in_tls(client, context)
    await client.say(peer.greeting() * 2)


@meets(opens, "T14", RemoteProtocolError, "a reply to option 5 came for NBD_OPT_STRUCTURED_REPLY", tls="starttls")
async def agrees_to_tls_under_tls(client: Client, context: ssl.SSLContext) -> None:
    await in_tls(client, context)
    await client.say(AGREED)


@meets(opens, "T15", TlsError, "right after TLS; it may want a client certificate", tls="starttls")
async def hangs_up_after_the_tls_handshake(client: Client, context: ssl.SSLContext) -> None:
    await in_tls(client, context)
    client.hang_up()


@meets(opens, "T12", TlsError, "TLS failed|plain text where TLS should begin", tls="direct")
async def greets_where_tls_was_expected(client: Client, _: ssl.SSLContext) -> None:
    await client.hear(5)
    await client.say(peer.greeting())


# --- replies to requests ---------------------------------------------------------------------------------------------


@suffers(reads, "T3", RemoteProtocolError, "a reply has the wrong magic number 0x12345678")
async def replies_in_another_language(client: Client, _: ssl.SSLContext) -> None:
    await to_request(client)
    await client.say(struct.pack(">IIQ", 0x12345678, 0, 1))


@suffers(reads, "T3", RemoteProtocolError, "a reply to request 777, which is not in flight")
async def replies_to_nobody(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.data(cookie + 776, 0, bytes(READ), done=True))


@suffers(reads_twice, "T3", RemoteProtocolError, "which is not in flight")
async def replies_twice(client: Client, _: ssl.SSLContext) -> None:
    await client.open(SIZE)
    first, second = await client.request(), await client.request()
    await client.say(peer.data(second.cookie, READ, bytes(READ), done=True) * 2)
    await client.say(peer.data(first.cookie, 0, bytes(READ), done=True))


@suffers(reads_twice, "T4", RemoteProtocolError, "outside of it")
async def mixes_up_two_replies(client: Client, _: ssl.SSLContext) -> None:
    await client.open(SIZE)
    first, second = await client.request(), await client.request()
    await client.say(peer.data(first.cookie, second.offset, bytes(READ), done=True))
    await client.say(peer.data(second.cookie, first.offset, bytes(READ), done=True))


@suffers(reads, "T3", RemoteProtocolError, "a simple reply to a read that needs a structured one")
async def replies_simply_although_structured_was_agreed(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.simple(cookie, 0, bytes(READ)))


@suffers(reads, "T3", RemoteProtocolError, "a reply has the wrong magic number 0x668e33ef")
async def replies_in_chunks_that_were_refused(client: Client, _: ssl.SSLContext) -> None:
    await client.open(SIZE, structured=False)
    request = await client.request()
    await client.say(peer.data(request.cookie, 0, bytes(READ), done=True))


@suffers(reads_twice, "T3", RequestError, "EIO$")
async def sends_payload_behind_an_error(client: Client, _: ssl.SSLContext) -> None:
    await client.open(SIZE, structured=False)
    first, _second = await client.request(), await client.request()
    await client.say(peer.simple(first.cookie, 5, bytes(READ)))


@suffers(reads, "T4", RemoteProtocolError, "a chunk of type 1 with 4294967295 bytes")
async def announces_a_huge_chunk(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.chunk(cookie, peer.OFFSET_DATA, length=2**32 - 1))


@suffers(reads, "T4", RemoteProtocolError, "a chunk of type 1 with 8 bytes")
async def sends_data_of_no_length(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    while True:
        await client.say(peer.data(cookie, 0, b""))


@suffers(reads, "T4", RemoteProtocolError, "2 bytes at 4095 in the reply to .*: outside of it")
async def sends_data_beyond_the_end(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.data(cookie, READ - 1, b"xy", done=True))


@suffers(reads, "T4", RemoteProtocolError, "10 bytes at 18446744073709551615 .*: outside of it")
async def has_a_hole_around_the_end_of_the_world(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.hole(cookie, 2**64 - 1, 10, done=True))


@suffers(reads, "T4", RemoteProtocolError, "100 bytes at 50 .*: some came before")
async def sends_bytes_twice(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.data(cookie, 0, bytes(100)) + peer.data(cookie, 50, bytes(100)))


@suffers(reads, "T4", RemoteProtocolError, "4096 bytes at 0 .*: some came before")
async def punches_a_hole_into_data(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.data(cookie, 100, bytes(100)) + peer.hole(cookie, 0, READ, done=True))


@suffers(reads, "T4", RemoteProtocolError, "ends before all bytes came")
async def leaves_a_gap(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.data(cookie, 0, bytes(1000)) + peer.data(cookie, 1001, bytes(READ - 1001), done=True))


@suffers(reads, "T4", RemoteProtocolError, "ends before all bytes came")
async def is_done_without_a_byte(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.chunk(cookie, peer.NONE, done=True))


@suffers(reads, "T4", RemoteProtocolError, "a chunk of type 0 with 0 bytes")
async def sends_nothing_and_more_to_come(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    while True:
        await client.say(peer.chunk(cookie, peer.NONE))


@suffers(reads, "T4", RemoteProtocolError, "more chunks than 4096 bytes can have")
async def regrets_for_ever(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    while True:
        await client.say(peer.error(cookie, 5, b"sorry", done=False))


@suffers(reads, "T4", RemoteProtocolError, "more chunks than 4096 bytes can have")
async def crumbles(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    for offset in range(READ):
        await client.say(peer.data(cookie, offset, b"x", done=offset == READ - 1))


@suffers(reads, "T4", RemoteProtocolError, "a chunk of type 9 in the reply to a read")
async def sends_a_chunk_of_its_own_invention(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.chunk(cookie, 9, bytes(8), done=True))


@suffers(reads, "T4", RemoteProtocolError, "an error message is longer than its chunk")
async def announces_more_regret_than_it_sends(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.chunk(cookie, peer.ERROR, struct.pack(">IH", 5, 60_000) + b"sorry", done=True))


@suffers(reads, "T4", RemoteProtocolError, "an error chunk carries no error")
async def fails_without_an_error(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.error(cookie, 0, b"all is well"))


@suffers(reads, "T4", RemoteProtocolError, "an error at 4096 in the reply to .*: outside of it")
async def fails_somewhere_else(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.error(cookie, 5, offset=READ))


@suffers(reads, "T4", RequestError, "read of 4096 bytes at 0: EIO: later$", lives=True)
async def sends_all_and_fails_in_the_end(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.data(cookie, 0, bytes(READ)) + peer.error(cookie, 5, b"later"))
    await serves_a_read(client)


@suffers(reads, "T4", RequestError, "error 4242: ", lives=True)
async def fails_in_a_way_of_its_own(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.chunk(cookie, 0xFFFF, struct.pack(">IH", 4242, 4) + b"oops" + bytes(100), done=True))
    await serves_a_read(client)


@suffers(reads, "T9", RequestError, r"EIO: \\x1b\[2J\\r\\n\\x00\\x07 \\u202e �$", lives=True)
async def fails_in_control_characters(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.error(cookie, 5, TERMINAL))
    await serves_a_read(client)


@suffers(flushes, "T3", RemoteProtocolError, "a chunk of type 1 in the reply to a flush")
async def answers_a_flush_with_data(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.data(cookie, 0, bytes(READ), done=True))


@suffers(writes, "T3", RemoteProtocolError, "a chunk of type 2 in the reply to a write")
async def answers_a_write_with_a_hole(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.hole(cookie, 0, READ, done=True))


@suffers(writes, "T3", RemoteProtocolError, "a simple reply to a write that needs a structured one")
async def accepts_a_write_it_has_just_refused(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.error(cookie, 28, done=False) + peer.simple(cookie))


# --- block status ----------------------------------------------------------------------------------------------------


@suffers(reads, "T5", RemoteProtocolError, "a chunk of type 5 in the reply to a read")
async def answers_a_read_with_block_status(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.status(cookie, [(READ, 3)]))


@suffers(maps, "T5", RemoteProtocolError, "a chunk of type 5 with 4 bytes")
async def has_no_extents(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.status(cookie, []))


@suffers(maps, "T5", RemoteProtocolError, "a block status descriptor at 4096 has no length")
async def has_an_extent_of_nothing(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.status(cookie, [(4096, 0), (0, 3), (SIZE, 0)]))


@suffers(maps, "T5", RemoteProtocolError, "block status of metadata context 8, which is unknown or came before")
async def tells_of_another_context(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.status(cookie, [(SIZE, 3)], number=8))


@suffers(maps, "T5", RemoteProtocolError, "metadata context 7, which is unknown or came before")
async def tells_two_stories_of_one_context(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.status(cookie, [(SIZE, 3)], done=False) + peer.status(cookie, [(SIZE, 0)]))


@suffers(maps, "T5", RemoteProtocolError, "ends before all metadata contexts came")
async def tells_of_no_context(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.chunk(cookie, peer.NONE, done=True))


@suffers(maps, "T5", RemoteProtocolError, "a chunk of type 5 with 9 bytes")
async def ends_within_an_extent(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.chunk(cookie, peer.STATUS, struct.pack(">IIB", 7, SIZE, 0), done=True))


@suffers(maps, "T5", RemoteProtocolError, "a chunk of type 5 with 4294967292 bytes")
async def announces_half_a_billion_extents(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.chunk(cookie, peer.STATUS, struct.pack(">I", 7), length=2**32 - 4, done=True))


@suffers(maps, "T5", RemoteProtocolError, "a simple reply to a block status that needs a structured one")
async def nods_at_a_block_status(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.simple(cookie))


@suffers(maps_a_context, "T5", ExportError, "at 528896 comes in pieces .*: asking would not end", lives=True)
async def tells_of_one_sector_at_a_time(client: Client, _: ssl.SSLContext) -> None:
    await client.open(1 << 50)
    while (request := await client.request()).kind == peer.BLOCK_STATUS:
        await client.say(peer.status(request.cookie, [(512, 0)]))
    await client.say(peer.data(request.cookie, request.offset, bytes(request.length), done=True))


# --- time, and the end -----------------------------------------------------------------------------------------------


@suffers(writes, "T7", DeadlineError, "no byte came or left for", patient=False)
async def takes_a_write_and_says_no_more(client: Client, _: ssl.SSLContext) -> None:
    await to_request(client)
    await client.silence()


@suffers(flushes, "T7", DeadlineError, "a request was not answered within", patient=False)
async def flushes_for_ever(client: Client, _: ssl.SSLContext) -> None:
    await to_request(client)
    await client.silence()


@suffers(reads, "T7", DeadlineError, "no byte came or left for", patient=False)
async def stops_within_the_data(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.data(cookie, 0, bytes(READ), done=True)[:2000])
    await client.silence()


@suffers(reads, "T7", DeadlineError, "a request was not answered within", patient=False)
async def drips_its_data(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    for byte in peer.data(cookie, 0, bytes(READ), done=True):
        await client.say(bytes([byte]))
        await asyncio.sleep(0.1)


@suffers(writes_all, "T7", DeadlineError, "no byte came or left for", patient=False)
async def does_not_listen(client: Client, _: ssl.SSLContext) -> None:
    await client.open(SIZE)
    await client.deafness()


@suffers(reads, "T11", ConnectionLostError, "the connection was closed by the server|the connection was lost")
async def hangs_up_within_a_header(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.data(cookie, 0, bytes(READ), done=True)[:10])
    client.hang_up()


@suffers(reads, "T11", ConnectionLostError, "the connection was closed by the server")
async def closes_its_half_within_the_data(client: Client, _: ssl.SSLContext) -> None:
    cookie = await to_request(client)
    await client.say(peer.data(cookie, 0, bytes(READ), done=True)[:1000])
    client.half_close()


@suffers(reads_twice, "T11", ConnectionLostError, "the connection was closed by the server|the connection was lost")
async def answers_one_and_leaves(client: Client, _: ssl.SSLContext) -> None:
    await client.open(SIZE)
    _first, second = await client.request(), await client.request()
    await client.say(peer.data(second.cookie, READ, bytes(READ), done=True))
    client.hang_up()


def _two_disks() -> Script:
    """Sizes that change from one connection to the next."""
    sizes = iter(range(SIZE, 1 << 62, SIZE))

    async def is_another_disk_each_time(client: Client, _: ssl.SSLContext) -> None:
        await client.open(next(sizes))

    return is_another_disk_each_time


meets(opens_twice, "T8", ExportError, "size, flags or block sizes differ between two connections")(_two_disks())
