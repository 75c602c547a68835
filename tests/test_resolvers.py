from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sfasync
from sfasync.errors import UriError, UsageError
from sfasync.interfaces import EndpointResolver
from sfasync.models import EndpointRequest, ExportAddress, TlsPolicy
from sfasync.resolvers import EndpointTemplate, TableResolver

DISK = EndpointRequest(vm_id="vm", disk_id="ide0", snapshot_id="s1", server_id="uuid", resource_id="a:b")
OVER_TLS = replace(DISK, mode="nbdssl")


def test_a_table_is_a_resolver() -> None:
    resolver: EndpointResolver = TableResolver()
    assert not isinstance(resolver, sfasync.ReleasingResolver)


async def test_uris_and_addresses_of_a_table() -> None:
    address = ExportAddress(socket=Path("a.sock"))
    resolver = TableResolver({("vm", "ide0"): "nbd://host:1/x", ("vm", "ide1"): address})
    assert await resolver.resolve(DISK) == ExportAddress(host="host", port=1, export="x")
    assert await resolver.resolve(replace(DISK, disk_id="ide1")) is address
    for other in (replace(DISK, disk_id="ide2"), replace(DISK, vm_id="ide0", disk_id="vm\n")):
        with pytest.raises(UsageError, match=r"no address for disk '.*' of VM '.*'") as caught:
            await resolver.resolve(other)
        assert caught.value.disk == other.disk_id
        assert "\n" not in str(caught.value)


def test_a_malformed_uri_is_refused_at_once() -> None:
    with pytest.raises(UriError):
        TableResolver({("vm", "ide0"): "http://host"})


async def test_disks_that_are_not_in_the_table_follow_the_rule() -> None:
    template = EndpointTemplate(
        host="hci", port=7, export="{vm_id}/{disk_id}@{snapshot_id}:{server_id}:{resource_id}{{}}", tls=TlsPolicy()
    )
    resolver = TableResolver({("vm", "ide9"): "nbd://host/x"}, otherwise=template)
    expected = ExportAddress(host="hci", port=7, export="vm/ide0@s1:uuid:a:b{}")
    assert await resolver.resolve(DISK) == expected
    assert await resolver.resolve(OVER_TLS) == replace(expected, tls=TlsPolicy())
    assert (await resolver.resolve(replace(DISK, disk_id="ide9"))).export == "x"


def test_a_rule_without_tls_makes_no_plain_address_for_nbdssl() -> None:
    with pytest.raises(UsageError, match="no TLS is described for hci; mode nbdssl needs it"):
        EndpointTemplate(host="hci").address(OVER_TLS)


def test_a_rule_needs_what_it_names() -> None:
    template = EndpointTemplate(host="hci", export="{disk_id}@{snapshot_id}")
    with pytest.raises(UsageError, match="needs a snapshot_id, and disk 'ide0' is opened without one"):
        template.address(EndpointRequest(vm_id="vm", disk_id="ide0"))


@pytest.mark.parametrize(
    "export",
    ["{vm}", "{}", "{0}", "{vm_id.__class__}", "{vm_id[0]}", "{vm_id!r}", "{vm_id:>9}", "{vm_id", "}", "{vm_id:{x}}"],
)
def test_rules_that_are_malformed(export: str) -> None:
    with pytest.raises(UsageError, match="template of the export") as caught:
        EndpointTemplate(host="hci", export=export)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_any_rule_is_refused_or_makes_a_name(export: str) -> None:
    try:
        template = EndpointTemplate(host="hci", export=export)
    except UsageError:
        return
    name = template.address(DISK).export
    if "{" not in export and "}" not in export:
        assert name == export


# --- files -----------------------------------------------------------------------------------------------------------

