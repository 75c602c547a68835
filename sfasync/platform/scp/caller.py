"""One call of the platform: asked with patience, with the right to ask, where the operation is.

What it is made of, from the inside out: `http` exchanges bytes with the origin, `authorization` and `login` prove who
we are, `envelope` opens what comes back, `patience` asks again, `paths` knows where.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Final
from urllib.parse import quote, urlencode

from ...credentials import AccessKey, Password
from ...errors import UsageError
from ...models import Retry
from .authorization import Authorizer, KeyAuthorizer
from .clock import ServerClock
from .envelope import Reply, opened
from .failures import Failures
from .http import Answer, Headers, Server
from .login import TokenAuthorizer
from .paths import Paths
from .patience import Patience
from .redaction import Redactor
from .settings import ScpSettings
from .trust import platform_trust

_CHANCES: Final = 3
"""How often one request is sent that is refused with 401."""

Query = Mapping[str, str | int | None]
"""What stands behind the question mark; None is left out."""


class Caller:
    """One platform, for as long as the context is open.

    Args:
        settings: The platform, and who we are.
        pace: How pauses grow between attempts.

    Attributes:
        failures: Makes the errors for what the platform refuses.
        origin: The platform.

    Raises:
        UsageError: The settings have no credentials, or name files that cannot be used.
    """

    def __init__(self, settings: ScpSettings, pace: Retry) -> None:
        self.origin = settings.origin
        self._settings = settings
        self._redactor = Redactor()
        self._clock = ServerClock()
        self.failures = Failures(settings, self._redactor, self._clock)
        self._paths = Paths(settings.paths, hci=settings.product == "hci", encode_colon=settings.dialect.encode_colon)
        self._patience = Patience(settings.origin, settings.timeouts.retry, pace)
        self._server = Server(settings.origin, platform_trust(settings), settings.hostname, settings.timeouts)
        self._authorizer = self._authorized()

    def __repr__(self) -> str:
        return f"<Caller of {self.origin}, {self._authorizer!r}>"

    @property
    def silent(self) -> bool:
        """As of `Patience`."""
        return self._patience.silent

    async def __aenter__(self) -> Caller:
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.__aexit__(kind, error, trace)

    async def ask(
        self,
        operation: str,
        ids: Mapping[str, str],
        query: Query,
        body: bytes = b"",
        content_type: str = "",
        token: str | None = None,
    ) -> Reply:
        """The reply of the first path that is there, which is no refusal.

        Cancelling leaves open whether the platform did what it was asked for.

        Args:
            operation: A name of `paths.OPERATIONS`.
            ids: What stands in the path.
            query: What stands behind it.
            body: What is sent.
            content_type: What that is.
            token: By which the platform knows the same request when it comes again; None for a new one.

        Raises:
            PlatformError, AuthenticationError, BusyError, TlsError, UsageError: As `ScpClient.call`.
        """
        method = self._paths.method(operation)
        headers = {"Content-Type": content_type} if body else {}
        if method in ("POST", "PUT"):
            headers["X-Client-Token"] = token or str(uuid.uuid4())
        *others, last = self._paths.candidates(operation)
        for template in (*others, last):
            target = self._paths.fill(template, ids) + _query(query)
            reply, repeated = await self._sent(operation, method, target, headers, body)
            if reply.refusal is None:
                self._paths.found(operation, template)
                return reply
            if reply.refusal.status != 404 or template == last:
                break
        assert reply.refusal is not None, "a reply that is none was returned"
        if reply.refusal.status == 404 and repeated and method == "DELETE":
            return opened(Answer(204, Headers(), b""))  # done by a request whose answer was lost
        raise self.failures.of_refusal(operation, reply.refusal)

    async def _sent(
        self, operation: str, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[Reply, bool]:
        """The reply, and whether the request was sent more than once."""
        times = 0

        async def send() -> Reply:
            nonlocal times
            times += 1
            return await self._authorized_exchange(method, target, headers, body)

        reply = await self._patience.ask(operation, method, send)
        return reply, times > 1

    async def _authorized_exchange(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        path = target.partition("?")[0]
        for chance in range(1, _CHANCES + 1):
            ticket = await self._authorizer.ticket(method, path, body)
            answer = await self._server.exchange(method, target, {**headers, **ticket.headers}, body)
            self._clock.learn(answer.headers.get("Date"))
            reply = opened(answer)
            if reply.refusal is None:
                self._authorizer.accepted(ticket)
                break
            if reply.refusal.status != 401 or not self._authorizer.refused(ticket, chance):
                break
        return reply

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


def _query(query: Query) -> str:
    """The query with its question mark. What is no text of Unicode, such as a name typed wrongly, matches nothing."""
    given = {name: value for name, value in query.items() if value is not None}
    return "?" + urlencode(given, quote_via=quote, errors="replace") if given else ""
