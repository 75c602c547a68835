"""The commands on a Sangfor platform, which is a lab; and where its secrets may come from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ...support.command import Ended, finish, sfasync, start
from ...support.laboratory import Laboratory, laboratory

MiB = 1 << 20

LAYOUT = """
[repositories.default]
path = "repository"
[platforms.prod]
type = "scp"
url = "{url}"
ca_file = "{ca}"
enable_cbt = true
credentials = {credentials}
timeouts = {{ poll = 0.02, retry = 5.0 }}
nbd = {{ port = {port}, networks = ["127.0.0.0/8"] }}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    with laboratory("web-01:4M") as running:
        yield running


class Site:
    """A configuration that leads to the lab."""

    def __init__(self, lab: Laboratory, directory: Path) -> None:
        self._lab = lab
        self.file = directory / "sfasync.toml"
        self.secret = directory / "secret"

    def keep(self, secret: str) -> None:
        self.secret.write_text(secret + "\n")
        self.secret.chmod(0o600)

    def configure(self, credentials: str) -> None:
        self.file.write_text(
            LAYOUT.format(
                url=self._lab.told["url"],
                ca=self._lab.directory / "lab-ca.pem",
                port=self._lab.told["port"],
                credentials=credentials,
            )
        )

    def call(self, *arguments: str) -> Ended:
        return sfasync(*arguments, "--config", self.file, "--json")


@pytest.fixture
def site(lab: Laboratory, tmp_path: Path) -> Site:
    site = Site(lab, tmp_path)
    site.keep(lab.told["password"])
    site.configure(f'{{ user = "{lab.told["user"]}", password = {{ file = "secret" }} }}')
    return site


def test_vms_backups_restores_and_cleanup(lab: Laboratory, site: Site) -> None:
    vm, _ = site.call("vms", "--platform", "prod").events
    assert (vm["name"], vm["disks"][0]["size"], vm["refusal"]) == ("web-01", 4 * MiB, None)
    assert site.call("init").status == 0
    first = site.call("backup", "web-01", "--platform", "prod").last
    disk = vm["disks"][0]["id"]
    lab.write("web-01", disk, MiB, b"changed" * 1000)
    second = site.call("backup", vm["id"], "--platform", "prod", "--transport", "nbd").last
    assert (first["vm"], second["vm"], second["parent"]) == (vm["id"], vm["id"], first["id"])
    assert [backup["disks"][0]["mode"] for backup in (first, second)] == ["full", "incremental"]
    assert site.call("show", "web-01@latest").last["id"] == second["id"]
    assert site.call("list", "--vm", "web-01").last["count"] == 2

    frozen = lab.content("web-01", disk)
    new = site.call("restore", "web-01@latest", "--platform", "prod", "--new-name", "web-02").last
    assert new["restored_vm"] != vm["id"]
    assert lab.content("web-02", disk) == frozen
    lab.write("web-01", disk, 0, b"gone wrong")
    lab.switch("web-01", running=False)
    back = site.call("restore", "web-01@latest", "--platform", "prod", "--differential", "--transport", "nbd").last
    assert (back["restored_vm"], back["disks"][0]["mode"]) == (vm["id"], "differential")
    assert lab.content("web-01", disk) == frozen

    assert site.call("cleanup").last["count"] == 0
    assert lab.left() == {}


def test_secrets_come_from_files_commands_and_descriptors(lab: Laboratory, site: Site) -> None:
    told = lab.told
    site.configure(f'{{ user = "{told["user"]}", password = {{ command = "cat {site.secret}" }} }}')
    assert site.call("vms").status == 0
    reader, writer = os.pipe()
    os.write(writer, told["secret_key"].encode())
    os.close(writer)
    site.configure(f'{{ access_key = "{told["access_key"]}", secret_key = {{ fd = {reader} }} }}')
    process = start("vms", "--config", site.file, pass_fds=[reader])
    os.close(reader)
    ended = finish(process)
    assert ended.status == 0, ended.err
    assert "web-01" in ended.out


def test_secrets_that_are_wrong_or_open_to_others(lab: Laboratory, site: Site) -> None:
    site.keep("s3cret-canary")
    ended = site.call("vms", "-vv")
    assert (ended.status, ended.last["code"]) == (13, "authentication")
    assert "s3cret-canary" not in ended.out + ended.err
    site.secret.chmod(0o644)
    ended = site.call("vms", "-vv")
    assert (ended.status, ended.last["code"]) == (2, "configuration")
    assert "chmod 600" in ended.err
    site.configure(f'{{ user = "{lab.told["user"]}", password = "s3cret-canary" }}')
    ended = site.call("vms", "-vv")
    assert (ended.status, ended.last["code"]) == (2, "configuration")
    assert "s3cret-canary" not in ended.out + ended.err
    assert "platforms.prod.credentials.password" in ended.err
