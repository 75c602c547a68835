"""What a lab in the background can be told, and how it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import msgspec

from ..errors import PlatformError, UsageError

_SECONDS = 600.0  # for what is written may be much


class Write(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a guest writes: one byte over a range, or random data at `random` places.

    Attributes:
        vm: The machine, by name or id.
        disk: The disk.
        offset: Where the range begins.
        length: Its bytes; None for up to the disk's end.
        pattern: The byte.
        random: How many places; None to write the range.
        seed: Makes places and data.
    """

    vm: str
    disk: str
    offset: int = 0
    length: int | None = None
    pattern: int = 0
    random: int | None = None
    seed: int = 0


class Power(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Whether a machine is to run."""

    vm: str
    running: bool


class Fault(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What is to go wrong, as of `Misbehaviour.plan`; without a name, nothing any more."""

    name: str | None
    count: int = 1
    path: str = ""


async def told(socket: Path, command: str, content: object = None) -> dict[str, Any]:
    """What a lab answers to a command: without content it is asked, with content it acts.

    Raises:
        UsageError: It cannot do that.
        PlatformError: It does not answer.
    """
    transport = httpx2.AsyncHTTPTransport(uds=str(socket))
    async with httpx2.AsyncClient(transport=transport, base_url="http://lab", timeout=_SECONDS) as http:
        try:
            if content is None:
                answer = await http.get(f"/{command}")
            else:
                answer = await http.post(f"/{command}", content=msgspec.json.encode(content))
        except httpx2.HTTPError as error:
            raise PlatformError(f"the lab does not answer: {error}") from error
    decoded = msgspec.json.decode(answer.content, type=dict[str, Any])
    if answer.status_code != 200:
        raise UsageError(decoded["message"])
    return decoded
