"""What answers of the platform are wrapped in, and what stands in them when it refuses.

There are two envelopes. Before generation 20240725 it is ``{"code": 0, "data": ..., "message": ""}``, from then on
``{"errcode": "", "data": ..., "message": ""}``; both may answer with HTTP 200 and the refusal inside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that was opened.

    Attributes:
        answer: As it came.
        refusal: Why nothing was done; None if something was.
        damaged: Whether it says that it is JSON and is not: part of it was lost on the way.
        content: What is in the envelope; None where there is none.
        problem: Why there is none.
    """

    answer: Answer
    refusal: Refusal | None
    damaged: bool = False
    content: msgspec.Raw | None = field(default=None, repr=False)
    problem: str = ""

    def data(self, kind: type[_T], operation: str) -> _T:
        """What is in the envelope. No body at all is null.

        Raises:
            PlatformError: It is not what it should be.
        """
        if self.content is None:
            raise malformed(operation, self.problem)
        data: _T = decoded(self.content, kind, operation)
        return data


def opened(answer: Answer) -> Reply:
    """The reply in an answer, whatever that is."""
    fine = 200 <= answer.status < 300
    try:
        envelope = msgspec.json.decode(answer.body, type=_Envelope) if answer.body.strip() else _Envelope()
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        torn = isinstance(error, msgspec.DecodeError) and not isinstance(error, msgspec.ValidationError)
        says_json = answer.headers.get("Content-Type", "").startswith("application/json")
        refusal = None if fine else Refusal(answer.status)
        return Reply(answer, refusal, damaged=fine and torn and says_json, problem=str(error))
    return Reply(answer, _refusal(answer.status, fine, envelope), content=envelope.data)


def _refusal(status: int, fine: bool, envelope: _Envelope) -> Refusal | None:
    codes = [code for code in (envelope.code, envelope.errcode) if code not in _FINE]
    if fine and not codes:
        return None
    number = str(codes[0]) if codes else ""
    of_http = re.fullmatch(r"[4-9][0-9]{2}", number, re.ASCII) is not None
    return Refusal(int(number) if of_http else status, str(codes[-1]) if codes else None, envelope.message or "")


def decoded(raw: bytes | msgspec.Raw, kind: Any, operation: str) -> Any:
    """What a part of an answer holds. Numbers and truth values may be written as text, as some versions do.

    Raises:
        PlatformError: It is not what it should be.
    """
    try:
        return msgspec.json.decode(raw, type=kind, strict=False)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        raise malformed(operation, error) from None


def malformed(operation: str, why: object) -> PlatformError:
    """The error for an answer that is not what it should be."""
    return PlatformError(f"the platform's answer to '{operation}' cannot be used: {printable(str(why))}")
