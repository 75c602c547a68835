"""How the lab is reached, for clients: as settings, and as the configuration file that `sfasync` reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..credentials import AccessKey, Credentials, Password
from ..models import TlsStyle
from ..platform.scp.settings import NbdSettings, ScpSettings, ScpTimeouts
from .leases import EXPORT
from .openapi.accounts import Accounts

_POLL_SECONDS = 0.1  # the lab's tasks end at once


def settings(
    *, url: str, ca_file: Path, credentials: Credentials, port: int, tls_style: TlsStyle = "starttls"
) -> ScpSettings:
    """What a client needs to know.

    Args:
        url: Where the interface is.
        ca_file: The authority that vouches for it.
        credentials: Who calls.
        port: Where the data service is.
        tls_style: How TLS begins there.
    """
    # A platform does not have the address of this machine, unless somebody says so.
    nbd = NbdSettings(port=port, export=EXPORT, tls_style=tls_style, networks=("127.0.0.0/8",))
    return ScpSettings(
        url=url,
        ca_file=ca_file,
        credentials=credentials,
        nbd=nbd,
        enable_cbt=True,
        timeouts=ScpTimeouts(poll=_POLL_SECONDS),
    )


def password_of(accounts: Accounts) -> Password:
    """The user, by its password."""
    return Password(accounts.user, accounts.password)


def access_key_of(accounts: Accounts) -> AccessKey:
    """The user, by its pair of keys."""
    return AccessKey(accounts.access_key, accounts.secret_key)


def write_configuration(path: Path, told: ScpSettings, accounts: Accounts) -> None:
    """Write the configuration file of a platform called ``lab``, and beside it the files with its secrets.

    Raises:
        OSError: They cannot be written.
    """
    _write(path.with_name("password"), accounts.password)
    _write(path.with_name("secret-key"), accounts.secret_key)
    lines = (
        "# Written by `sfasync lab up`, anew each time.",
        "[platforms.lab]",
        'type = "scp"',
        f"url = {_quoted(told.url)}",
        f"ca_file = {_quoted(str(told.ca_file))}",
        f"enable_cbt = {str(told.enable_cbt).lower()}",
        f'credentials = {{ user = {_quoted(accounts.user)}, password = {{ file = "password" }} }}',
        f'# or {{ access_key = {_quoted(accounts.access_key)}, secret_key = {{ file = "secret-key" }} }}',
        f"timeouts = {{ poll = {told.timeouts.poll} }}",
        "",
        "[platforms.lab.nbd]",
        f"port = {told.nbd.port}",
        f"export = {_quoted(told.nbd.export)}",
        f"tls_style = {_quoted(told.nbd.tls_style)}",
        f"networks = [{', '.join(map(_quoted, told.nbd.networks))}]",
        "",
    )
    _write(path, "\n".join(lines))


def _quoted(text: str) -> str:
    """A TOML string; JSON's rules for one are among TOML's."""
    return json.dumps(text)


def _write(path: Path, text: str) -> None:
    """A file for its owner alone, which replaces one that is there."""
    hidden = path.with_name(f".{path.name}.new")
    with open(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
    os.replace(hidden, path)
