"""Signatures: the published vectors, and what of a request changes them."""

from __future__ import annotations

import pytest

from sfasync.platform.scp.settings import Variant
from sfasync.platform.scp.signing import FORMS, Scope, authorization, canonical_request, signature

SK = "0c345d26da5046d6a015df07e2b621bb"
DATE = "20240101T120000Z"
COOKIE = "aCMPAuthToken=testtoken1234567890abcdef"

# (variant, cookie, region, service, signature)
VECTORS: list[tuple[Variant, str | None, str]] = [
    ("v1", COOKIE, "7f57de3c0021c7ce673be411a9a1eb58761fce2867a84cbea0605fc2c92808fa"),
    ("v2", COOKIE, "7f57de3c0021c7ce673be411a9a1eb58761fce2867a84cbea0605fc2c92808fa"),
    ("v2", None, "49d056ab0d5d2c0d5834759feca11fc07236c53b79c80056e9a69f17b0ec365a"),
    ("v1", None, "21bb3f8660ae6632abe0c69e939a5d6d392d02d5123a89f2da245226e6c08e5b"),
    ("v3", None, "e5a5a11b607a376cc45656d88e2f24d88c637f14d015832ca440cf81496a8c61"),
    ("v4", None, "898cdd9aa1a7288c1cd339c540928dc90bfc241422c0055437cd056149d12e4b"),
]


def signed(variant: Variant, cookie: str | None, *, path: str = "/janus/20180725/azs", body: bytes = b"") -> str:
    form = FORMS[variant]
    scope = Scope(date=DATE, region=form.region, service=form.service)
    request = canonical_request(form, method="GET", path=path, date=DATE, cookie=cookie, body=body)
    return signature(SK, scope, request)


@pytest.mark.parametrize(("variant", "cookie", "expected"), VECTORS)
def test_vectors(variant: Variant, cookie: str | None, expected: str) -> None:
    assert signed(variant, cookie) == expected


def test_the_canonical_request_is_as_published() -> None:
    request = canonical_request(
        FORMS["v1"], method="GET", path="/janus/20180725/azs", date=DATE, cookie=COOKIE, body=b""
    )
    assert request.split("\n") == [
        "GET",
        "/janus/20180725/azs",
        "",
        f"cookie:{COOKIE}",
        f"x-amz-date:{DATE}",
        "",
        "cookie;x-amz-date",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ]


def test_path_and_body_are_signed() -> None:
    assert len({signed("v3", None), signed("v3", None, path="/janus/a%3Ab"), signed("v3", None, body=b"{}")}) == 3


def test_the_header() -> None:
    scope = Scope(date=DATE, region="cn-south-1", service="open-api")
    assert authorization("AK", scope, FORMS["v3"], "ab12") == (
        "AWS4-HMAC-SHA256 Credential=AK/20240101/cn-south-1/open-api/aws4_request, SignedHeaders=x-amz-date,"
        " Signature=ab12"
    )
