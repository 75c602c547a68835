"""What answers of the platform are wrapped in, and what stands in them when it refuses.

There are two envelopes. Before generation 20240725 it is ``{"code": 0, "data": ..., "message": ""}``, from then on
``{"errcode": "", "data": ..., "message": ""}``; both may answer with HTTP 200 and the refusal inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from ...errors import PlatformError, printable
from .http import Answer

_T = TypeVar("_T")

_FINE: Final = (None, 0, "0", "")
_NOTHING: Final = msgspec.Raw(b"null")


class _Envelope(msgspec.Struct, frozen=True):
    data: msgspec.Raw = _NOTHING
    code: int | str | None = None
    errcode: int | str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that the platform did not carry out.

    Attributes:
        status: Of HTTP, or the envelope's code where that has one of HTTP's numbers.
        reason: The platform's own code, if it gave one.
        text: What it says, in its language; not fit to be shown before it is cleaned.
    """

    status: int
    reason: str | None = None
    text: str = ""


def refused(answer: Answer) -> Refusal | None:
    """The refusal in an answer; None if it is none."""
    envelope = _opened(answer)
    if envelope is None:
        return None if answer.status in range(200, 300) else Refusal(answer.status)
    code, errcode = envelope.code, envelope.errcode
    if answer.status in range(200, 300) and code in _FINE and errcode in _FINE:
        return None
    number = str(code if code not in _FINE else errcode)
    status = int(number) if len(number) == 3 and number.isascii() and number.isdecimal() and number > "399" else None
    return Refusal(
        status or answer.status,
        None if code in _FINE and errcode in _FINE else str(errcode if errcode not in _FINE else code),
        envelope.message or "",
    )


def data(answer: Answer, kind: type[_T], operation: str) -> _T:
    """What is in the envelope of an answer that is no refusal. No body at all is null.

    Numbers and truth values may be written as text, as some versions do.

    Raises:
        PlatformError: It is not what it should be.
    """
    try:
        if not answer.body.strip():
            return msgspec.convert(None, kind)
        raw = msgspec.json.decode(answer.body, type=_Envelope).data
        return msgspec.json.decode(raw, type=kind, strict=False)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        raise malformed(operation, error) from None


def decoded(raw: bytes | msgspec.Raw, kind: Any, operation: str) -> Any:
    """A part of an answer that was left as it came, as `data` reads the whole."""
    try:
        return msgspec.json.decode(raw, type=kind, strict=False)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        raise malformed(operation, error) from None


def malformed(operation: str, why: object) -> PlatformError:
    """The error for an answer that is not what it should be."""
    return PlatformError(f"the platform's answer to '{operation}' cannot be used: {printable(str(why))}")


def _opened(answer: Answer) -> _Envelope | None:
    try:
        return msgspec.json.decode(answer.body, type=_Envelope)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError):
        return None
