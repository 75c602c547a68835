"""Who asks, and whom: addresses of the platform, credentials, and who knows where disks are served."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..credentials import AccessKey, Password
from ..errors import ArgumentError, UsageError
from ..interfaces import EndpointResolver


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How the platform is reached.

    Attributes:
        scp: Host, or URL without credentials, of the management plane; None where it plays no part.
        hci: The same of the cluster that has the disks.
        credentials: Ours, on both.
        resolver: Who tells where disks are served. A `TableResolver` needs neither addresses nor credentials.
    """

    scp: str | None = None
    hci: str | None = None
    credentials: AccessKey | Password | None = None
    resolver: EndpointResolver | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("scp", "hci"):
            address = getattr(self, name)
            if address is not None and (not address or "@" in address):
                raise ArgumentError(
                    f"{name} is the address of a host, and nothing secret; credentials go by themselves"
                )

    def endpoints(self) -> EndpointResolver:
        """Who tells where disks are served.

        Raises:
            UsageError: Nobody does.
        """
        if self.resolver is None:
            raise UsageError(
                "nobody tells where the disks are served; give a resolver: Access(resolver=TableResolver(...))"
            )
        return self.resolver
