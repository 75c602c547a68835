from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfasync.errors import UriError
from sfasync.models import ExportAddress, TlsPolicy
from sfasync.nbd.uri import format_uri, parse_uri

GOOD = [
    ("nbd://example.com", ExportAddress(host="example.com")),
    ("nbd://example.com/", ExportAddress(host="example.com")),
    ("nbd://example.com:10810/disk", ExportAddress(host="example.com", port=10810, export="disk")),
    ("nbd://example.com//disk", ExportAddress(host="example.com", export="/disk")),
    ("nbd://example.com/a%20b%2Fc/d", ExportAddress(host="example.com", export="a b/c/d")),
    ("nbd://[::1]:1/x", ExportAddress(host="::1", port=1, export="x")),
    ("NBD://example.com/x", ExportAddress(host="example.com", export="x")),
    ("nbd+unix:///?socket=/run/nbd.sock", ExportAddress(socket=Path("/run/nbd.sock"))),
    ("nbd+unix:///disk?socket=a.sock", ExportAddress(socket=Path("a.sock"), export="disk")),
    ("nbd+unix:///disk?socket=a%20%26b", ExportAddress(socket=Path("a &b"), export="disk")),
    ("nbds://example.com/disk", ExportAddress(host="example.com", export="disk", tls=TlsPolicy())),
    (
        "nbds://10.0.0.1/?tls-hostname=node-1",
        ExportAddress(host="10.0.0.1", tls=TlsPolicy(hostname="node-1")),
    ),
    (
        "nbds+unix:///?socket=s&tls-certificates=pki",
        ExportAddress(
            socket=Path("s"),
            tls=TlsPolicy(
                ca_file=Path("pki/ca-cert.pem"),
                cert_file=Path("pki/client-cert.pem"),
                key_file=Path("pki/client-key.pem"),
            ),
        ),
    ),
    (
        "nbds://alice@example.com/?tls-psk-file=/keys.psk",
        ExportAddress(host="example.com", tls=TlsPolicy(psk_file=Path("/keys.psk"), psk_identity="alice")),
    ),
]


@pytest.mark.parametrize(("text", "address"), GOOD)
def test_good_uris(text: str, address: ExportAddress) -> None:
    assert parse_uri(text, is_file=lambda path: True) == address
    assert parse_uri(format_uri(address), is_file=lambda path: True) == address


