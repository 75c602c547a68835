"""The QEMU platform keeps the contract, on a qemu-storage-daemon and on a whole QEMU."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from sfasync.platform.qemu.platform import QemuPlatform
from sfasync.units import MiB
from tests.contracts.platform import PlatformCase, PlatformContract
from tests.support.qemu import Machine, daemon, system

SIZES = {"vda": 4 * MiB, "vdb": 2 * MiB}


@pytest.fixture(scope="module")
def served() -> Iterator[Machine]:
    with daemon(SIZES) as machine:
        yield machine


@pytest.fixture(scope="module")
def emulated() -> Iterator[Machine]:
    with system(SIZES) as machine:
        yield machine


class TestDaemon(PlatformContract):
    @pytest.fixture
    async def platform_case(self, served: Machine) -> AsyncIterator[PlatformCase]:
        async with QemuPlatform(served.platform_settings()) as platform:
            yield PlatformCase(platform, "web-01", SIZES, tracks=True)


class TestSystem(PlatformContract):
    @pytest.fixture
    async def platform_case(self, emulated: Machine) -> AsyncIterator[PlatformCase]:
        async with QemuPlatform(emulated.platform_settings()) as platform:
            yield PlatformCase(platform, "web-01", SIZES, tracks=True)
