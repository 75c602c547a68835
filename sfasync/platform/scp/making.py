"""Makes things on the platform, each written down before it is asked for, and after."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ...errors import AuthenticationError, BusyError, PlatformError, SfasyncError
from .api import Created, ScpApi
from .journal import Entry, Run


async def make(api: ScpApi, run: Run, entry: Entry, create: Callable[[], Awaitable[Created]]) -> None:
    """Carry out what is intended, and wait until it is done; the entry has the id then, if the platform tells it.

    Cancelling leaves open whether it is made; the entry is in the run.

    Args:
        api: The platform.
        run: Has the entry.
        entry: What is intended.
        create: Asks for it.

    Raises:
        SfasyncError: It is not made, or not as it should be.
    """
    try:
        created = await create()
    except SfasyncError as error:
        if never_made(error):
            await run.gone(entry)
        raise
    await run.made(entry, created.id or "", created.task_id)
    await api.wait(created.task_id)
    entry.task = ""


def never_made(error: SfasyncError) -> bool:
    """Whether an error of a creating call says that nothing was made."""
    if isinstance(error, PlatformError):
        # 429 also means that the token is known, and the rest of the request another one.
        return error.status is not None and 400 <= error.status < 500 and error.status != 429
    return isinstance(error, BusyError | AuthenticationError)
