"""The handshake of NBD, from the server's greeting to an open export, without any I/O.

A driver feeds and drains it::

    handshake = opening("host:10809", tls=True, export="disk", contexts=["base:allocation"])
    while not handshake.done:
        send(handshake.outgoing())
        if handshake.wants_tls:
            ...                                   # verify the server; nothing of the session was said before
            handshake.tls_started()
        else:
            n = receive_into(handshake.next_buffer())
            handshake.received(n)                 # 0 bytes, the end of the stream: raise handshake.closed()
    send(handshake.outgoing())
    handshake.result

With TLS of style `starttls` the first option is NBD_OPT_STARTTLS and anything but its plain acknowledgement ends the
connection, a byte behind the acknowledgement included: such a byte may come from somebody else, and must not be read as
if TLS had protected it. Without TLS the option is never sent; with style `direct` neither, because TLS is there before
the server's greeting.

Each conversation is a generator that yields how many bytes it needs next and is sent exactly these, so the code reads
in the order of the protocol.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

from ..errors import ConnectionLostError, ExportError, NbdError, RemoteProtocolError, SfasyncError, TlsError, printable
from ..models import TlsStyle
from . import const, wire

_T = TypeVar("_T")

_START_TLS = -1
"""What a conversation yields instead of a number of bytes when TLS has to start."""

_Conversation = Generator[int, bytes, _T]


class ExportInfo(NamedTuple):
    """What a server says of an export.

    Attributes:
        name: Its name, as the server spells it if it told.
        size: Bytes; 0 where there is nothing, or the server does not know.
        flags: Transmission flags (proto.md, "Transmission flags").
        block_sizes: Block size constraints; None where the server named none.
        description: Text for people; empty where there is none.
        contexts: Metadata contexts by name, with their ids: those selected, or those on offer if the export was only
            asked about (then the ids mean nothing).
        structured: Whether replies are structured.
    """

    name: str
    size: int
    flags: int
    block_sizes: wire.BlockSizes | None = None
    description: str = ""
    contexts: Mapping[str, int] = MappingProxyType({})
    structured: bool = False


class ExportEntry(NamedTuple):
    """One line of a server's list of exports."""

    name: str
    description: str = ""


class Handshake(Generic[_T]):
    """One conversation before the transmission phase, and its result.

    Attributes:
        done: Whether the conversation has ended well; then `result` is there and what `outgoing` has left must be sent.
        wants_tls: Whether the driver must start TLS before anything else happens.
    """

    def __init__(self, peer: str, haggling: _Haggling, conversation: _Conversation[_T]) -> None:
        self.done = False
        self.wants_tls = False
        self._peer = peer
        self._haggling = haggling
        self._conversation = conversation
        self._staging = bytearray(const.MAX_OPTION_REPLY + 4096)
        self._start = 0
        self._end = 0
        self._need = 0
        self._advance(None)

    @property
    def result(self) -> _T:
        assert self.done, "the handshake has not ended"
        return self._result

    @property
    def stage(self) -> str:
        """What is being waited for, for messages."""
        return self._haggling.stage

    def outgoing(self) -> bytes:
        """What has to be sent now; each byte is handed out once."""
        data = bytes(self._haggling.out)
        self._haggling.out.clear()
        return data

    def next_buffer(self) -> memoryview:
        """Where the next received bytes go; never empty."""
        return memoryview(self._staging)[self._end :]

    def received(self, count: int) -> None:
        """Take note of `count` bytes in the buffer.

        Raises:
            NbdError: The server broke the protocol, or refused.
            TlsError: The server lacks, refuses or demands TLS.
        """
        self._end += count
        while not self.done and not self.wants_tls and self._end - self._start >= self._need:
            stop = self._start + self._need
            data = bytes(memoryview(self._staging)[self._start : stop])
            self._start = stop
            self._advance(data)
        left = self._end - self._start
        if left and (self.done or self.wants_tls):
            raise self._unasked()
        self._staging[:left] = self._staging[self._start : self._end]
        self._start, self._end = 0, left

    def tls_started(self) -> None:
        """TLS is up and the server is who it should be: go on under its protection."""
        assert self.wants_tls, "TLS was not asked for"
        self.wants_tls = False
        self._advance(b"")

    def closed(self) -> SfasyncError:
        """The error that the end of the stream means at this point."""
        return self._named(self._haggling.closed())

    def _advance(self, data: bytes | None) -> None:
        try:
            need = next(self._conversation) if data is None else self._conversation.send(data)
        except StopIteration as stop:
            self._result: _T = stop.value
            self.done = True
        except (NbdError, TlsError) as error:
            raise self._named(error) from error
        else:
            self.wants_tls = need == _START_TLS
            self._need = max(need, 0)

    def _unasked(self) -> SfasyncError:
        if self.wants_tls:
            return self._named(TlsError("plain text where TLS should begin; somebody may be tampering"))
        return self._named(RemoteProtocolError("the server sent bytes that nobody asked for"))

    def _named(self, error: SfasyncError) -> SfasyncError:
        return type(error)(f"{self._peer}: {error}")


