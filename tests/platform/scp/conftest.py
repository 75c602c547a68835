from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .support import FakePlatform, fake_platform


@pytest.fixture
async def platform(certificates: Path) -> AsyncIterator[FakePlatform]:
    async with fake_platform(certificates) as fake:
        yield fake
