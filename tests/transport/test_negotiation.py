from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from sfasync.errors import ConnectError, ConnectionLostError, DeadlineError, ExportError, SfasyncError, TlsError
from sfasync.models import ExportAddress, TlsPolicy
from sfasync.nbd.handshake import ExportInfo, opening
from sfasync.nbd.uri import parse_uri
from sfasync.transport.negotiation import negotiate
from sfasync.trust import client_context

from ..support import peer
from ..support.certificates import make_certificates
from ..support.liar import Client, Script, liar
from ..support.servers import Server, nbd_server, nbdkit, qemu_nbd
from ..support.tls_front import tls_front


async def open_(address: ExportAddress | str, timeout: float = 10.0) -> ExportInfo:
    """Negotiate and hang up."""
    if isinstance(address, str):
        address = parse_uri(address)
    handshake = opening(address.peer, tls=address.tls_style, export=address.export)
    context = None if address.tls is None else client_context(address.tls)
    stream, info = await negotiate(address, handshake, context=context, timeout=timeout)
    stream.abort()
    await asyncio.sleep(0)
    return info


def tls(certificates: Path) -> TlsPolicy:
    return TlsPolicy(ca_file=certificates / "ca-cert.pem")


def with_tls(address: ExportAddress, policy: TlsPolicy) -> ExportAddress:
    return ExportAddress(socket=address.socket, export="secret", tls=policy)


# --- real servers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True])
async def test_tls_with_nbdkit(certificates: Path, tcp: bool) -> None:
    with nbdkit("memory", "1M", tls=certificates, tcp=tcp) as server:
        assert (await open_(server.uri)).size == 1 << 20


