"""No secret comes through, however it is written."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.platform.scp.redaction import Redactor


def redactor(*secrets: str) -> Redactor:
    made = Redactor()
    for secret in secrets:
        made.add(secret)
    return made


@given(st.text(), st.text(min_size=1), st.text())
def test_a_secret_is_not_in_what_is_left(before: str, secret: str, after: str) -> None:
    cleaned = redactor(secret).clean(before + secret + after)
    assert secret not in cleaned.replace("***", "\ue000")


@pytest.mark.parametrize("secret", ['p"ass\\word', "пароль", "a b+c/d?&=%", "x"])
def test_other_spellings(secret: str) -> None:
    raw = secret.encode()
    for spelling in (
        *(secret, quote(secret, safe=""), json.dumps(secret), json.dumps(secret, ensure_ascii=False)),
        *(base64.b64encode(raw).decode(), raw.hex()),
    ):
        assert redactor(secret).clean(f"<{spelling}>") in ("<***>", '<"***">')


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Authorization: Token 0123456789abcdef0123", "Authorization: Token ***"),
        ("the token expired", "the token expired"),
        ("Signature=abcdef, next", "Signature=***, next"),
        ('{"password": "hidden", "user": "u"}', '{"password": "***", "user": "u"}'),
        ("Cookie: aCMPAuthToken=abc; x=y", "Cookie: aCMPAuthToken=***; x=y"),
        ("secret_key=abc", "secret_key=***"),
        ("the password is wrong", "the password is wrong"),
    ],
)
def test_secrets_of_others_are_known_by_what_stands_before_them(text: str, cleaned: str) -> None:
    assert Redactor().clean(text) == cleaned


def test_the_longer_of_two_goes_first() -> None:
    assert redactor("abc", "abcdef").clean("abcdef abc") == "*** ***"


def test_of_secrets_that_pass_the_last_are_kept() -> None:
    made = redactor("lasting")
    for number in range(1000):
        made.add_passing(f"token-{number:03}")
    assert made.clean("lasting token-999 token-968 token-967") == "*** *** *** token-967"


def test_a_long_text_is_cut_before_a_secret_and_not_in_it() -> None:
    secret = "0123456789" * 7
    for shift in range(80):
        cleaned = redactor(secret).clean("-" * shift + secret * 2000)
        assert "0123" not in cleaned


def test_of_a_huge_text_only_the_beginning_is_looked_at() -> None:
    assert len(redactor("secret").clean("token " * 3_000_000)) < 1 << 16
