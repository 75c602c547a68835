"""`sfasync init`: a new repository."""

from __future__ import annotations

import click

from .. import options
from ..output import Output
from ..runner import perform


@click.command("init")
@options.repository
@options.common
def command(output: Output, repository: str) -> int:
    """Make a new, empty repository."""
    return perform(output, lambda: _init(output, repository), moves=False)


async def _init(output: Output, location: str) -> int:
    from ...store.repository import Repository

    async with await Repository.init(location) as repository:
        output.remark(f"made repository {repository.id} in {location}")
        output.result("init", {"id": repository.id, "repository": location, "chunk_size": repository.chunk_size})
    return 0
