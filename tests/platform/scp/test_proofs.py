"""Every way of proving who we are, to a platform that checks it without any code of the client's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from sfasync.credentials import AccessKey, Password
from sfasync.errors import AuthenticationError
from sfasync.lab import Lab
from sfasync.lab.settings import access_key_of, password_of
from sfasync.platform.scp.api import ScpApi
from sfasync.platform.scp.settings import Dialect, Padding, ScpSettings, SigningSettings, Variant

from ...support.servers import require

VARIANTS: tuple[Variant, ...] = ("v1", "v2", "v3", "v4", "v6")
PADDINGS: tuple[Padding, ...] = ("pkcs1", "oaep-sha1", "oaep-sha256")


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    require("qemu-storage-daemon")
    async with Lab() as lab:
        yield lab


async def calls(settings: ScpSettings) -> None:
    """One with a query, which is not signed, and one without."""
    async with ScpApi(settings) as scp:
        assert await scp.servers(name="web & co/1") == []
        assert await scp.version()


async def test_every_proof_is_accepted(lab: Lab) -> None:
    key, password = access_key_of(lab.accounts), password_of(lab.accounts)
    for variant in VARIANTS:
        signing = SigningSettings(variant=variant, fallback="none")
        await calls(replace(lab.settings, credentials=key, signing=signing))
    for padding in PADDINGS:
        await calls(replace(lab.settings, credentials=password, dialect=Dialect(padding=padding)))


async def test_a_wrong_one_is_not(lab: Lab) -> None:
    accounts = lab.accounts
    signing = SigningSettings(region="elsewhere", fallback="none")
    for settings in (
        replace(lab.settings, credentials=AccessKey(accounts.access_key, "wrong")),
        replace(lab.settings, credentials=AccessKey("wrong", accounts.secret_key)),
        replace(lab.settings, credentials=access_key_of(accounts), signing=signing),
        replace(lab.settings, credentials=Password(accounts.user, "wrong")),
        replace(lab.settings, credentials=Password("wrong", accounts.password)),
    ):
        async with ScpApi(settings) as scp:
            with pytest.raises(AuthenticationError):
                await scp.servers()


async def test_a_token_that_ran_out_is_replaced_in_the_middle(lab: Lab) -> None:
    async with ScpApi(lab.settings) as scp:
        await scp.storages()
        lab.accounts.expire_tokens()
        assert await scp.storages()
