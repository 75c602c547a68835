from __future__ import annotations

from collections.abc import Iterator

import pytest

from sfasync import vddk

from .support import journal


@pytest.fixture
def initialised() -> Iterator[None]:
    """From `init` to `exit`; everything must be disconnected, and nothing left in the journal."""
    vddk.init()
    try:
        yield
    except BaseException:
        vddk._process = None
        raise
    try:
        vddk.exit()
    finally:
        vddk._process = None  # a test that failed must not fail the next ones
    assert journal() == []
