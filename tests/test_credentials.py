"""Credentials are taken or refused when they are made, and never shown."""

from __future__ import annotations

import pytest

from sfasync.credentials import AccessKey, Password
from sfasync.errors import ArgumentError

CANARY = "canary"


@pytest.mark.parametrize("access_key", ["", "a\r\nX: y", "a b", "a,b", "a/b", "\u00e4", "x" * 257])
def test_access_keys_that_would_leave_their_header(access_key: str) -> None:
    with pytest.raises(ArgumentError):
        AccessKey(access_key, CANARY)


@pytest.mark.parametrize("secret", ["", "\udc80" + CANARY, CANARY * 1000])
def test_secrets_that_cannot_be_sent(secret: str) -> None:
    for make in (lambda: AccessKey("AK", secret), lambda: Password("user", secret), lambda: Password(secret, "x")):
        with pytest.raises(ArgumentError) as failure:
            make()
        assert CANARY not in str(failure.value)
        assert failure.value.__cause__ is None


def test_any_other_text_will_do() -> None:
    assert Password("b\u00e4ckup\n", "\u043f\u0430\u0440\u043e\u043b\u044c \0").password.endswith("\0")
    assert CANARY not in repr((AccessKey("AK", CANARY), Password("user", CANARY)))
