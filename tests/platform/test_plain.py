"""The plain platform, and the platform in memory that other tests rely on, keep the contract."""

import pytest

from sfasync import UsageError, parse_uri
from sfasync.platform.plain import PlainPlatform
from tests.contracts.platform import PlatformCase, PlatformContract
from tests.support.memory import MemoryDisk
from tests.support.tracking import TrackingPlatform

SIZES = {"vda": 8192, "vdb": 4096}


class TestPlain(PlatformContract):
    @pytest.fixture
    async def platform_case(self) -> PlatformCase:
        disks = {name: MemoryDisk(bytes(size)) for name, size in SIZES.items()}
        return PlatformCase(PlainPlatform(disks, disks), "web-01", SIZES, tracks=False)


class TestTracking(PlatformContract):
    @pytest.fixture
    async def platform_case(self) -> PlatformCase:
        platform = TrackingPlatform({name: bytes(size) for name, size in SIZES.items()})
        return PlatformCase(platform, "web-01", SIZES, tracks=True)


async def test_addresses_are_handed_on_as_they_are() -> None:
    address = parse_uri("nbd://localhost/disk")
    platform = PlainPlatform({"vda": address}, {"vda": address})
    async with platform.snapshot("web-01") as view:
        assert view.disks[0].address is address
        assert view.disks[0].reason == "no-cbt"
    async with platform.restore("web-01", config=None, files={}, disks={"vda": 1}) as target:
        assert target.disks["vda"].address is address
    with pytest.raises(UsageError, match="no address given for disk 'vdb'"):
        async with platform.restore("web-01", config=None, files={}, disks={"vdb": 1}):
            pytest.fail("there is no such disk")