FULL = """
host = "hci-01.example"
port = 4000
export = "{vm_id}/{disk_id}"
connections = 1

[tls]
style = "direct"
check_hostname = false
ca_file = "ca.pem"
cert_file = "/etc/client.pem"
key_file = "keys/client.pem"
hostname = "hci.example"
fingerprint = "ab"

[[disks]]
vm_id = "1"
disk_id = "ide0"
uri = "nbd://10.0.0.7/ide0"

[[disks]]
vm_id = "1"
disk_id = "ide1"
export = "other"

[[disks]]
vm_id = "1"
disk_id = "ide2"
host = "hci-02.example"
port = 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "disks.toml"


async def test_all_that_a_file_may_say(file: Path) -> None:
    file.write_text(FULL)
    resolver = TableResolver.from_file(file)
    policy = TlsPolicy(
        style="direct",
        ca_file=file.parent / "ca.pem",
        cert_file=Path("/etc/client.pem"),
        key_file=file.parent / "keys/client.pem",
        hostname="hci.example",
        check_hostname=False,
        fingerprint="ab",
    )
    expected = {
        "ide0": ExportAddress(host="10.0.0.7", export="ide0"),
        "ide1": ExportAddress(host="hci-01.example", port=4000, export="other", tls=policy, connections=1),
        "ide2": ExportAddress(host="hci-02.example", port=1, export="1/ide2", tls=policy, connections=1),
        "ide3": ExportAddress(host="hci-01.example", port=4000, export="1/ide3", tls=policy, connections=1),
    }
    for disk, address in expected.items():
        assert await resolver.resolve(EndpointRequest(vm_id="1", disk_id=disk, mode="nbdssl")) == address
    plain = await resolver.resolve(EndpointRequest(vm_id="1", disk_id="ide3"))
    assert plain == replace(expected["ide3"], tls=None)


async def test_an_authority_as_text(file: Path) -> None:
    file.write_text('host = "hci"\n[tls]\nca_text = """\n-----BEGIN CERTIFICATE-----\n"""\n')
    address = await TableResolver.from_file(str(file)).resolve(OVER_TLS)
    assert address.tls == TlsPolicy(ca_text="-----BEGIN CERTIFICATE-----\n")


async def test_an_empty_file_knows_no_disk(file: Path) -> None:
    file.write_text("")
    with pytest.raises(UsageError, match="no address"):
        await TableResolver.from_file(file).resolve(DISK)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host = ", "not a table of disks"),
        ("hosts = 'a'", "unknown field `hosts`"),
        ("port = 0", r">= 1.*\$\.port"),
        ("port = '1'", r"Expected `int`.*\$\.port"),
        ("[tls]\nverify = false", r"unknown field `verify` - at `\$\.tls`"),
        ("[tls]\nstyle = 'none'", r"Invalid enum value 'none' - at `\$\.tls\.style`"),
        ("[tls]\nca_file = 'a'\nca_text = 'b'", "not both"),
        ("export = '{x}'\nhost = 'a'", "template of the export has '{x}'"),
        ("[[disks]]\nvm_id = '1'", "missing required field `disk_id`"),
        ("[[disks]]\nvm_id = '1'\ndisk_id = 'a'", "disk 'a' of VM '1': has neither a URI nor a host"),
        ("[[disks]]\nvm_id = '1'\ndisk_id = 'a'\nuri = 'x'", "disk 'a' of VM '1': 'x' is no NBD URI"),
        ("[[disks]]\nvm_id = '1'\ndisk_id = 'a'\nuri = 'nbd://a'\nport = 1", "says host, port and export already"),
        ("host = 'a'\n" + "[[disks]]\nvm_id = '1'\ndisk_id = 'a'\n" * 2, "disk 'a' of VM '1' is there twice"),
    ],
)
def test_files_that_are_wrong_are_named(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        TableResolver.from_file(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert caught.value.path == str(file)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(file: Path) -> None:
    with pytest.raises(UsageError, match=r"disks\.toml: cannot be read: No such file"):
        TableResolver.from_file(file)
    file.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not a table of disks"):
        TableResolver.from_file(file)
    with file.open("wb") as large:
        large.truncate(1 << 30)
    with pytest.raises(UsageError, match="more than"):
        TableResolver.from_file(file)
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        TableResolver.from_file(file.parent)