def opening(peer: str, *, tls: TlsStyle | None, export: str, contexts: Sequence[str] = ()) -> Handshake[ExportInfo]:
    """The conversation that opens an export, with as many of the metadata contexts as the server has.

    Args:
        peer: Names the server in messages.
        tls: How TLS begins; None for a plain connection.
        export: Name of the export, at most 4096 bytes in UTF-8.
        contexts: Queries for metadata contexts, such as ``base:allocation`` or ``qemu:dirty-bitmap:b0``.

    Raises:
        ExportError: A name is too long for the protocol.
    """
    haggling = _Haggling(tls)
    conversation = haggling.opening(_encoded(peer, export), [_encoded(peer, context) for context in contexts])
    return Handshake(peer, haggling, conversation)


def querying(peer: str, *, tls: TlsStyle | None, export: str) -> Handshake[ExportInfo]:
    """The conversation that asks about an export, all its metadata contexts included, without opening it."""
    haggling = _Haggling(tls)
    return Handshake(peer, haggling, haggling.querying(_encoded(peer, export)))


def listing(peer: str, *, tls: TlsStyle | None) -> Handshake[list[ExportEntry]]:
    """The conversation that asks which exports there are."""
    haggling = _Haggling(tls)
    return Handshake(peer, haggling, haggling.listing())


