"""One call: what goes over the wire, and everything that a platform may do to it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import re
import resource
import ssl
import time
from collections.abc import Awaitable
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from sfasync.credentials import AccessKey, Password
from sfasync.errors import (
    AuthenticationError,
    BusyError,
    PlatformError,
    SfasyncError,
    SystemLimitError,
    TlsError,
    UsageError,
)
from sfasync.platform.scp.api import ScpApi
from sfasync.platform.scp.http import MAX_BODY, Answer, Headers
from sfasync.platform.scp.network import Network
from sfasync.platform.scp.patience import asked_for
from sfasync.platform.scp.settings import Dialect, ScpSettings, SigningSettings
from sfasync.platform.scp.signing import FORMS, Scope, canonical_request, signature

from ...support.stepping import Stepper
from .support import (
    CANARY,
    QUICK,
    RESOURCE,
    SERVER,
    TASK,
    TIMEOUTS,
    FakePlatform,
    Handler,
    Reply,
    Request,
    answer,
    fake_platform,
    pages,
    refusal,
    silence,
    token,
)

AZS = "GET /janus/20180725/azs"
LOGIN = "POST /janus/authenticate"
POOL = {"id": "pool-1", "name": "Pool"}
DELETE_RESOURCE = f"DELETE /janus/20180725/backup-resources/{RESOURCE}"
KEY = AccessKey("AKEY", CANARY)


def api(platform: FakePlatform, **settings: Any) -> ScpApi:
    return ScpApi(platform.settings(**settings), pace=QUICK)


# --- the wire --------------------------------------------------------------------------------------------------------


async def test_names_of_headers_are_spelled_as_the_platform_wants_them(platform: FakePlatform) -> None:
    platform.on("POST /janus/20180725/backup-resources", answer({"resource_id": RESOURCE, "task_id": TASK}, 201))
    async with api(platform, credentials=KEY, signing=SigningSettings(variant="v1")) as scp:
        await scp.create_resource(SERVER, "backup", 600)
    head = platform.requests[0].head.decode()
    assert head.startswith("POST /janus/20180725/backup-resources HTTP/1.1\r\n")
    names = re.findall(r"\r\n([^:\r]+):", head)
    assert sorted(names) == [
        *("Accept", "Accept-Encoding", "Authorization", "Content-Length", "Content-Type", "Cookie", "Host"),
        *("User-Agent", "X-Amz-Date", "X-Client-Token"),
    ]


def proves(request: Request, key: AccessKey = KEY) -> bool:
    """Whether the signature is that of the request as it came over the wire, by the names that it lists."""
    match = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=(\w+)/(\d{8})/([\w-]+)/([\w-]+)/aws4_request, SignedHeaders=([\w;-]+),"
        r" Signature=([0-9a-f]{64})",
        request.header("Authorization") or "",
    )
    date = request.header("X-Amz-Date")
    assert match is not None
    assert date is not None
    scope = Scope(date=date, region=match[3], service=match[4])
    cookie = request.header("Cookie")
    texts = [
        canonical_request(form, method=request.method, path=request.path, date=date, cookie=cookie, body=request.body)
        for form in FORMS.values()
        if form.names == match[5]
    ]
    return match[1] == key.access_key and match[6] in [signature(key.secret_key, scope, text) for text in texts]


def signed_only(reply: Reply, names: str | None = None) -> Handler:
    """What a platform that checks signatures answers; with names, only if these headers are signed."""

    def handle(request: Request) -> Reply:
        listed = f"SignedHeaders={names}," in (request.header("Authorization") or "")
        return reply if proves(request) and (names is None or listed) else refusal(401, "signature")

    return handle


@pytest.mark.parametrize("variant", sorted(FORMS))
async def test_requests_are_signed_as_they_are_sent(platform: FakePlatform, variant: Any) -> None:
    platform.on("GET /janus/20240725/servers", signed_only(answer([]), FORMS[variant].names))
    platform.on(f"PUT /janus/20180725/backup-resources/{RESOURCE}", signed_only(answer({"task_id": TASK})))
    signing = SigningSettings(variant=variant, fallback="none")
    async with api(platform, credentials=KEY, signing=signing) as scp:
        assert await scp.servers(name="web 1/ä?&") == []  # a query, which is not signed
        assert await scp.renew_resource(RESOURCE, 600) == TASK
    assert platform.requests[0].query["query_name"] == "web 1/ä?&"


async def test_a_colon_may_have_to_be_encoded(platform: FakePlatform) -> None:
    encoded = DELETE_RESOURCE.replace(":", "%3A")
    platform.on(encoded, signed_only(answer({"task_id": TASK})))
    async with api(platform, credentials=KEY, dialect=Dialect(encode_colon=True)) as scp:
        assert await scp.delete_resource(RESOURCE) == TASK
    assert len(platform.came(encoded)) == 1


async def test_the_other_form_of_signature_is_tried_when_the_first_is_refused(platform: FakePlatform) -> None:
    platform.on(AZS, signed_only(answer([POOL]), "cookie;x-amz-date"))
    async with api(platform, credentials=KEY) as scp:
        await scp.azs()
        await scp.azs()
    assert len(platform.requests) == 3  # from then on it is the one


async def test_a_form_that_was_accepted_is_kept(platform: FakePlatform) -> None:
    platform.on(AZS, answer([]), refusal(401, "the key was withdrawn"))
    async with api(platform, credentials=KEY) as scp:
        await scp.azs()
        with pytest.raises(AuthenticationError, match="the key was withdrawn"):
            await scp.azs()
    assert len(platform.requests) == 2


async def test_a_key_that_is_refused_is_not_tried_for_ever(platform: FakePlatform) -> None:
    platform.on(AZS, refusal(401, "no such key"))
    async with api(platform, credentials=KEY) as scp:
        with pytest.raises(AuthenticationError, match=r"no such key.*region and service"):
            await scp.azs()
    assert len(platform.requests) == 2


async def test_signatures_follow_the_clock_of_the_platform(platform: FakePlatform) -> None:
    def handle(request: Request) -> Reply:
        here = {"Date": formatdate(time.time() - 7200, usegmt=True)}
        dated = time.strftime("%Y%m%dT%H", time.gmtime(time.time() - 7200))
        fine = (request.header("X-Amz-Date") or "").startswith(dated) and proves(request)
        return Reply(b'{"code": 0, "data": []}' if fine else b'{"code": 401}', 200 if fine else 401, here)

    platform.on(AZS, handle)
    async with api(platform, credentials=KEY, signing=SigningSettings(fallback="none")) as scp:
        assert await scp.azs() == []
    assert len(platform.requests) == 2


async def test_a_clock_that_is_off_is_named(platform: FakePlatform) -> None:
    reply = replace(refusal(401), headers={"Date": formatdate(time.time() + 3600, usegmt=True)})
    platform.on(AZS, reply)
    async with api(platform, credentials=KEY) as scp:
        with pytest.raises(AuthenticationError, match=r"our clock is off by (3599|3600) s"):
            await scp.azs()


# --- asking again ----------------------------------------------------------------------------------------------------


async def test_a_platform_that_limits_our_rate_is_waited_for(platform: FakePlatform) -> None:
    platform.on(AZS, refusal(429), refusal(503), refusal(429, Retry_After="0"), answer([POOL]))
    async with api(platform) as scp:
        assert [az.name for az in await scp.azs()] == ["Pool"]


@pytest.mark.parametrize(
    ("after", "date", "seconds"),
    [
        ("7", None, 7.0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", "Thu, 01 Jan 2026 00:00:00 GMT", 60.0),  # by its clock, not by ours
        ("Thu, 01 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 2026 00:01:00 GMT", 0.0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", None, None),
        *((text, "Thu, 01 Jan 2026 00:00:00 GMT", None) for text in ("soon", "-1", "1e3", "", "9" * 400, "\xb2")),
    ],
)
def test_how_long_it_wants_us_to_wait(after: str, date: str | None, seconds: float | None) -> None:
    headers = {"Retry-After": after} | ({} if date is None else {"Date": date})
    assert asked_for(Answer(429, Headers(headers.items()), b"")) == seconds


async def test_a_wait_that_cannot_be_read_is_ours(platform: FakePlatform) -> None:
    platform.on(AZS, refusal(503, Retry_After="soon"), answer([]))
    async with api(platform) as scp:
        await scp.azs()


@pytest.mark.parametrize("after", ["86400", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_but_not_for_ever(platform: FakePlatform, after: str) -> None:
    platform.on(AZS, refusal(429, "too many", Retry_After=after, Date="Thu, 01 Jan 2026 00:00:00 GMT"))
    async with api(platform) as scp:
        with pytest.raises(PlatformError, match="too many") as failure:
            await scp.azs()
    assert failure.value.status == 429
    assert len(platform.came(AZS)) == 1


async def test_an_endless_503_ends(platform: FakePlatform, caplog: pytest.LogCaptureFixture) -> None:
    platform.on(AZS, refusal(503, "maintenance"))
    async with api(platform) as scp:
        with pytest.raises(PlatformError, match="maintenance"):
            await scp.azs()
    assert len(platform.came(AZS)) == 12
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1, "whoever waits is told once"
    assert "does not answer 'azs' now; it is asked again in 0 s" in told[0]


async def test_reading_is_repeated_when_the_platform_fails(platform: FakePlatform) -> None:
    platform.on(AZS, refusal(500), Reply(b"<html>", 502), answer([]))
    async with api(platform) as scp:
        await scp.azs()
    platform.on(AZS, refusal(500, "out of order"))
    async with api(platform) as scp:
        with pytest.raises(PlatformError, match="out of order"):
            await scp.azs()


async def test_an_answer_that_lost_its_end_on_the_way_is_asked_for_again(platform: FakePlatform) -> None:
    json_type = {"Content-Type": "application/json; charset=utf-8"}
    whole = answer([POOL])
    platform.on(AZS, Reply(whole.body[:-3], 200, json_type), whole)
    async with api(platform) as scp:
        assert len(await scp.azs()) == 1
        platform.on(AZS, Reply(whole.body[:-3], 200, json_type))
        with pytest.raises(PlatformError, match="cannot be used"):
            await scp.azs()
    assert len(platform.came(AZS)) == 2 + 3


async def test_changing_is_not(platform: FakePlatform) -> None:
    place = f"PUT /janus/20180725/backup-resources/{RESOURCE}"
    platform.on(place, refusal(500))
    async with api(platform) as scp:
        with pytest.raises(PlatformError):
            await scp.renew_resource(RESOURCE, 600)
    assert len(platform.came(place)) == 1


async def test_a_change_that_is_asked_for_again_is_known_by_its_token(platform: FakePlatform) -> None:
    place = "POST /janus/20180725/backup-resources"
    created = answer({"resource_id": RESOURCE, "task_id": TASK}, 201)
    platform.on(place, Reply(raw=b""), refusal(503), refusal(401), created)
    async with api(platform) as scp:
        await scp.create_resource(SERVER, "backup", 600)
        await scp.create_resource(SERVER, "backup", 600)
    tokens = [request.header("X-Client-Token") for request in platform.came(place)]
    assert len(tokens) == 5
    assert len({*tokens[:4]}) == 1
    assert len({*tokens}) == 2


async def test_what_is_gone_after_a_lost_answer_was_deleted(platform: FakePlatform) -> None:
    platform.on(DELETE_RESOURCE, Reply(raw=b""), refusal(404))
    async with api(platform) as scp:
        assert await scp.delete_resource(RESOURCE) is None
    platform.on(DELETE_RESOURCE, refusal(404))
    async with api(platform) as scp:
        with pytest.raises(PlatformError) as failure:
            await scp.delete_resource(RESOURCE)
    assert failure.value.status == 404


async def test_nobody_there_is_told_at_once(certificates: Path) -> None:
    async with fake_platform(certificates) as platform:
        settings = platform.settings()
    async with ScpApi(settings) as scp:  # with the pauses that users have
        with pytest.raises(PlatformError, match=r"got no answer.*no connection"):
            await scp.azs()


# --- refusals --------------------------------------------------------------------------------------------------------


REFUSALS: list[tuple[Reply, type[SfasyncError], str]] = [
    (refusal(400, "bad az_id"), PlatformError, r"refused 'azs' \(400\): bad az_id"),
    (refusal(403), AuthenticationError, "does not allow us 'azs'.*agentless"),
    (refusal(404, "gone"), PlatformError, "gone"),
    (refusal(409, "occupied"), BusyError, "busy with 'azs'.*occupied"),
    (Reply(b'{"code": 400, "message": "inside"}'), PlatformError, r"\(400\): inside"),
    (Reply(b'{"errcode": "0x01002BB5", "data": null, "message": "e"}'), PlatformError, r"\(0x01002BB5\): e"),
    (Reply(b'{"errcode": "0x01002BB5", "message": "e"}', 400), PlatformError, "0x01002BB5"),
    (Reply(b"<html>gateway", 418), PlatformError, r"\(418\)"),
    (Reply(b"", 400), PlatformError, r"\(400\)"),
]


async def test_refusals(platform: FakePlatform) -> None:
    async with api(platform) as scp:
        for reply, kind, message in REFUSALS:
            platform.on(AZS, reply)
            with pytest.raises(kind, match=message):
                await scp.azs()
    assert len(platform.came(AZS)) == len(REFUSALS)


async def test_both_envelopes(platform: FakePlatform) -> None:
    async with api(platform) as scp:
        for start in (b'"code": 0,', b'"code": "0",', b'"errcode": "",', b'"errcode": null,', b""):
            platform.on(AZS, Reply(b"{" + start + b'"data": [{"id": "pool-1"}]}'))
            assert [az.id for az in await scp.azs()] == ["pool-1"]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_redirects_are_not_followed(platform: FakePlatform, certificates: Path, status: int, scheme: str) -> None:
    """T26."""
    async with fake_platform(certificates) as other:
        platform.on(AZS, Reply(b"", status, {"Location": f"{scheme}://localhost:{other.port}/janus/20180725/azs"}))
        async with api(platform) as scp:
            with pytest.raises(PlatformError, match="go elsewhere"):
                await scp.azs()
        assert other.requests == []


async def test_what_the_platform_says_has_no_secrets_and_is_one_line(platform: FakePlatform) -> None:
    """T31."""
    echo = f"Authorization: Token token-1\nbody {CANARY}\x1b[2J " + "x" * 5000
    platform.on(AZS, refusal(400, echo))
    async with api(platform) as scp:
        with pytest.raises(PlatformError) as failure:
            await scp.azs()
    message = str(failure.value)
    assert CANARY not in message
    assert "token-1" not in message
    assert message.isprintable()
    assert len(message) < 400


async def test_cookies_of_the_platform_are_not_kept(platform: FakePlatform) -> None:
    platform.on(AZS, answer([], Set_Cookie="aCMPAuthToken=evil; Path=/"))
    async with api(platform) as scp:
        await scp.azs()
        await scp.azs()
    assert [request.header("Cookie") for request in platform.came(AZS)] == [None, None]


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
async def test_no_proxy_is_taken_from_the_environment(
    platform: FakePlatform, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    platform.on(AZS, answer([]))
    async with api(platform) as scp:
        await scp.azs()


# --- answers that are none -------------------------------------------------------------------------------------------


NO_ANSWERS = [
    b"",
    b"null",
    b"[]",
    b'"text"',
    b'{"data":',
    b'{"data": [{"id": "a"}]',
    b'{"data": {}}',
    b'{"data": 7}',
    b'{"data": [7]}',
    b'{"data": [{"name": "no id"}]}',
    b'{"data": [{"id": 7}]}',
    b'{"data": [{"id": "../../x"}]}',
    b'{"data": [{"id": "a/b"}]}',
    b'{"data": [{"id": "a", "name": []}]}',
    b'{"data": [{"id": "a", "name": "\xff"}]}',
    b'{"data": ' + b"[" * 1_000_000,
    b'{"data": ' + b'{"a":' * 1_000_000,
    b'{"data": {"data": [], "next_page_num": "soon"}}',
    b'{"data": {"data": [], "next_page_num": {}}}',
    b'{"data": {"data": [{"id": "a"}], "next_page_num": "0"}}',
    b'{"data": {"data": [{"id": "a"}], "next_page_num": -1}}',
    b'{"data": {"data": [], "next_page_num": 1}}',
    b'{"data": {"data": [{"id": "a"}], "next_page_num": "' + b"9" * 10_000 + b'"}}',
    b"\xef\xbb\xbf{}",
    b"PK\x03\x04",
]


async def test_answers_that_are_none(platform: FakePlatform) -> None:
    async with api(platform) as scp:
        for body in NO_ANSWERS:
            platform.on(AZS, Reply(body))
            with pytest.raises(PlatformError, match="answer to 'azs' cannot be used") as failure:
                await scp.azs()
            assert str(failure.value).isprintable(), body[:40]
            assert len(str(failure.value)) < 400, body[:40]


async def test_a_list_that_should_have_no_pages_has_none(platform: FakePlatform) -> None:
    place = f"GET /janus/20210725/servers/{SERVER}/snapshots"
    platform.on(place, answer({"data": [{"id": "s"}], "next_page_num": "1"}))
    async with api(platform) as scp:
        with pytest.raises(PlatformError, match="more than one page"):
            await scp.snapshots(SERVER)
    assert platform.came(place)[0].query == {}


async def test_a_list_without_end_is_given_up(platform: FakePlatform) -> None:
    """T28."""

    def page(request: Request) -> Reply:
        number = int(request.query["page_num"])
        return answer({"data": [POOL], "next_page_num": str(number + 1)})

    platform.on(AZS, page)
    async with api(platform) as scp:
        with pytest.raises(PlatformError, match="does not come to an end"):
            await scp.azs()
    assert len(platform.came(AZS)) == 2  # the second page has nothing new


async def test_an_item_that_moved_to_the_next_page_is_there_once(platform: FakePlatform) -> None:
    items = [{"id": f"pool-{number}"} for number in (1, 2, 2, 3)]
    platform.on(AZS, pages(items, size=2))
    async with api(platform) as scp:
        assert [az.id for az in await scp.azs()] == ["pool-1", "pool-2", "pool-3"]


@pytest.mark.parametrize("told", [True, False])
async def test_an_answer_of_a_gibibyte_is_not_read(platform: FakePlatform, told: bool) -> None:
    """T28."""
    headers = {} if told else {"Transfer-Encoding": "chunked"}
    piece = b" " * (1 << 20)
    body = piece if told else b"%x\r\n%b\r\n" % (len(piece), piece)
    platform.on(AZS, Reply(body, 200, headers, times=1024))
    async with api(platform) as scp:
        with pytest.raises(PlatformError, match=f"longer than {MAX_BODY >> 20} MiB"):
            await scp.azs()
    assert len(platform.came(AZS)) == 1


NO_HTTP = [
    b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000,
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
    b"HTTP/9.9 999999 ?\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
]


async def test_what_is_not_http(platform: FakePlatform) -> None:
    async with api(platform, timeouts=replace(TIMEOUTS, retry=0.003)) as scp:
        for raw in NO_HTTP:
            platform.on(AZS, Reply(raw=raw))
            with pytest.raises(PlatformError, match="'azs' got no answer"):
                await scp.azs()
        platform.on(AZS, answer([]))
        assert await scp.azs() == []


async def test_a_platform_that_says_nothing_is_given_up(platform: FakePlatform) -> None:
    platform.on(AZS, silence)
    async with api(platform, timeouts=replace(TIMEOUTS, request=0.3, retry=0.001)) as scp:
        with pytest.raises(PlatformError, match=r"no whole answer came in 0\.3 s"):
            await scp.azs()


async def test_a_call_may_be_cancelled_anywhere(platform: FakePlatform) -> None:
    """Login, exchange, retry and renewal, cancelled before each of their steps with one client."""
    step = 0
    while True:
        platform.on(LOGIN, token("token-1"))
        platform.on(AZS, refusal(401), refusal(503), answer([POOL]))
        async with api(platform) as scp:
            task = await Stepper(step).run(scp.azs)
            if not task.cancelled():
                break
            platform.on(AZS, answer([POOL]))
            assert len(await scp.azs()) == 1
        step += 1
    assert step >= 10


async def test_whoever_waits_when_the_client_is_closed_is_told(platform: FakePlatform) -> None:
    came = asyncio.Event()

    async def wait(request: Request) -> Reply:
        came.set()
        return await silence(request)

    platform.on(AZS, wait)
    async with api(platform, timeouts=replace(TIMEOUTS, retry=0.001)) as scp:
        call = asyncio.ensure_future(scp.azs())
        await came.wait()
    with pytest.raises(PlatformError, match="got no answer"):
        await call


async def test_no_more_sockets() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(SystemLimitError, match="no more files"):
            await Network(None).connect_tcp("127.0.0.1", 443, timeout=5.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("seed", range(3))
async def test_many_calls_with_every_trouble_at_once(platform: FakePlatform, seed: int) -> None:
    """Each ends with what it asked for, a typed error or its cancellation; sockets are counted by the fixtures."""
    rng = random.Random(seed)
    merge = f"POST /janus/20180725/servers/{SERVER}/merge-backup-data"
    trouble: list[Reply | Handler] = [
        *(
            answer([POOL]),
            answer([POOL]),
            silence,
            refusal(401),
            refusal(429),
            refusal(503),
            refusal(500),
            refusal(409),
        ),
        *(Reply(raw=b""), Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"), Reply(b'{"data": [')),
        *(Reply(b"", 302, {"Location": "http://x/"}), Reply(rng.randbytes(200)), Reply(raw=rng.randbytes(300))),
    ]

    def any_of_it(request: Request) -> Reply | Awaitable[Reply]:
        reply = rng.choice(trouble)
        return reply(request) if callable(reply) else reply

    platform.on(AZS, any_of_it)
    platform.on(merge, any_of_it)
    platform.on(LOGIN, *[token(f"token-{number}") for number in range(5)], refusal(503), token("token-6"))
    credentials = None if seed % 2 else KEY
    async with api(platform, credentials=credentials, timeouts=replace(TIMEOUTS, request=0.1, retry=0.1)) as scp:
        calls: list[asyncio.Future[object]] = [
            asyncio.ensure_future(scp.azs() if rng.random() < 0.7 else scp.merge(SERVER)) for _ in range(30)
        ]
        for call in calls:
            if rng.random() < 0.3:
                asyncio.get_running_loop().call_later(rng.random() * 0.1, call.cancel)
        results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        assert result is None or isinstance(result, list | SfasyncError | asyncio.CancelledError)


# --- TLS -------------------------------------------------------------------------------------------------------------


def fingerprint(certificates: Path) -> str:
    pem = (certificates / "server-cert.pem").read_text().split("-----END CERTIFICATE-----")[0]
    der = ssl.PEM_cert_to_DER_cert(pem.strip() + "\n-----END CERTIFICATE-----\n")
    return hashlib.sha256(der).hexdigest()


async def test_a_certificate_that_is_pinned_is_believed_alone(platform: FakePlatform, certificates: Path) -> None:
    platform.on(AZS, answer([]))
    settings = platform.settings(ca_file=None, fingerprint=fingerprint(certificates))
    async with ScpApi(replace(settings, url=settings.url.replace("localhost", "127.0.0.1")), pace=QUICK) as scp:
        assert await scp.azs() == []


@pytest.mark.parametrize("with_ca", [True, False])
async def test_another_certificate_than_the_one_pinned_gets_no_byte(platform: FakePlatform, with_ca: bool) -> None:
    values: dict[str, Any] = {} if with_ca else {"ca_file": None}
    async with api(platform, fingerprint="ab" * 32, **values) as scp:
        with pytest.raises(TlsError, match="another fingerprint"):
            await scp.azs()
    assert platform.requests == []


async def test_a_name_that_the_certificate_does_not_have(platform: FakePlatform) -> None:
    async with api(platform, hostname="scp.example") as scp:
        with pytest.raises(TlsError, match=r"certificate is not accepted.*scp.example"):
            await scp.azs()


async def test_an_authority_that_is_not_believed(platform: FakePlatform) -> None:
    async with api(platform, ca_file=None) as scp:
        with pytest.raises(TlsError, match="certificate is not accepted"):
            await scp.azs()
    assert platform.requests == []


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", TlsError, "TLS failed"),
        (b"", PlatformError, "closed while TLS began"),
    ],
)
async def test_a_server_without_tls(certificates: Path, said: bytes, kind: type[SfasyncError], message: str) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(said)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    platform = FakePlatform(certificates)
    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    platform.port = server.sockets[0].getsockname()[1]
    try:
        async with api(platform) as scp:
            with pytest.raises(kind, match=message):
                await scp.azs()
    finally:
        server.close()
        await server.wait_closed()


def test_no_credentials() -> None:
    with pytest.raises(UsageError, match=r"no credentials for https://scp\.example"):
        ScpApi(ScpSettings(url="https://scp.example"))


async def test_of_a_cluster_hardly_anything_is_known(platform: FakePlatform) -> None:
    """U9."""
    place = "GET /hci/vt/api/v1/snapshots/snapshot-1"
    platform.on(place, answer({"id": "snapshot-1", "checkPointID": "7", "vmConf": {}}))
    async with api(platform, credentials=KEY, product="hci") as scp:
        assert (await scp.snapshot(SERVER, "snapshot-1")).checkpoint_id == "7"
        with pytest.raises(PlatformError, match="'servers' is not supported on this platform"):
            await scp.servers()
    async with api(platform, product="hci") as scp:
        with pytest.raises(PlatformError, match="'public-key' is not supported"):
            await scp.snapshot(SERVER, "snapshot-1")
    assert len(platform.requests) == 1


async def test_nothing_shows_a_secret(platform: FakePlatform) -> None:
    platform.on(LOGIN, token("a-token-nobody-should-see"))
    platform.on(AZS, answer([]))
    for credentials in (KEY, Password("backup", CANARY)):
        async with api(platform, credentials=credentials) as scp:
            await scp.azs()
            caller = scp._client._caller
            shown = [scp, scp._client, caller, caller._authorizer, caller._redactor, caller._server, caller._settings]
            shown.append(await caller._authorizer.ticket("GET", "/", b""))
            text = " ".join(map(repr, shown))
    assert CANARY not in text
    assert "a-token-nobody-should-see" not in text
