"""The transmission phase of NBD: requests out, replies in, without any I/O.

The session answers two questions of whoever receives: where do the next bytes go (`next_buffer`), and these many came,
what is finished (`received`). While a header is due the answer to the first is a staging area; while the payload of a
read is due it is the memory of that request, so the bulk of the data is never copied here::

    staging   hhhhPPPP            a reply's header, and the beginning of its payload: copied over
    request       PPPPPPPPPPPPPPPPPPPP        the rest is received in place
    staging   hhhhhhhhhhhhPPP     several small replies, and the beginning of another payload

Nothing that a server says is believed: cookies, kinds, lengths and offsets are judged before anything is allocated or
written, and a read is done only when each of its bytes has come exactly once.

Life of a command::

    QUEUED -> SENT -> DONE | FAILED
                   -> ABANDONED            nobody waits any more; NBD has no cancel, so its reply is still read
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

from ..errors import RemoteProtocolError, RequestError, SfasyncError, printable
from . import const, wire
from .coverage import Coverage

_STAGING: Final = 64 << 10
_ZEROS: Final = memoryview(bytes(1 << 20))


class State(Enum):
    QUEUED = "queued"
    SENT = "sent"
    DONE = "done"
    FAILED = "failed"
    ABANDONED = "abandoned"


class Command:
    """One request and what becomes of it.

    The memory of `buffer` belongs to the session from the moment the request is sent until the command is DONE or
    FAILED, or until `Session.abandon` for a read; the session then lets go of it.

    Attributes:
        kind: The request type, one of `const.CMD_*`.
        offset: First byte on the export.
        length: Bytes on the export.
        flags: Command flags, `const.CMD_FLAG_*`.
        buffer: What a read fills, or what a write carries: as many bytes as `length`, contiguous, of format ``B``.
        on_done: For the driver: whom to tell.
        state: Where it is in its life.
        cookie: The id of the request on the wire; 0 before it is sent.
        sent_at: For the driver: when it was sent.
        error: Why it failed.
        status: For BLOCK_STATUS: the payload of each metadata context, for `wire.decode_descriptors`.
    """

    __slots__ = (
        "buffer",
        "chunks",
        "cookie",
        "coverage",
        "error",
        "flags",
        "kind",
        "length",
        "offset",
        "on_done",
        "sent_at",
        "state",
        "status",
    )

    def __init__(
        self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, buffer: memoryview | None = None
    ) -> None:
        self.kind = kind
        self.offset = offset
        self.length = length
        self.flags = flags
        self.buffer = buffer
        self.on_done: Callable[[Command], None] | None = None
        self.state = State.QUEUED
        self.cookie = 0
        self.sent_at = 0.0
        self.error: SfasyncError | None = None
        self.status: dict[str, bytearray] | None = None
        self.coverage: Coverage | None = None
        self.chunks = 0

    def fail(self, error: SfasyncError) -> None:
        """End with an error of its own that says what `error` says: each waiter gets its own traceback."""
        own = type(error)(str(error), offset=self.offset, length=self.length)
        own.__cause__ = error.__cause__
        if self.error is not None:
            self.coverage = None  # the server said that something was wrong, and may have meant any of it
        self.error = own
        self.state = State.FAILED
        self.buffer = None

    def missing(self) -> list[tuple[int, int]]:
        """Of a read that failed with its connection: the ranges (start, end) within it that have not come.

        All of it, if nothing but the end of the reply has not: an error could still have followed.
        """
        gaps = None if self.coverage is None else self.coverage.gaps(0, self.length)
        return gaps or [(0, self.length)]

    def renew(self, buffer: memoryview | None) -> None:
        """Make a command that failed one that can be sent again, on whatever connection."""
        assert self.state is State.FAILED, f"{self!r} cannot be sent again"
        self.state = State.QUEUED
        self.buffer = buffer
        self.cookie = 0
        self.error = None
        self.status = None
        self.coverage = None
        self.chunks = 0

    def __repr__(self) -> str:
        return f"<{const.COMMAND_NAMES[self.kind]} of {self.length} bytes at {self.offset}, {self.state.value}>"


class Session:
    """The commands in flight on one connection, and the parser of their replies.

    Any exception of `received` is final: the connection is dead and `fail` must follow.

    Attributes:
        in_flight: Commands sent and not yet answered, by cookie, oldest first; abandoned ones included.
        abandoned: How many of them are abandoned.
    """

    def __init__(self, peer: str, *, structured: bool, contexts: Mapping[str, int] | None = None) -> None:
        """
        Args:
            peer: Names the server in messages.
            structured: Whether structured replies were negotiated.
            contexts: Metadata contexts that were selected: name and id.
        """
        self.in_flight: dict[int, Command] = {}
        self.abandoned = 0
        self._peer = peer
        self._structured = structured
        self._contexts = {context: name for name, context in (contexts or {}).items()}
        self._cookie = 0
        self._finished: list[Command] = []

        self._staging = memoryview(bytearray(_STAGING))
        self._start = 0  # of what is in staging and not yet understood
        self._end = 0
        self._discard: memoryview | None = None  # made when the first payload has to go nowhere

        # The payload that is being received in place; none while `_missing` is 0.
        self._current: Command | None = None
        self._target = self._staging  # where its next bytes go
        self._missing = 0  # bytes of it still to come
        self._until = 0  # for a read: where it ends within its request
        self._last_chunk = False  # whether the command is complete with it
        self._discarding = False  # whether it goes nowhere

    # --- what is sent ---

    def request(self, command: Command) -> bytes:
        """Enter a command into the table; gives the request's header, which its payload must follow at once."""
        assert command.state is State.QUEUED, f"{command!r} sent twice"
        self._cookie += 1
        command.cookie = self._cookie
        command.state = State.SENT
        self.in_flight[self._cookie] = command
        return wire.REQUEST.pack(
            const.REQUEST_MAGIC, command.flags, command.kind, self._cookie, command.offset, command.length
        )

    def usual_reply(self, command: Command) -> bytes:
        """The header that the reply to a read or write that was sent has if all is well, all bytes of a read at once.

        Writes are mostly answered by simple replies, also where structured ones were negotiated (qemu, nbdkit).

        If these very bytes come while nothing else is under way, the payload of a read may be received by the driver,
        who says `fulfilled` then, instead of by `next_buffer` and `received`.
        """
        if not self._structured or command.kind != const.CMD_READ:
            return wire.SIMPLE_REPLY.pack(const.SIMPLE_REPLY_MAGIC, 0, command.cookie)
        return wire.STRUCTURED_REPLY.pack(
            const.STRUCTURED_REPLY_MAGIC,
            const.REPLY_FLAG_DONE,
            const.REPLY_TYPE_OFFSET_DATA,
            command.cookie,
            wire.OFFSET_DATA.size + command.length,
        ) + wire.OFFSET_DATA.pack(command.offset)

    def fulfilled(self, command: Command) -> None:
        """The usual reply has come, and all its payload; for a command that is alone in flight."""
        self._finish(command)
        self._finished.clear()

    def abandon(self, command: Command) -> None:
        """Stop waiting for a command that was sent: its reply is read and dropped.

        The memory of a read is free when this returns, also in the middle of its payload. The memory of a write is the
        driver's to watch, who knows when its bytes have left.
        """
        assert command.state is State.SENT, f"{command!r} cannot be abandoned"
        command.state = State.ABANDONED
        self.abandoned += 1
        if command.kind == const.CMD_READ:
            command.buffer = None
            if command is self._current:
                self._redirect()

    def fail(self, error: SfasyncError) -> list[Command]:
        """End the session: every command in flight fails with an error like `error`.

        Gives all commands that `received` has not given yet, finished ones first. A read tells what it is `missing`.
        """
        current = self._current
        if current is not None and current.coverage is not None:
            current.coverage.remove(self._until - self._missing, self._until)
        for command in self.in_flight.values():
            if command.state is State.SENT:
                command.fail(error)
                self._finished.append(command)
        self.in_flight.clear()
        self.abandoned = 0
        self._current = None
        self._target = self._staging
        self._missing = 0
        return self._take_finished()

    # --- what comes ---

    def next_buffer(self) -> memoryview:
        """Where the next received bytes go; never empty, and valid until the next call of any method."""
        return self._target if self._missing else self._staging[self._end :]

    @property
    def in_payload(self) -> bool:
        """Whether all that goes into `next_buffer` is to come: it is part of a reply that has begun."""
        return self._missing > 0

    def received(self, count: int) -> list[Command]:
        """Take note of `count` bytes in the buffer; gives the commands that are finished with them.

        Raises:
            RemoteProtocolError: The server broke the protocol.
        """
        if self._missing:
            self._missing -= count
            if not self._missing:
                self._payload_complete()
            elif self._discarding:
                self._redirect()
            else:
                self._target = self._target[count:]
        else:
            self._end += count
            while not self._missing and self._understand():
                pass
            self._compact()
        return self._take_finished()

    def _take_finished(self) -> list[Command]:
        finished, self._finished = self._finished, []
        return finished

    def _compact(self) -> None:
        """Move what is left in staging, always less than a header and an error chunk, to its front."""
        if self._start:
            left = self._end - self._start
            if left:
                self._staging[:left] = self._staging[self._start : self._end]
            self._start, self._end = 0, left

    def _understand(self) -> bool:
        """Take one reply, or one chunk of one, from staging; False when it has not come completely."""
        available = self._end - self._start
        if available < wire.SIMPLE_REPLY.size:
            return False
        (magic,) = wire.MAGIC.unpack_from(self._staging, self._start)
        if magic == const.STRUCTURED_REPLY_MAGIC and self._structured:
            return available >= wire.STRUCTURED_REPLY.size and self._structured_reply(available)
        if magic != const.SIMPLE_REPLY_MAGIC:
            raise self._violation(f"a reply has the wrong magic number {magic:#010x}")
        self._simple_reply()
        return True

    # --- simple replies ---

    def _simple_reply(self) -> None:
        _, errno, cookie = wire.SIMPLE_REPLY.unpack_from(self._staging, self._start)
        self._start += wire.SIMPLE_REPLY.size
        command = self._command(cookie)
        if command.chunks or (self._structured and command.kind in (const.CMD_READ, const.CMD_BLOCK_STATUS)):
            raise self._violation(
                f"a simple reply to a {const.COMMAND_NAMES[command.kind]} that needs a structured one"
            )
        if errno:
            self._finish(command, self._refusal(command, errno, ""))
        elif command.kind == const.CMD_READ:
            self._cover(command, command.offset, command.length)
            self._until = command.length
            self._receive(command, command.buffer, command.length, last=True)
        else:
            self._finish(command)

    # --- structured replies ---

    def _structured_reply(self, available: int) -> bool:
        _, flags, kind, cookie, length = wire.STRUCTURED_REPLY.unpack_from(self._staging, self._start)
        command = self._command(cookie)
        last = bool(flags & const.REPLY_FLAG_DONE)
        fixed = self._fixed_part(command, kind, length, last)
        if available < wire.STRUCTURED_REPLY.size + fixed:
            return False
        command.chunks += 1
        # A server that sends chunks without end makes no progress: proto.md asks for chunks of 512 bytes or more.
        if command.chunks > command.length // 512 + 16 + len(self._contexts):
            raise self._violation(f"more chunks than {command.length} bytes can have")
        start = self._start + wire.STRUCTURED_REPLY.size
        self._start = start + fixed
        if kind == const.REPLY_TYPE_OFFSET_DATA:
            self._data_chunk(command, start, length - fixed, last)
        elif kind == const.REPLY_TYPE_BLOCK_STATUS:
            self._status_chunk(command, start, length, last)
        else:
            if kind == const.REPLY_TYPE_OFFSET_HOLE:
                self._hole_chunk(command, start)
            elif kind & const.REPLY_TYPE_FLAG_ERROR:
                self._error_chunk(command, kind, self._staging[start : self._start])
            if last:
                self._conclude(command)
        return True

    def _fixed_part(self, command: Command, kind: int, length: int, last: bool) -> int:
        """The bytes of a chunk's payload that are read in staging, once its kind and length have been judged."""
        if kind == const.REPLY_TYPE_OFFSET_DATA and command.kind == const.CMD_READ:
            fixed, fits = (
                wire.OFFSET_DATA.size,
                wire.OFFSET_DATA.size < length <= wire.OFFSET_DATA.size + command.length,
            )
        elif kind == const.REPLY_TYPE_OFFSET_HOLE and command.kind == const.CMD_READ:
            fixed, fits = wire.OFFSET_HOLE.size, length == wire.OFFSET_HOLE.size
        elif kind == const.REPLY_TYPE_BLOCK_STATUS and command.kind == const.CMD_BLOCK_STATUS:
            fixed, fits = wire.CONTEXT_ID.size, self._fits_status(command, length)
        elif kind == const.REPLY_TYPE_NONE:
            fixed, fits = 0, length == 0 and last
        elif kind & const.REPLY_TYPE_FLAG_ERROR:
            fixed, fits = length, wire.ERROR.size <= length <= wire.MAX_ERROR_CHUNK
        else:
            raise self._violation(f"a chunk of type {kind} in the reply to a {const.COMMAND_NAMES[command.kind]}")
        if not fits:
            raise self._violation(f"a chunk of type {kind} with {length} bytes in the reply to {command!r}")
        return fixed

    def _fits_status(self, command: Command, length: int) -> bool:
        """Whether a block status payload holds whole descriptors, and no more than the question may have."""
        descriptors, rest = divmod(length - wire.CONTEXT_ID.size, wire.DESCRIPTOR.size)
        most = 1 if command.flags & const.CMD_FLAG_REQ_ONE else command.length
        return rest == 0 and 1 <= descriptors <= most and length <= const.MAX_BLOCK_STATUS

    def _data_chunk(self, command: Command, at: int, length: int, last: bool) -> None:
        (offset,) = wire.OFFSET_DATA.unpack_from(self._staging, at)
        position = self._cover(command, offset, length)
        self._until = position + length
        buffer = command.buffer
        self._receive(command, None if buffer is None else buffer[position : position + length], length, last)

    def _hole_chunk(self, command: Command, at: int) -> None:
        offset, length = wire.OFFSET_HOLE.unpack_from(self._staging, at)
        position = self._cover(command, offset, length)
        if command.buffer is not None:
            end = position + length
            for start in range(position, end, len(_ZEROS)):
                count = min(end - start, len(_ZEROS))
                command.buffer[start : start + count] = _ZEROS[:count]

    def _cover(self, command: Command, offset: int, length: int) -> int:
        """Where in its request a content chunk belongs, once it is inside and all of it is new."""
        position: int = offset - command.offset
        if length == 0 or position < 0 or position + length > command.length:
            raise self._violation(f"{length} bytes at {offset} in the reply to {command!r}: outside of it")
        if command.coverage is None:
            command.coverage = Coverage()
        if not command.coverage.add(position, position + length):
            raise self._violation(f"{length} bytes at {offset} in the reply to {command!r}: some came before")
        return position

    def _status_chunk(self, command: Command, at: int, length: int, last: bool) -> None:
        (context,) = wire.CONTEXT_ID.unpack_from(self._staging, at)
        name = self._contexts.get(context)
        if command.status is None:
            command.status = {}
        if name is None or name in command.status:
            raise self._violation(f"block status of metadata context {context}, which is unknown or came before")
        payload = bytearray(length)
        command.status[name] = payload
        wire.CONTEXT_ID.pack_into(payload, 0, context)
        rest = memoryview(payload)[wire.CONTEXT_ID.size :]
        self._receive(command, rest, len(rest), last)

    def _error_chunk(self, command: Command, kind: int, payload: memoryview) -> None:
        try:
            errno, text, offset = wire.decode_error(payload, kind)
        except RemoteProtocolError as error:
            raise self._violation(str(error)) from error
        if offset is not None and not command.offset <= offset < command.offset + max(command.length, 1):
            raise self._violation(f"an error at {offset} in the reply to {command!r}: outside of it")
        if command.error is None:
            command.error = self._refusal(command, errno, text)

    def _conclude(self, command: Command) -> None:
        """The last chunk of a structured reply has come: it is a success only if nothing is missing."""
        if command.error is None:
            if command.kind == const.CMD_READ:
                if command.coverage is None or not command.coverage.covers(0, command.length):
                    raise self._violation(f"the reply to {command!r} ends before all bytes came")
            elif command.kind == const.CMD_BLOCK_STATUS and len(command.status or ()) < len(self._contexts):
                raise self._violation(f"the reply to {command!r} ends before all metadata contexts came")
        self._finish(command, command.error)

    # --- payloads ---

    def _receive(self, command: Command, target: memoryview | None, length: int, last: bool) -> None:
        """Take `length` bytes for `target` (None: for nowhere): what staging has of them now, the rest in place."""
        here = min(self._end - self._start, length)
        if here and target is not None:
            target[:here] = self._staging[self._start : self._start + here]
        self._start += here
        self._current = command
        self._last_chunk = last
        self._missing = length - here
        if not self._missing:
            self._payload_complete()
        elif target is None:
            self._redirect()
        else:
            self._target = target[here:]

    def _redirect(self) -> None:
        """Send what is missing of the current payload nowhere."""
        if self._discard is None:
            self._discard = memoryview(bytearray(_STAGING))
        self._discarding = True
        self._target = self._discard[: self._missing]

    def _payload_complete(self) -> None:
        command, self._current = self._current, None
        self._target = self._staging  # lets go of the request's memory
        self._discarding = False
        assert command is not None, "a payload without a command"
        if self._last_chunk:
            self._conclude(command)

    # --- commands ---

    def _command(self, cookie: int) -> Command:
        command = self.in_flight.get(cookie)
        if command is None:
            raise self._violation(f"a reply to request {cookie}, which is not in flight")
        return command

    def _finish(self, command: Command, error: SfasyncError | None = None) -> None:
        del self.in_flight[command.cookie]
        command.buffer = None
        command.coverage = None
        if command.state is State.ABANDONED:
            self.abandoned -= 1
            return
        command.error = error
        command.state = State.DONE if error is None else State.FAILED
        self._finished.append(command)

    def _refusal(self, command: Command, errno: int, text: str) -> RequestError:
        name = const.ERROR_NAMES.get(errno, f"error {errno}")
        message = (
            f"{self._peer}: {const.COMMAND_NAMES[command.kind]} of {command.length} bytes at {command.offset}: {name}"
        )
        if text:
            message += f": {printable(text)}"
        return RequestError(message, errno=errno, offset=command.offset, length=command.length)

    def _violation(self, what: str) -> RemoteProtocolError:
        return RemoteProtocolError(f"{self._peer}: {what}")
