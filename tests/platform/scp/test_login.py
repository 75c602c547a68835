"""Logging in: the two forms, how long a token is good for, and what a platform may refuse."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from sfasync.credentials import Password
from sfasync.errors import AuthenticationError, PlatformError
from sfasync.platform.scp.api import ScpApi
from sfasync.platform.scp.login import encrypted
from sfasync.platform.scp.settings import Dialect, Padding

from .support import CANARY, QUICK, FakePlatform, Reply, answer, decrypted, public_key, refusal, rsa_key, token

KEY, LOGIN = "GET /janus/public-key", "POST /janus/authenticate"
AZS = "GET /janus/20180725/azs"


@pytest.fixture(autouse=True)
def _azs(platform: FakePlatform) -> None:
    platform.on(AZS, answer([]))


async def ask(platform: FakePlatform, times: int = 1, **settings: Any) -> None:
    async with ScpApi(platform.settings(**settings), pace=QUICK) as scp:
        for _ in range(times):
            await scp.azs()


async def test_the_password_is_encrypted_for_the_key_of_the_platform(platform: FakePlatform) -> None:
    await ask(platform)
    (request,) = platform.came(LOGIN)
    account = request.json["auth"]["passwordCredentials"]
    assert account["username"] == "backup"
    assert re.fullmatch(r"[0-9a-f]{512}", account["password"])
    assert decrypted(request) == CANARY
    assert re.fullmatch(r"aCMPAuthToken=[0-9a-f]{32}", request.header("Cookie") or "")
    (request,) = platform.came(AZS)
    assert request.header("Authorization") == "Token token-1"
    assert request.header("Cookie") is None


@pytest.mark.parametrize(
    ("form", "digest"),
    [("oaep-sha1", hashes.SHA1()), ("oaep-sha256", hashes.SHA256())],  # noqa: S303 - OAEP's own default
)
async def test_the_second_form_has_addresses_of_its_own(
    platform: FakePlatform, form: Padding, digest: hashes.HashAlgorithm
) -> None:
    platform.on("GET /janus/v2/public-key", public_key())
    platform.on("POST /janus/v2/authenticate", token("token-2"))
    await ask(platform, dialect=Dialect(padding=form))
    key, login, azs = platform.requests
    assert decrypted(login, padding.OAEP(padding.MGF1(digest), digest, None)) == CANARY
    assert azs.header("Authorization") == "Token token-2"
    assert key.header("Cookie") is login.header("Cookie") is None  # with one, it may say 401


async def test_one_login_serves_many_calls(platform: FakePlatform) -> None:
    async with ScpApi(platform.settings(), pace=QUICK) as scp:
        await asyncio.gather(*(scp.azs() for _ in range(5)))
    assert len(platform.came(KEY)) == len(platform.came(LOGIN)) == 1
    assert len(platform.came(AZS)) == 5


async def test_a_token_that_was_taken_back_is_replaced_once(platform: FakePlatform) -> None:
    platform.on(LOGIN, token("token-1"), token("token-2"))
    platform.on(AZS, answer([]), refusal(401), answer([]))
    await ask(platform, times=2)
    assert [request.header("Authorization") for request in platform.came(AZS)] == [
        "Token token-1",
        "Token token-1",
        "Token token-2",
    ]
    assert len(platform.came(KEY)) == 1  # the key is kept


async def test_a_platform_that_refuses_every_token_is_not_asked_for_ever(platform: FakePlatform) -> None:
    platform.on(AZS, refusal(401, "no"))
    with pytest.raises(AuthenticationError, match="does not accept our credentials for 'azs'"):
        await ask(platform)
    assert len(platform.came(LOGIN)) == 2


@pytest.mark.parametrize("expires", ["2020-01-01T00:00:00Z", "2020-01-01 00:00:00", "soon", None, ""])
async def test_a_token_whose_end_cannot_be_believed_is_used(platform: FakePlatform, expires: str | None) -> None:
    platform.on(LOGIN, token("token-1", expires))
    await ask(platform, times=2)
    assert len(platform.came(LOGIN)) == 1


async def test_a_token_is_renewed_before_it_ends(platform: FakePlatform) -> None:
    # By the platform's clock, which is years behind ours: this token is good for 50 ms.
    date = {"Date": "Thu, 01 Jan 2015 00:00:00 GMT"}
    first = token("token-1", "2015-01-01T00:00:00.050Z")
    platform.on(LOGIN, Reply(first.body, 201, date), token("token-2"))
    async with ScpApi(platform.settings(), pace=QUICK) as scp:
        await scp.azs()
        await asyncio.sleep(0.06)
        await scp.azs()
    assert [request.header("Authorization") for request in platform.came(AZS)] == ["Token token-1", "Token token-2"]


async def test_a_wrong_password_is_tried_once(platform: FakePlatform) -> None:
    """However many calls wait for it: enough of them lock the account."""
    platform.on(LOGIN, refusal(401, f"password {CANARY} is wrong"))
    async with ScpApi(platform.settings(), pace=QUICK) as scp:
        failures = await asyncio.gather(*(scp.azs() for _ in range(5)), return_exceptions=True)
    for failure in failures:
        assert isinstance(failure, AuthenticationError)
        assert "'authenticate'" in str(failure)
        assert CANARY not in str(failure)
    assert len(platform.came(LOGIN)) == 1


async def test_another_key_is_used_when_the_old_one_is_refused(platform: FakePlatform) -> None:
    other = answer({"public_key": "C" + "0" * 510 + "1"})
    platform.on(KEY, other, public_key())
    platform.on(LOGIN, token("token-1"), refusal(401), token("token-2"))
    platform.on(AZS, answer([]), refusal(401), answer([]))
    await ask(platform, times=2)
    assert len(platform.came(KEY)) == 2
    assert decrypted(platform.came(LOGIN)[-1]) == CANARY


async def test_calls_for_the_key_that_are_blocked_are_waited_for_once(platform: FakePlatform) -> None:
    platform.on(KEY, refusal(403), public_key())
    await ask(platform)
    assert len(platform.came(KEY)) == 2

    platform.on(KEY, refusal(403))
    with pytest.raises(AuthenticationError, match="does not allow"):
        await ask(platform)
    assert len(platform.came(KEY)) == 4


@pytest.mark.parametrize(
    "key", ["", "0", "xyz" * 200, "A" * 100_000, "-1" * 128, "F" * 511 + "E"], ids=lambda key: f"{key[:4]}..{len(key)}"
)
async def test_keys_that_are_none(platform: FakePlatform, key: str) -> None:
    platform.on(KEY, answer({"public_key": key}))
    with pytest.raises((PlatformError, AuthenticationError)):
        await ask(platform)
    assert platform.came(LOGIN) == []


@pytest.mark.parametrize(
    "value", ["", "a\r\nX-Evil: 1", "x" * 8193, "tökén"], ids=["empty", "lines", "long", "letters"]
)
async def test_tokens_that_are_none(platform: FakePlatform, value: str) -> None:
    platform.on(LOGIN, token(value))
    with pytest.raises(PlatformError, match="the token is none"):
        await ask(platform)
    assert platform.came(AZS) == []


def test_a_password_that_is_too_long_is_not_told() -> None:
    modulus = rsa_key().public_key().public_numbers().n
    with pytest.raises(AuthenticationError) as failure:
        encrypted(CANARY * 20, modulus, "pkcs1")
    assert CANARY not in str(failure.value)
    assert failure.value.__cause__ is None


async def test_a_user_name_in_any_letters(platform: FakePlatform) -> None:
    await ask(platform, credentials=Password('bäckup"\n', "пароль"))
    (request,) = platform.came(LOGIN)
    assert request.json["auth"]["passwordCredentials"]["username"] == 'bäckup"\n'
    assert decrypted(request) == "пароль"
