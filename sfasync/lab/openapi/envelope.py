"""How calls are answered: the two envelopes of the platform, pages, and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_NEW_GENERATION = 20240725
_LONGEST_PAGE: Final = 100


class Refusal(Exception):  # noqa: N818 - an answer, and not a failure of the lab
    """A call is answered with an error.

    Attributes:
        status: Of HTTP, and the code inside the envelope.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call is answered with.

    Attributes:
        data: What goes into the envelope; bytes are sent as they are.
        status: Of HTTP.
    """

    data: Any = None
    status: int = 200


def enveloped(path: str, data: object, *, code: int = 0, message: str = "") -> dict[str, object]:
    """The envelope of the path's generation around data."""
    if _generation(path) >= _NEW_GENERATION:
        return {"errcode": f"0x{code:08X}" if code else "", "data": data, "message": message}
    return {"code": code, "data": data, "message": message}


def page(items: Sequence[Mapping[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """The page of a list that a query asks for.

    Raises:
        Refusal: It asks for a page that cannot be.
    """
    number, size = number_in(query, "page_num", 0), number_in(query, "page_size", _LONGEST_PAGE)
    if number < 0 or not 1 <= size <= _LONGEST_PAGE:
        raise Refusal(400, "page_num begins at 0, page_size is 1 to 100")
    start, end = number * size, (number + 1) * size
    return {
        "data": items[start:end],
        "total_size": len(items),
        "page_num": number,
        "page_size": size,
        "next_page_num": str(number + 1) if end < len(items) else "",
    }


def number_in(query: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    """A whole number in a query.

    Raises:
        Refusal: It is not there and has no default, or is none.
    """
    text = query.get(name)
    if text is None and otherwise is not None:
        return otherwise
    try:
        return int(text or "")
    except ValueError:
        raise Refusal(400, f"{name} must be a whole number") from None


def text_in(members: Mapping[str, Any], name: str, otherwise: str | None = None) -> str:
    """A text in a query or a body.

    Raises:
        Refusal: It is not there and has no default, or is something else.
    """
    found = members.get(name, otherwise)
    if not isinstance(found, str):
        raise Refusal(400, f"{name} is missing, or is not text")
    return found


def _generation(path: str) -> int:
    """The date in a path, as a number; 0 where there is none."""
    part = path.split("/")[2] if path.count("/") > 2 else ""
    return int(part) if part.isdecimal() else 0
