"""Calls of the platform: asked with patience, with the right to ask, and answered with types.

What one call is made of, from the inside out: `http` exchanges bytes with the origin, `authorization` and `login` prove
who we are, `patience` asks again, `paths` knows where, `envelope` opens what comes back.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Generic, Protocol, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from ...credentials import AccessKey, Password
from ...errors import UsageError
from ...models import Retry
from .authorization import Authorizer, KeyAuthorizer
from .clock import ServerClock
from .envelope import data, decoded, malformed, refused
from .failures import Failures
from .http import MAX_BODY, Answer, Server
from .login import TokenAuthorizer
from .paths import Paths
from .patience import PACE, Patience
from .redaction import Redactor
from .settings import ScpSettings
from .trust import platform_context

_CHANCES: Final = 3
"""How often one request is sent that is refused with 401."""

_MAX_PAGES: Final = 1000
_MAX_LIST: Final = 8 * MAX_BODY
"""Bytes of all pages of a list."""


class HasId(Protocol):
    """Something that lists have in them."""

    @property
    def id(self) -> str: ...


_T = TypeVar("_T")
_Item = TypeVar("_Item", bound=HasId)

Query = Mapping[str, str | int | None]
"""What stands behind the question mark; None is left out."""


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
        self._settings = settings
        self._redactor = Redactor()
        self._clock = ServerClock()
        self.failures = Failures(settings, self._redactor, self._clock)
        self._paths = Paths(settings.paths, hci=settings.product == "hci", encode_colon=settings.dialect.encode_colon)
        self._patience = Patience(settings.timeouts.retry, pace)
        self._server = Server(settings.origin, platform_context(settings), settings.hostname, settings.timeouts)
        self._authorizer = self._authorized()

    def __repr__(self) -> str:
        return f"<ScpClient of {self._settings.origin}>"

    async def __aenter__(self) -> ScpClient:
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.__aexit__(kind, error, trace)

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
        return data(await self._ask(operation, ids or {}, query or {}), kind, operation)

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
        packed = b"" if body is None else msgspec.json.encode(body)
        answer = await self._ask(operation, ids or {}, query or {}, packed, "application/json", token)
        if not answer.body.strip():
            return Started()
        raw = data(answer, msgspec.Raw, operation)
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
            paging: Query = {"page_num": number, "page_size": self._settings.page_size}
            answer = await self._ask(operation, ids or {}, {**(query or {}), **paging})
            read += len(answer.body)
            page = _page(data(answer, msgspec.Raw, operation), kind, operation)
            before = len(found)
            found.update((item.id, item) for item in page.data)
            following = _number(page.next_page_num, operation)
            if following is None:
                return list(found.values())
            if following <= number or len(found) == before or read > _MAX_LIST:
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
        """The items of a list that has one page.

        Raises:
            PlatformError, AuthenticationError, BusyError, TlsError, UsageError: As `call`.
        """
        raw = await self.call(operation, msgspec.Raw, ids=ids, query=query)
        return _page(raw, kind, operation).data

    async def download(self, operation: str, *, ids: Mapping[str, str], query: Query) -> bytes:
        """A file of at most 16 MiB.

        Raises:
            PlatformError: As `call`; or the file may not be whole.
            AuthenticationError, BusyError, TlsError, UsageError: As `call`.
        """
        answer = await self._ask(operation, ids, query)
        if "Content-Length" not in answer.headers and "Transfer-Encoding" not in answer.headers:
            raise malformed(operation, "nothing tells whether the file is whole")
        return answer.body

    async def upload(self, operation: str, *, ids: Mapping[str, str], query: Query, name: str, content: bytes) -> None:
        """Send a file. Cancelling leaves open whether, and how much of it, has arrived.

        Raises:
            PlatformError, AuthenticationError, BusyError, TlsError, UsageError: As `call`.
        """
        if self._settings.dialect.upload == "raw":
            await self._ask(operation, ids, query, content, "application/octet-stream")
            return
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{quote(name)}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        await self._ask(operation, ids, query, body, f"multipart/form-data; boundary={boundary}")

    # --- one call ----------------------------------------------------------------------------------------------------

    async def _ask(
        self,
        operation: str,
        ids: Mapping[str, str],
        query: Query,
        body: bytes = b"",
        content_type: str = "",
        token: str | None = None,
    ) -> Answer:
        """An answer that is no refusal, from the first path that is there."""
        *others, last = self._paths.candidates(operation)
        for template in (*others, last):
            target = self._paths.fill(template, ids) + _query(query)
            answer, repeated = await self._sent(operation, target, body, content_type, token)
            refusal = refused(answer)
            if refusal is None:
                self._paths.found(operation, template)
                return answer
            if refusal.status != 404 or template == last:
                break
        assert refusal is not None, "an answer that is none was returned"
        if refusal.status == 404 and repeated and self._paths.method(operation) == "DELETE":
            return Answer(204, {}, b"")  # done by a request whose answer was lost
        raise self.failures.of_refusal(operation, refusal)

    async def _sent(
        self, operation: str, target: str, body: bytes, content_type: str, token: str | None
    ) -> tuple[Answer, bool]:
        """The answer, and whether the request was sent more than once."""
        method = self._paths.method(operation)
        headers = {"Content-Type": content_type} if body else {}
        if method in ("POST", "PUT"):
            headers["X-Client-Token"] = token or str(
                uuid.uuid4()
            )  # by which a repeated request is known, for 15 minutes
        times = 0

        async def send() -> Answer:
            nonlocal times
            times += 1
            return await self._authorized_exchange(method, target, headers, body)

        answer = await self._patience.ask(operation, method, send)
        return answer, times > 1

    async def _authorized_exchange(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        path = target.partition("?")[0]
        for chance in range(1, _CHANCES + 1):
            ticket = await self._authorizer.ticket(method, path, body)
            answer = await self._server.exchange(method, target, {**headers, **ticket.headers}, body)
            self._clock.learn(answer.headers.get("Date"))
            refusal = refused(answer)
            if refusal is None:
                self._authorizer.accepted(ticket)
            if refusal is None or refusal.status != 401 or not self._authorizer.refused(ticket, chance):
                break
        return answer

    # --- parts -------------------------------------------------------------------------------------------------------

    def _authorized(self) -> Authorizer:
        credentials, settings = self._settings.credentials, self._settings
        if isinstance(credentials, AccessKey):
            self._redactor.add(credentials.secret_key)
            return KeyAuthorizer(credentials, settings.signing, self._clock)
        if isinstance(credentials, Password):
            self._redactor.add(credentials.password)
            return TokenAuthorizer(
                credentials,
                server=self._server,
                paths=self._paths,
                settings=settings,
                clock=self._clock,
                patience=self._patience,
                redactor=self._redactor,
                failures=self.failures,
            )
        raise UsageError(f"there are no credentials for {settings.origin}; give an access key, or user and password")


def _page(raw: msgspec.Raw, kind: type[_T], operation: str) -> _Page[_T]:
    """A page of a list; some lists are no more than an array."""
    if bytes(raw).startswith(b"["):
        return _Page(data=decoded(raw, list[kind], operation))  # type: ignore[valid-type]
    page: _Page[_T] = decoded(raw, _Page[kind], operation)  # type: ignore[valid-type]
    return page


def _number(following: str | int | None, operation: str) -> int | None:
    """The number of the next page; None if there is none."""
    if following in (None, ""):
        return None
    try:
        return int(following or 0)
    except ValueError:
        raise malformed(operation, "the number of the next page is none") from None


def _query(query: Query) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return "?" + urlencode(given, quote_via=quote) if given else ""