async def test_tls_with_qemu_and_nbd_server(certificates: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with qemu_nbd(image, tls=certificates) as server:
        assert (await open_(server.uri)).size == 1 << 20
    with nbd_server(image, tls=certificates) as server:
        assert (await open_(server.uri)).size == 1 << 20


async def test_tls_of_another_authority(certificates: Path, tmp_path: Path) -> None:
    others = make_certificates(tmp_path / "others")
    with nbdkit("memory", "1M", tls=certificates) as server:
        uri = server.uri.replace(quote(str(certificates)), quote(str(others)))
        with pytest.raises(TlsError, match="the server's certificate is not accepted") as caught:
            await open_(uri)
    assert caught.value.exit_code == 13
    assert "\n" not in str(caught.value)


async def test_tls_of_another_host(tmp_path: Path) -> None:
    elsewhere = make_certificates(tmp_path, hosts=("elsewhere.example",))
    with nbdkit("memory", "1M", tls=elsewhere, tcp=True) as server:
        with pytest.raises(TlsError, match="not accepted: IP address mismatch"):
            await open_(server.uri)
        assert (await open_(server.uri + "&tls-hostname=elsewhere.example")).size == 1 << 20


async def test_tls_that_has_expired(tmp_path: Path) -> None:
    expired = make_certificates(tmp_path, expired=True)
    with nbdkit("memory", "1M", tls=expired) as server, pytest.raises(TlsError, match="has expired"):
        await open_(server.uri)


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_server_that_wants_a_client_certificate(tmp_path: Path, tcp: bool) -> None:
    certificates = make_certificates(tmp_path)
    with nbdkit("--tls-verify-peer", "memory", "1M", tls=certificates, tcp=tcp) as server:
        assert (await open_(server.uri)).size == 1 << 20
        for name in ("client-cert.pem", "client-key.pem"):
            (certificates / name).unlink()
        with pytest.raises(TlsError):
            await open_(server.uri)


async def test_tls_from_the_first_byte(certificates: Path) -> None:
    with nbdkit("memory", "1M") as server, tls_front(server, certificates) as address:
        assert (await open_(address)).size == 1 << 20
        assert (await open_(replace(address, export="any"))).size == 1 << 20


async def test_direct_tls_is_verified(certificates: Path, tmp_path: Path) -> None:
    others = make_certificates(tmp_path / "others")
    with nbdkit("memory", "1M") as server, tls_front(server, certificates) as address:
        assert address.tls is not None
        for policy, message in [
            (replace(address.tls, ca_file=others / "ca-cert.pem"), "not accepted"),
            (replace(address.tls, hostname="elsewhere.example"), "not accepted: Hostname mismatch"),
            (replace(address.tls, fingerprint="00" * 32), "another fingerprint"),
            (replace(address.tls, hostname="bad\0name"), "cannot be the name in a certificate"),
        ]:
            with pytest.raises(TlsError, match=message):
                await open_(replace(address, tls=policy))


async def test_a_direct_server_that_wants_a_client_certificate(certificates: Path) -> None:
    with (
        nbdkit("memory", "1M") as server,
        tls_front(server, certificates, client_certificates=True) as address,
    ):
        assert address.tls is not None
        cert, key = certificates / "client-cert.pem", certificates / "client-key.pem"
        policy = replace(address.tls, cert_file=cert, key_file=key)
        assert (await open_(replace(address, tls=policy))).size == 1 << 20
        with pytest.raises(TlsError):
            await open_(address)


async def test_the_styles_of_tls_do_not_mix(certificates: Path) -> None:
    with nbdkit("memory", "1M", tls=certificates) as server:
        address = ExportAddress(socket=server.socket, tls=replace(tls(certificates), style="direct"))
        # Its greeting may be there before our first byte is.
        with pytest.raises(TlsError, match=r"TLS failed|plain text where TLS should begin"):
            await open_(address)
    with (
        nbdkit("memory", "1M") as server,
        tls_front(server, certificates) as address,
        pytest.raises((DeadlineError, ConnectionLostError)),
    ):
        await open_(replace(address, tls=tls(certificates)), timeout=0.5)


def plain_servers(image: Path) -> list[AbstractContextManager[Server]]:
    return [nbdkit("memory", "1M"), nbdkit("--mask-handshake=0", "memory", "1M"), qemu_nbd(image), nbd_server(image)]


@pytest.mark.parametrize("which", range(4))
async def test_a_plain_server_that_is_asked_for_tls(certificates: Path, tmp_path: Path, which: int) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with plain_servers(image)[which] as server, pytest.raises(TlsError, match="TLS"):
        await open_(ExportAddress(socket=server.socket, tls=tls(certificates)))


@pytest.mark.parametrize("which", range(3))
async def test_a_server_that_demands_tls_is_asked_without(certificates: Path, tmp_path: Path, which: int) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    servers = [
        nbdkit("memory", "1M", tls=certificates),
        qemu_nbd(image, tls=certificates),
        nbd_server(image, tls=certificates),
    ]
    with servers[which] as server, pytest.raises(TlsError, match="demands TLS"):
        await open_(ExportAddress(socket=server.socket, export="disk" if which == 2 else ""))


async def test_an_unknown_export(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    with qemu_nbd(tmp_path / "image", export="disk") as server:
        address = ExportAddress(socket=server.socket, export="other\n")
        with pytest.raises(ExportError, match=r"refuses export 'other\\n': unknown export"):
            await open_(address)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="pre-shared keys need Python 3.13")
async def test_pre_shared_keys(tmp_path: Path) -> None:
    keys, others = tmp_path / "keys", tmp_path / "others"
    keys.write_text("alice:" + "ab" * 32 + "\nbob:" + "cd" * 32 + "\n")
    keys.chmod(0o600)
    others.write_text("alice:" + "ef" * 32 + "\n")
    with nbdkit("--tls=require", f"--tls-psk={keys}", "memory", "1M") as server:
        assert server.socket is not None
        for identity in (None, "bob"):
            policy = TlsPolicy(psk_file=keys, psk_identity=identity)
            assert (await open_(ExportAddress(socket=server.socket, tls=policy))).size == 1 << 20
        with pytest.raises(TlsError):
            await open_(ExportAddress(socket=server.socket, tls=TlsPolicy(psk_file=others)))


@pytest.mark.skipif(sys.version_info < (3, 13), reason="pre-shared keys need Python 3.13")
async def test_a_certificate_instead_of_the_key_is_refused(certificates: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice:" + "ab" * 32 + "\n")
    with nbdkit("memory", "1M", tls=certificates) as server, pytest.raises(TlsError):
        await open_(ExportAddress(socket=server.socket, tls=TlsPolicy(psk_file=tmp_path / "keys")))


# --- somebody in the middle ------------------------------------------------------------------------------------------


def start_tls_with(reply: bytes, heard: list[bytes]) -> Script:
    """A server that greets well and answers STARTTLS with these bytes."""

    async def script(client: Client) -> None:
        await client.say(peer.greeting())
        await client.flags()
        assert await client.option() == (peer.STARTTLS, b"")
        await client.say(reply)
        await client.silence()
        heard.append(client.heard)

    return script


AGREED = peer.reply(peer.STARTTLS, peer.ACK)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (peer.reply(peer.STARTTLS, peer.ERR_UNSUP), "not supported"),
        (peer.reply(peer.STARTTLS, peer.ERR_POLICY), "forbidden by policy"),
        (AGREED + peer.reply(peer.STRUCTURED_REPLY, peer.ACK), "tampering"),
        (AGREED + b"x", "tampering"),
    ],
)
async def test_tls_is_not_talked_away(certificates: Path, reply: bytes, message: str) -> None:
    heard: list[bytes] = []
    async with liar(start_tls_with(reply, heard)) as address:
        with pytest.raises(TlsError, match=message):
            await open_(with_tls(address, tls(certificates)))
    assert b"secret" not in heard[0]


