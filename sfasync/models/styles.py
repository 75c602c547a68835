"""The ways there are to speak with a server, as literals."""

from __future__ import annotations

from typing import Literal

TlsStyle = Literal["starttls", "direct"]
"""How TLS begins: with the NBD option of that name, or with the first byte of the connection."""

TransportMode = Literal["nbd", "nbdssl"]
"""SFVDDK's words for plain NBD and NBD over TLS."""