class _Haggling:
    """What both sides said so far, and the conversations as generators. Its errors do not name the server.

    Attributes:
        out: Bytes to be sent.
        stage: What is being waited for.
    """

    def __init__(self, tls: TlsStyle | None) -> None:
        self.out = bytearray()
        self.stage = "the server's greeting"
        self._tls = tls
        self._option = 0  # the last one sent
        self._heard_in_tls = False
        self._fixed = False
        self._no_zeroes = False
        self._structured = False

    def closed(self) -> SfasyncError:
        if self._option == const.OPT_STARTTLS:
            return TlsError("the server closed the connection when it was asked for TLS")
        if self._tls == "direct" and not self._heard_in_tls:
            return TlsError(
                "the server closed the connection before it said anything in TLS; it may not speak TLS from the first "
                "byte, or may want a client certificate"
            )
        if self._tls and self._option and not self._heard_in_tls:
            # With TLS 1.3 a server judges our certificate after our side of the TLS handshake is done.
            return TlsError("the server closed the connection right after TLS; it may want a client certificate")
        if self._option == const.OPT_EXPORT_NAME:
            return ExportError(f"the server hung up, waiting for {self.stage}; it may not have this export")
        return ConnectionLostError(f"the server closed the connection, waiting for {self.stage}")

    # --- conversations ---

    def opening(self, export: bytes, queries: list[bytes]) -> _Conversation[ExportInfo]:
        yield from self._greet()
        contexts = (yield from self._contexts(const.OPT_SET_META_CONTEXT, export, queries)) if queries else {}
        info = (yield from self._describe(const.OPT_GO, export)) if self._fixed else None
        if info is None:
            info = yield from self._open_by_name(export)
        _check(info)
        return info._replace(contexts=contexts, structured=self._structured)

    def querying(self, export: bytes) -> _Conversation[ExportInfo]:
        yield from self._greet()
        contexts = yield from self._contexts(const.OPT_LIST_META_CONTEXT, export, [])
        info = (yield from self._describe(const.OPT_INFO, export)) if self._fixed else None
        if info is None:
            raise ExportError("the server is too old to be asked about an export without opening it")
        self._abort()
        return info._replace(contexts=contexts, structured=self._structured)

    def listing(self) -> _Conversation[list[ExportEntry]]:
        yield from self._greet()
        if not self._fixed:
            raise ExportError("the server is too old to list its exports")
        self._send(const.OPT_LIST)
        entries: list[ExportEntry] = []
        size = 0
        while True:
            kind, payload = yield from self._reply()
            if kind == const.REP_ACK:
                self._abort()
                return entries
            if kind != const.REP_SERVER:
                raise self._refused(kind, payload, "the list of exports")
            size += len(payload)
            if len(entries) == const.MAX_EXPORTS or size > const.MAX_EXPORT_LIST:
                raise RemoteProtocolError(
                    f"the list of exports has more than {const.MAX_EXPORTS} entries or {const.MAX_EXPORT_LIST} bytes"
                )
            entries.append(ExportEntry(*wire.decode_server(payload)))

    # --- steps ---

    def _greet(self) -> _Conversation[None]:
        """Newstyle negotiation, TLS where it is wanted, structured replies (proto.md, "Newstyle negotiation")."""
        if self._tls == "direct":
            yield _START_TLS
        magic, style = wire.GREETING.unpack((yield wire.GREETING.size))
        self._heard_in_tls = self._tls == "direct"
        if magic != const.NBDMAGIC:
            raise RemoteProtocolError("this is not an NBD server")
        if style == const.CLISERV_MAGIC:
            refusal = TlsError if self._tls else ExportError
            raise refusal("the server speaks oldstyle NBD, without export names and TLS; that is not supported")
        if style != const.IHAVEOPT:
            raise RemoteProtocolError("the server's greeting is of no known style")
        (flags,) = wire.HANDSHAKE_FLAGS.unpack((yield wire.HANDSHAKE_FLAGS.size))
        self._fixed = bool(flags & const.FLAG_FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & const.FLAG_NO_ZEROES)
        if self._tls == "starttls" and not self._fixed:
            raise TlsError("the server lacks TLS: it does not speak fixed newstyle NBD")
        self.out += wire.CLIENT_FLAGS.pack(flags & (const.FLAG_FIXED_NEWSTYLE | const.FLAG_NO_ZEROES))
        if self._tls == "starttls":
            yield from self._start_tls()
        if self._fixed:
            self._structured = yield from self._accepted(const.OPT_STRUCTURED_REPLY)

    def _start_tls(self) -> _Conversation[None]:
        self._send(const.OPT_STARTTLS)
        kind, payload = yield from self._reply()
        if kind != const.REP_ACK or payload:
            raise TlsError(f"the server does not start TLS: {_said(kind, payload)}")
        self.stage = "TLS"
        yield _START_TLS

    def _accepted(self, option: int) -> _Conversation[bool]:
        """Whether the server takes an option that has no data and needs no answer but yes or no."""
        self._send(option)
        kind, payload = yield from self._reply()
        if kind == const.REP_ERR_TLS_REQD or not (kind == const.REP_ACK or kind & const.REP_FLAG_ERROR):
            raise self._refused(kind, payload, const.OPTION_NAMES[option])
        return kind == const.REP_ACK

    def _contexts(self, option: int, export: bytes, queries: list[bytes]) -> _Conversation[dict[str, int]]:
        """Metadata contexts by name; none where the server does not know them or the export (GO will say so)."""
        contexts: dict[str, int] = {}
        if not self._structured:
            return contexts
        self._send(option, wire.encode_contexts(export, queries))
        while True:
            kind, payload = yield from self._reply()
            if kind == const.REP_ACK:
                break
            if kind == const.REP_ERR_TLS_REQD or not (kind == const.REP_META_CONTEXT or kind & const.REP_FLAG_ERROR):
                raise self._refused(kind, payload, "metadata contexts")
            if kind & const.REP_FLAG_ERROR:
                return {}
            if len(contexts) == const.MAX_INFOS:
                raise RemoteProtocolError(f"more than {const.MAX_INFOS} metadata contexts")
            context, name = wire.decode_context(payload)
            if name in contexts:
                raise RemoteProtocolError(f"metadata context '{printable(name)}' is named twice")
            if option == const.OPT_SET_META_CONTEXT and name.encode() not in queries:
                # Every block status would carry it as well, so a server could make answers as large as it likes.
                raise RemoteProtocolError(f"metadata context '{printable(name)}' was not asked for")
            contexts[name] = context
        if option == const.OPT_SET_META_CONTEXT and len(set(contexts.values())) < len(contexts):
            raise RemoteProtocolError("two metadata contexts share one id")
        return contexts

    def _describe(self, option: int, export: bytes) -> _Conversation[ExportInfo | None]:
        """What NBD_OPT_GO or NBD_OPT_INFO tells of an export; None where the server does not know the option."""
        wanted = (const.INFO_NAME, const.INFO_DESCRIPTION, const.INFO_BLOCK_SIZE)
        self._send(option, wire.encode_info(export, wanted))
        info = ExportInfo(name=export.decode(), size=-1, flags=0)
        for _ in range(const.MAX_INFOS + 1):
            kind, payload = yield from self._reply()
            if kind == const.REP_ACK:
                if info.size < 0:
                    raise RemoteProtocolError(f"{const.OPTION_NAMES[option]} ended without NBD_INFO_EXPORT")
                return info
            if kind == const.REP_ERR_UNSUP:
                return None
            if kind != const.REP_INFO:
                raise self._refused(kind, payload, _quoted(export))
            info = _with_information(info, payload)
        raise RemoteProtocolError(f"more than {const.MAX_INFOS} information replies")

    def _open_by_name(self, export: bytes) -> _Conversation[ExportInfo]:
        """The one option of servers without NBD_OPT_GO; a server that does not like the name hangs up."""
        self._send(const.OPT_EXPORT_NAME, export)
        self.stage = f"the size of {_quoted(export)}"
        size, flags = wire.EXPORT_NAME_REPLY.unpack((yield wire.EXPORT_NAME_REPLY.size))
        if not self._no_zeroes:
            yield wire.EXPORT_NAME_PADDING
        return ExportInfo(name=export.decode(), size=size, flags=flags)

    def _abort(self) -> None:
        """Part in peace. The server's answer is not waited for, as the protocol allows."""
        self.out += wire.encode_option(const.OPT_ABORT)

    # --- messages ---

    def _send(self, option: int, data: bytes = b"") -> None:
        self.out += wire.encode_option(option, data)
        self._option = option
        self.stage = f"the answer to {const.OPTION_NAMES[option]}"

    def _reply(self) -> _Conversation[tuple[int, bytes]]:
        """Type and payload of the next reply to the option sent last."""
        magic, option, kind, length = wire.OPTION_REPLY.unpack((yield wire.OPTION_REPLY.size))
        if magic != const.OPTION_REPLY_MAGIC:
            raise RemoteProtocolError("an option reply has the wrong magic number")
        if option != self._option:
            raise RemoteProtocolError(f"a reply to option {option} came for {const.OPTION_NAMES[self._option]}")
        limit = const.MAX_STRING if kind & const.REP_FLAG_ERROR else const.MAX_OPTION_REPLY
        if length > limit:
            raise RemoteProtocolError(f"an option reply of {length} bytes; {limit} is the limit")
        self._heard_in_tls = option != const.OPT_STARTTLS
        return kind, (yield length)

    def _refused(self, kind: int, payload: bytes, what: str) -> SfasyncError:
        """The error for a reply that is neither data nor acknowledgement."""
        if not kind & const.REP_FLAG_ERROR:
            return RemoteProtocolError(f"a reply of type {kind:#x} to {const.OPTION_NAMES[self._option]}")
        if kind == const.REP_ERR_TLS_REQD:
            return TlsError("the server demands TLS; use an nbds URI")
        return ExportError(f"the server refuses {what}: {_said(kind, payload)}")


