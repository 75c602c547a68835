"""Who asks, and whom: addresses of the platform, credentials, and who knows where disks are served."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..credentials import AccessKey, Password
from ..errors import ArgumentError, UsageError
from ..interfaces import EndpointResolver

if TYPE_CHECKING:
    from ..platform.scp.settings import ScpSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How the platform is reached.

    Attributes:
        scp: Host, or URL without credentials, of the management plane; None where it plays no part.
        hci: The same of the cluster that has the disks.
        credentials: Ours, on both.
        settings: What else is to be known of the management plane: whom to believe, where disks are served. Its URL
            stands for `scp`.
        resolver: Who tells where disks are served. A `TableResolver` needs neither addresses nor credentials. None to
            ask the management plane, which leases the VM for as long as there is a connection.
    """

    scp: str | None = None
    hci: str | None = None
    credentials: AccessKey | Password | None = None
    settings: ScpSettings | None = None
    resolver: EndpointResolver | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.settings is not None and self.scp is not None:
            raise ArgumentError("the settings name the management plane already; leave scp out")
        if self.settings is not None:
            object.__setattr__(self, "scp", self.settings.origin)
        for name in ("scp", "hci"):
            address = getattr(self, name)
            if address is not None and (not address or "@" in address):
                raise ArgumentError(
                    f"{name} is the address of a host, and nothing secret; credentials go by themselves"
                )

    def endpoints(self) -> AbstractAsyncContextManager[EndpointResolver]:
        """Who tells where disks are served, for as long as the context is open; nobody is asked before a disk is.

        Raises:
            UsageError: Nobody does; or the platform's settings lack something.
        """
        if self.resolver is not None:
            return nullcontext(self.resolver)
        if self.scp is None:
            raise UsageError(
                "nobody tells where the disks are served; name the platform, Access(scp=..., credentials=...), or give "
                "a resolver: Access(resolver=TableResolver(...))"
            )
        from ..platform.scp.leasing import LeasingResolver  # those with a table need no HTTP
        from ..platform.scp.settings import ScpSettings

        settings = self.settings or ScpSettings(url=self.scp if "://" in self.scp else f"https://{self.scp}")
        return LeasingResolver(replace(settings, credentials=self.credentials or settings.credentials))