async def test_plain_text_a_little_behind_the_agreement(certificates: Path) -> None:
    async def script(client: Client) -> None:
        await client.say(peer.greeting())
        await client.flags()
        await client.option()
        await client.say(AGREED)
        await client.hear(5)  # the client's hello has begun
        await client.say(peer.reply(peer.STRUCTURED_REPLY, peer.ACK))
        await client.silence()

    async with liar(script) as address:
        with pytest.raises(TlsError, match="TLS failed"):
            await open_(with_tls(address, tls(certificates)))


async def test_hanging_up_at_every_stage_of_tls(certificates: Path) -> None:
    async def at_starttls(client: Client) -> None:
        await client.say(peer.greeting())
        await client.flags()
        await client.option()

    async def in_tls(client: Client) -> None:
        await at_starttls(client)
        await client.say(AGREED)
        await client.hear(5)

    for script in (at_starttls, in_tls):
        async with liar(script) as address:
            with pytest.raises(TlsError, match="closed the connection"):
                await open_(with_tls(address, tls(certificates)))


async def test_hanging_up_instead_of_direct_tls(certificates: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")

    async def before(client: Client) -> None:
        await client.hear(5)

    async def after(client: Client) -> None:
        await client.start_tls(context)

    for script in (before, after):
        async with liar(script) as address:
            with pytest.raises(TlsError, match="before it said anything in TLS"):
                await open_(with_tls(address, replace(tls(certificates), style="direct")))


async def test_hanging_up_right_after_tls(certificates: Path) -> None:
    """With TLS 1.3 that is how a server refuses our certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")

    async def script(client: Client) -> None:
        await client.say(peer.greeting())
        await client.flags()
        await client.option()
        await client.say(AGREED)
        await client.start_tls(context)
        await client.option()

    async with liar(script) as address:
        with pytest.raises(TlsError, match="right after TLS"):
            await open_(with_tls(address, tls(certificates)))


async def test_old_servers_are_no_way_around_tls(certificates: Path) -> None:
    oldstyle = b"NBDMAGIC" + struct.pack(">QQI", 0x00420281861253, 1 << 20, 0) + bytes(124)
    for words in (oldstyle, peer.greeting(0)):

        async def script(client: Client, words: bytes = words) -> None:
            await client.say(words)
            await client.silence()
            assert b"secret" not in client.heard

        async with liar(script) as address:
            with pytest.raises(TlsError):
                await open_(with_tls(address, tls(certificates)))


# --- deadlines and ends ----------------------------------------------------------------------------------------------


async def silent(client: Client) -> None:
    await client.silence()


async def greets(client: Client) -> None:
    await client.say(peer.greeting())
    await client.silence()


async def drips(client: Client) -> None:
    """Progress does not stretch the deadline."""
    await client.say(peer.greeting())
    await client.flags()
    await client.option()
    for byte in peer.listed(b"x" * 1000):
        await client.say(bytes([byte]))
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("script", "waiting"),
    [(silent, "the server's greeting"), (greets, "the answer to NBD_OPT_STRUCTURED_REPLY"), (drips, "the answer to")],
)
async def test_one_deadline_for_all(script: Script, waiting: str) -> None:
    async with liar(script) as address:
        start = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineError, match=f"{waiting}.* did not come within 0.2 s"):
            await open_(address, timeout=0.2)
        assert asyncio.get_running_loop().time() - start < 1


async def test_a_backlog_that_stays_full_is_a_matter_of_connecting(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / "s"))
            with pytest.raises(ConnectError, match=r"no answer within 0\.1 s"):
                await open_(ExportAddress(socket=tmp_path / "s"), timeout=0.1)


@pytest.mark.parametrize("turns", range(12))
async def test_cancelling_leaves_nothing(turns: int) -> None:
    async def script(client: Client) -> None:
        await client.open()
        await client.silence()

    async with liar(script) as address:
        task = asyncio.create_task(open_(address))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.mark.parametrize("size", range(0, len(peer.opened(structured=False)), 7))
async def test_hanging_up_at_any_byte(size: int) -> None:
    async def script(client: Client) -> None:
        await client.say(peer.opened(structured=False)[:size])

    async with liar(script) as address:
        with pytest.raises(SfasyncError) as caught:
            await open_(address)
    assert type(caught.value) is ConnectionLostError
    assert str(address.socket) in str(caught.value)