BAD = [
    ("", "is no NBD URI"),
    ("disk.raw", "is no NBD URI"),
    ("http://host/x", "'http' is no NBD scheme"),
    ("nbd+vsock:///", "is no NBD scheme"),
    ("nbd:///x", "needs a host"),
    ("nbd://host:0/x", "port"),
    ("nbd://host:70000/x", "port"),
    ("nbd://host:port/x", "port"),
    ("nbd://[::1/x", "malformed"),
    ("nbd://host/x#y", "fragment"),
    ("nbd://host/x#", "fragment"),
    ("nbd://host/a b", "blanks"),
    ("nbd://host/a\nb", "blanks"),
    ("nbd://host/%zz", "does not begin an escape"),
    ("nbd://host/%ff", "export name is not UTF-8"),
    ("nbd://host/%00", "zero byte"),
    ("nbd://host/?socket=a", "'socket' belongs to nbd+unix"),
    ("nbd://host/?tls-hostname=a", "'tls-hostname' needs TLS; use nbds"),
    ("nbd+unix:///?socket=a&tls-certificates=b", "use nbds+unix"),
    ("nbds://host/?tls-verify-peer=0", "'tls-verify-peer' is not known"),
    ("nbd+unix:///x", "needs the parameter 'socket'"),
    ("nbd+unix://host/x?socket=a", "takes no host"),
    ("nbd+unix:///?socket=", "'socket' has no value"),
    ("nbd+unix:///?socket", "'socket' has no value"),
    ("nbd+unix:///?socket=a&socket=b", "'socket' is given twice"),
    ("nbd+unix:///?socket=%00a", "zero byte"),
    ("nbd://alice@host/", "'tls-psk-file'"),
    ("nbds://@host/?tls-psk-file=k", "user name is empty"),
    ("nbds://host/?tls-psk-file=k&tls-certificates=d", "leave the others out"),
    ("nbds://host/?tls-psk-file=k&tls-hostname=d", "leave the others out"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_uris(text: str, message: str) -> None:
    with pytest.raises(UriError) as caught:
        parse_uri(text, is_file=lambda path: True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["nbds://alice:hunter2@host/", "nbds://alice:hunter2@host:x/ ", "alice:hunter2@host", "x://a:hunter2@b@c/"]
)
def test_a_password_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UriError) as caught:
        parse_uri(text)
    assert "hunter2" not in str(caught.value)


def test_missing_certificates_are_named(tmp_path: Path) -> None:
    uri = f"nbds://host/?tls-certificates={quote(str(tmp_path))}"
    with pytest.raises(UriError, match=r"ca-cert\.pem is missing") as caught:
        parse_uri(uri)
    assert caught.value.exit_code == 2
    assert caught.value.path == str(tmp_path / "ca-cert.pem")

    (tmp_path / "ca-cert.pem").touch()
    assert parse_uri(uri).tls == TlsPolicy(ca_file=tmp_path / "ca-cert.pem")

    (tmp_path / "client-key.pem").touch()
    with pytest.raises(UriError, match=r"client-cert\.pem is missing"):
        parse_uri(uri)

    (tmp_path / "client-cert.pem").touch()
    policy = parse_uri(uri).tls
    assert policy is not None
    assert policy.key_file == tmp_path / "client-key.pem"


def test_a_missing_key_file_is_named() -> None:
    with pytest.raises(UriError, match="/no/keys is missing"):
        parse_uri("nbds://host/?tls-psk-file=/no/keys")


@pytest.mark.parametrize(
    "policy",
    [
        TlsPolicy(fingerprint="00" * 32),
        TlsPolicy(ca_text="MIIB"),
        TlsPolicy(ca_file=Path("/c/ca-cert.pem"), check_hostname=False),
        TlsPolicy(style="direct"),
        TlsPolicy(ca_file=Path("a/other.pem")),
        TlsPolicy(
            ca_file=Path("a/ca-cert.pem"), cert_file=Path("b/client-cert.pem"), key_file=Path("b/client-key.pem")
        ),
        TlsPolicy(cert_file=Path("b/client-cert.pem"), key_file=Path("b/client-key.pem")),
    ],
)
def test_what_no_uri_can_say_is_not_said(policy: TlsPolicy) -> None:
    with pytest.raises(UriError):
        format_uri(ExportAddress(host="host", tls=policy))


def test_no_uri_counts_connections() -> None:
    with pytest.raises(UriError, match="how many connections"):
        format_uri(ExportAddress(host="host", connections=1))


NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=30)
PATHS = NAMES.map(lambda name: Path("/run") / name.replace("/", "-"))
HOSTS = st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True) | st.ip_addresses(v=6).map(str)
POLICIES = st.none() | st.builds(TlsPolicy, hostname=st.none() | NAMES)


@given(st.builds(ExportAddress, host=HOSTS, port=st.integers(1, 65535), export=NAMES, tls=POLICIES))
def test_tcp_addresses_survive(address: ExportAddress) -> None:
    assert parse_uri(format_uri(address)) == address


@given(st.builds(ExportAddress, socket=PATHS, export=NAMES, tls=POLICIES))
def test_unix_addresses_survive(address: ExportAddress) -> None:
    assert parse_uri(format_uri(address)) == address


@given(
    st.text(max_size=60) | st.text(max_size=60).map("nbd://{}".format) | st.text(max_size=60).map("nbds+unix:{}".format)
)
def test_garbage_gives_an_address_or_the_uri_error(text: str) -> None:
    try:
        parse_uri(text)
    except UriError as error:
        assert "\n" not in str(error)
