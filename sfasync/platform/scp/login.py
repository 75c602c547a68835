"""Login with user and password, for a token that is good for a while.

The first form: fetch a public key (only its modulus, in hex, with a newline at its end), encrypt the password with PKCS
#1 v1.5, send it as hex. The second, from 6.11.3 on, has addresses of its own and OAEP; the two cannot be mixed.

The calls for the key are limited to a few for everybody, and answer 403 to all for a minute when there are more: the
key is kept, and asked for again only when a login with it fails.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from datetime import UTC, datetime
from typing import Final

import msgspec

from ...credentials import Password
from ...errors import AuthenticationError
from .authorization import Ticket
from .clock import ServerClock
from .envelope import Reply, malformed, opened
from .failures import Failures
from .http import Server
from .paths import Paths
from .patience import Patience
from .redaction import Redactor
from .settings import Padding, ScpSettings

_EXPONENT: Final = 65537
_MODULUS = re.compile(r"[0-9A-Fa-f]{256,2048}")
_TOKEN = re.compile(r"[!-~]{1,8192}")
_REFUSED_SECONDS: Final = 60.0
"""For so long the same answer is given without asking, once the platform has refused to let us in."""

_SHORTEST_LIFE: Final = 1800.0
"""Seconds for which a token is used whose end is not told; no client assumes less."""


class _Key(msgspec.Struct, frozen=True):
    public_key: str


class _Token(msgspec.Struct, frozen=True):
    id: str
    expires: msgspec.Raw = msgspec.Raw(b"null")


class _Access(msgspec.Struct, frozen=True):
    token: _Token


class _Login(msgspec.Struct, frozen=True):
    access: _Access


class TokenAuthorizer:
    """Logs in when a token is needed, and again before it runs out.

    Args:
        credentials: Ours.
        server: The platform.
        paths: Where its operations are.
        settings: How it is to be asked.
        clock: The platform's.
        patience: Asks.
        redactor: Learns what must not be shown.
        failures: Makes the errors for refusals.
    """

    def __init__(
        self,
        credentials: Password,
        server: Server,
        paths: Paths,
        settings: ScpSettings,
        clock: ServerClock,
        patience: Patience,
        redactor: Redactor,
        failures: Failures,
    ) -> None:
        self._credentials = credentials
        self._server = server
        self._paths = paths
        self._settings = settings
        self._clock = clock
        self._patience = patience
        self._redactor = redactor
        self._failures = failures
        self._padding = settings.dialect.padding
        self._suffix = "" if self._padding == "pkcs1" else "-v2"
        self._lock = asyncio.Lock()
        self._modulus: int | None = None
        self._token: str | None = None
        self._renew_at = 0.0
        self._refused_until = 0.0
        self._refusal = ""

    def __repr__(self) -> str:
        return f"<TokenAuthorizer of {self._credentials.user}, {'logged in' if self._token else 'not logged in'}>"

    async def ticket(self, method: str, path: str, body: bytes) -> Ticket:
        """The token, which is fetched if there is none or it is about to run out. Cancelling leaves nothing behind."""
        async with self._lock:
            if self._token is None or time.monotonic() >= self._renew_at:
                await self._log_in()
            assert self._token is not None, "logging in raises or gives a token"
            return Ticket({"Authorization": f"Token {self._token}"}, self._token)

    def accepted(self, ticket: Ticket) -> None:
        """Nothing has to be remembered."""

    def refused(self, ticket: Ticket, times: int) -> bool:
        """The token ran out early, or was taken back: log in again, once."""
        if ticket.form == self._token:
            self._token = None
        return times == 1

    async def _log_in(self) -> None:
        self._token = None
        if time.monotonic() < self._refused_until:
            raise AuthenticationError(self._refusal)
        try:
            login = await self._authenticated()
        except AuthenticationError as error:
            # Others are waiting to try the same: enough wrong passwords lock the account.
            self._refused_until, self._refusal = time.monotonic() + _REFUSED_SECONDS, str(error)
            raise
        token = login.access.token
        if not _TOKEN.fullmatch(token.id):
            raise malformed("authenticate", "the token is none")
        self._redactor.add_passing(token.id)
        self._token = token.id
        self._renew_at = time.monotonic() + self._life(token)

    async def _authenticated(self) -> _Login:
        """A login with the key that is known; with a new one, if that was refused and the platform has one.

        The same key is not tried twice: a wrong password counts, and too many of them lock the account.
        """
        kept = self._modulus
        if kept is None:
            kept = self._modulus = await self._fetch_key()
            return await self._authenticate(kept)
        try:
            return await self._authenticate(kept)
        except AuthenticationError:
            self._modulus = await self._fetch_key()
            if self._modulus == kept:
                raise
        return await self._authenticate(self._modulus)

    async def _fetch_key(self) -> int:
        reply = await self._ask("public-key" + self._suffix, b"")
        modulus = reply.data(_Key, "public-key").public_key.strip()
        if not _MODULUS.fullmatch(modulus):
            raise malformed("public-key", "the key is no modulus in hex")
        return int(modulus, 16)

    async def _authenticate(self, modulus: int) -> _Login:
        sealed = encrypted(self._credentials.password, modulus, self._padding)
        self._redactor.add_passing(sealed)
        account = {"username": self._credentials.user, "password": sealed}
        body = msgspec.json.encode({"auth": {"passwordCredentials": account}})
        return (await self._ask("authenticate" + self._suffix, body)).data(_Login, "authenticate")

    async def _ask(self, operation: str, body: bytes) -> Reply:
        """The reply to a call of the login. Where those for the key are blocked for all, waits once for the end."""
        method = self._paths.method(operation)
        target = self._paths.fill(self._paths.candidates(operation)[0], {})

        async def send() -> Reply:
            answer = await self._server.exchange(method, target, self._headers(body), body)
            self._clock.learn(answer.headers.get("Date"))
            return opened(answer)

        reply = await self._patience.ask(operation, method, send)
        if reply.refusal is not None and reply.refusal.status == 403 and method == "GET":
            await asyncio.sleep(self._settings.timeouts.blocked)
            reply = await self._patience.ask(operation, method, send)
        if reply.refusal is not None:
            raise self._failures.of_refusal(operation, reply.refusal)
        return reply

    def _headers(self, body: bytes) -> dict[str, str]:
        """The first form wants some cookie in versions up to 6.3.0; the second may refuse one."""
        headers = {"Content-Type": "application/json"} if body else {}
        if not self._suffix:
            headers["Cookie"] = f"aCMPAuthToken={uuid.uuid4().hex}"
        return headers

    def _life(self, token: _Token) -> float:
        """Seconds until the token is renewed: a tenth of its life, at most five minutes, before it ends."""
        end = _instant(token.expires)
        life = _SHORTEST_LIFE if end is None else end - self._clock.now()
        if life <= 0:  # the platform writes local time, or its clock is wrong; it will say 401 when the token is over
            life = _SHORTEST_LIFE
        return life - min(300.0, life / 10)


def encrypted(password: str, modulus: int, padding: Padding) -> str:
    """A password as the login wants it: encrypted, in small hex digits.

    Raises:
        AuthenticationError: The platform's key cannot be used, or is too short for the password.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding as paddings
    from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

    form: AsymmetricPadding
    if padding == "pkcs1":
        form = paddings.PKCS1v15()
    else:
        digest = hashes.SHA1() if padding == "oaep-sha1" else hashes.SHA256()  # noqa: S303 - OAEP needs no more
        form = paddings.OAEP(mgf=paddings.MGF1(digest), algorithm=digest, label=None)
    try:
        return RSAPublicNumbers(_EXPONENT, modulus).public_key().encrypt(password.encode(), form).hex()
    except ValueError:
        # Not told by the library's own words, and without its error: these may come near the password.
        raise AuthenticationError("the password cannot be encrypted with the key that the platform gave") from None


def _instant(expires: msgspec.Raw) -> float | None:
    """Seconds since the epoch of the end of a token; None if it is not told, or cannot be read."""
    try:
        instant = datetime.fromisoformat(msgspec.json.decode(expires, type=str).strip())
        return (instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)).timestamp()
    except (msgspec.MsgspecError, ValueError, OverflowError):
        return None
