"""Calls of the platform with types: answers, changes, lists, files."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Generic, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from ...errors import UsageError
from ...models import Retry
from .caller import Caller, Query
from .envelope import decoded, malformed
from .http import MAX_BODY
from .patience import PACE
from .settings import ScpSettings

_MAX_PAGES: Final = 1000
_MAX_ITEMS: Final = 100_000
_MAX_LIST: Final = 4 * MAX_BODY
"""Bytes of all pages of a list."""


class HasId(Protocol):
    """Something that lists have in them."""

    @property
    def id(self) -> str: ...


_T = TypeVar("_T")
_Item = TypeVar("_Item", bound=HasId)


class Started(msgspec.Struct, frozen=True):
    """What a call that changes something answers.

    Attributes:
        task_id: The task that does it; None where it is done already.
        resource_id: What is being made; of use only when the task has ended well.
        uuid: The same of a VM.
    """

    task_id: str | None = None
    resource_id: str | None = None
    uuid: str | None = None


class _Page(msgspec.Struct, Generic[_T], frozen=True):
    data: list[_T]
    next_page_num: str | int | None = None


class ScpClient:
    """One platform, for as long as the context is open.

    Args:
        settings: The platform, and who we are.
        pace: How pauses grow between attempts.

    Attributes:
        failures: Makes the errors for what the platform refuses.

    Raises:
        UsageError: The settings have no credentials, or name files that cannot be used.
    """

    def __init__(self, settings: ScpSettings, *, pace: Retry = PACE) -> None:
        self._page_size = settings.page_size
        self._upload = settings.dialect.upload
        self._caller = Caller(settings, pace)
        self.failures = self._caller.failures

    def __repr__(self) -> str:
        return f"<ScpClient of {self._caller.origin}>"

    @property
    def silent(self) -> bool:
        """As of `Patience`."""
        return self._caller.silent

    async def __aenter__(self) -> ScpClient:
        await self._caller.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._caller.__aexit__(kind, error, trace)

    # --- calls -------------------------------------------------------------------------------------------------------

    async def call(
        self,
        operation: str,
        kind: type[_T],
        *,
        ids: Mapping[str, str] | None = None,
        query: Query | None = None,
    ) -> _T:
        """What an operation that changes nothing answers. Cancelling leaves nothing behind.

        Args:
            operation: A name of `paths.OPERATIONS`.
            kind: What is expected.
            ids: What stands in the path.
            query: What stands behind it.

        Raises:
            PlatformError: The platform refused (with the status), could not be reached, or answered something else.
            AuthenticationError: It does not accept our credentials, or does not allow us this.
            BusyError: It is busy with the same thing.
            CbtExpiredError: It tracks changes anew.
            TlsError: It is not who it should be.
            UsageError: An id is none.
        """
        return (await self._caller.ask(operation, ids or {}, query or {})).data(kind, operation)

    async def change(
        self,
        operation: str,
        *,
        ids: Mapping[str, str] | None = None,
        query: Query | None = None,
        body: object = None,
        token: str | None = None,
    ) -> Started:
        """Ask for a change. Cancelling leaves open whether it was made.

        Args:
            operation: A name of `paths.OPERATIONS`.
            ids: What stands in the path.
            query: What stands behind it.
            body: What is sent, as JSON.
            token: By which the platform knows the same request, for 15 minutes, also when it is made again by another
                call or process; None for one of this call alone.

        Raises:
            PlatformError, AuthenticationError, BusyError, TlsError, UsageError: As `call`.
        """
        try:
            packed = b"" if body is None else msgspec.json.encode(body)
        except UnicodeEncodeError:
            raise UsageError(f"what '{operation}' is given is no text of Unicode") from None
        reply = await self._caller.ask(operation, ids or {}, query or {}, packed, "application/json", token)
        raw = reply.data(msgspec.Raw, operation)
        return decoded(raw, Started, operation) if bytes(raw).lstrip().startswith(b"{") else Started()

    async def listing(
        self,
        operation: str,
        kind: type[_Item],
        *,
        ids: Mapping[str, str] | None = None,
        query: Query | None = None,
    ) -> list[_Item]:
        """All items of a list, page after page, each once.

        Raises:
            PlatformError: As `call`; or the list does not come to an end.
            AuthenticationError, BusyError, TlsError, UsageError: As `call`.
        """
        found: dict[str, _Item] = {}
        number, read = 0, 0
        for _ in range(_MAX_PAGES):
            paging: Query = {"page_num": number, "page_size": self._page_size}
            reply = await self._caller.ask(operation, ids or {}, {**(query or {}), **paging})
            read += len(reply.answer.body)
            page = _page(reply.data(msgspec.Raw, operation), kind, operation)
            before = len(found)
            found.update((item.id, item) for item in page.data)
            following = _number(page.next_page_num, operation)
            if following is None:
                return list(found.values())
            if following <= number or len(found) == before or read > _MAX_LIST or len(found) > _MAX_ITEMS:
                break
            number = following
        raise malformed(operation, "the list does not come to an end")

    async def page(
        self,
        operation: str,
        kind: type[_T],
        *,
        ids: Mapping[str, str] | None = None,
        query: Query | None = None,
    ) -> list[_T]:
        """The items of a list that the documents have without pages.

        Raises:
            PlatformError: As `call`; or there is another page.
            AuthenticationError, BusyError, TlsError, UsageError: As `call`.
        """
        page = _page(await self.call(operation, msgspec.Raw, ids=ids, query=query), kind, operation)
        if _number(page.next_page_num, operation) is not None:
            raise malformed(operation, "the list has more than one page")
        return page.data

    async def first(self, operation: str, kind: type[_T], *, query: Query) -> list[_T]:
        """The items of the first page of a list.

        Raises:
            PlatformError, AuthenticationError, BusyError, TlsError, UsageError: As `call`.
        """
        paging: Query = {"page_num": 0, "page_size": self._page_size}
        return _page(await self.call(operation, msgspec.Raw, query={**query, **paging}), kind, operation).data

    async def download(self, operation: str, *, ids: Mapping[str, str], query: Query) -> bytes:
        """A file of at most 16 MiB.

        Raises:
            PlatformError: As `call`; or the file may not be whole.
            AuthenticationError, BusyError, TlsError, UsageError: As `call`.
        """
        answer = (await self._caller.ask(operation, ids, query)).answer
        if "Content-Length" not in answer.headers and "Transfer-Encoding" not in answer.headers:
            raise malformed(operation, "nothing tells whether the file is whole")
        return answer.body

    async def upload(self, operation: str, *, ids: Mapping[str, str], query: Query, name: str, content: bytes) -> None:
        """Send a file. Cancelling leaves open whether, and how much of it, has arrived.

        Raises:
            PlatformError, AuthenticationError, BusyError, TlsError, UsageError: As `call`.
        """
        if self._upload == "raw":
            await self._caller.ask(operation, ids, query, content, "application/octet-stream")
            return
        boundary, file = uuid.uuid4().hex, quote(name, errors="replace")
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        await self._caller.ask(operation, ids, query, body, f"multipart/form-data; boundary={boundary}")


def _page(raw: msgspec.Raw, kind: type[_T], operation: str) -> _Page[_T]:
    """A page of a list; some lists are no more than an array."""
    if bytes(memoryview(raw)[:1]) == b"[":
        return _Page(data=decoded(raw, list[kind], operation))  # type: ignore[valid-type]  # made of a value
    page: _Page[_T] = decoded(raw, _Page[kind], operation)  # type: ignore[valid-type]  # likewise
    return page


def _number(following: str | int | None, operation: str) -> int | None:
    """The number of the next page; None if there is none."""
    if following in (None, ""):
        return None
    try:
        return int(following or 0)
    except ValueError:
        raise malformed(operation, "the number of the next page is none") from None