def _with_information(info: ExportInfo, payload: bytes) -> ExportInfo:
    """`info` with what one NBD_REP_INFO adds; types that are not known are passed over, as the protocol asks."""
    match wire.decode_info_type(payload):
        case const.INFO_EXPORT:
            size, flags = wire.decode_info_export(payload)
            return info._replace(size=size, flags=flags)
        case const.INFO_BLOCK_SIZE:
            return info._replace(block_sizes=wire.decode_info_block_size(payload))
        case const.INFO_NAME:
            return info._replace(name=wire.decode_info_text(payload, "the export's name"))
        case const.INFO_DESCRIPTION:
            return info._replace(description=wire.decode_info_text(payload, "the export's description"))
        case _:
            return info


def _check(info: ExportInfo) -> None:
    """Refuse an export that cannot be used as it is described (proto.md, "Block size constraints")."""
    size = info.size
    minimum, preferred, maximum = info.block_sizes or wire.BlockSizes(1, 1, const.NO_MAXIMUM_BLOCK_SIZE)
    if size > const.MAX_SIZE:
        problem = f"its size is {size}"
    elif not 0 < minimum <= const.MAX_MINIMUM_BLOCK_SIZE or minimum & (minimum - 1):
        problem = f"its minimum block size {minimum} is not a power of two up to {const.MAX_MINIMUM_BLOCK_SIZE}"
    elif preferred < minimum:
        problem = f"its preferred block size {preferred} is below its minimum block size {minimum}"
    elif maximum < max(minimum, min(preferred, size)):
        problem = f"its maximum block size {maximum} is below its preferred block size {preferred}"
    elif size % minimum:
        problem = f"its size {size} is no multiple of its minimum block size {minimum}"
    else:
        return
    raise ExportError(f"export '{printable(info.name)}' cannot be used: {problem}")


def _said(kind: int, payload: bytes) -> str:
    """A reply in words: what its type means, and the server's own text."""
    meaning = const.REP_ERROR_NAMES.get(kind, f"reply of type {kind:#x}")
    text = printable(payload.decode(errors="replace").strip())
    return f"{meaning} ({text})" if text else meaning


def _quoted(export: bytes) -> str:
    return f"export '{printable(export.decode())}'" if export else "the default export"


def _encoded(peer: str, text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise ExportError(f"{peer}: '{printable(text)}' has no form in UTF-8") from error
    if len(data) > const.MAX_STRING:
        raise ExportError(f"{peer}: a name of {len(data)} bytes is too long; NBD allows {const.MAX_STRING}")
    return data
