"""The whole of it against the lab: what is frozen, what is known to have changed, and that nothing is left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from sfasync.platform.scp.platform import ScpPlatform
from sfasync.units import MiB

from ...contracts.platform import PlatformCase, PlatformContract
from ...support.laboratory import Laboratory, laboratory

SIZES = {"ide0": 4 * MiB, "ide1": 3 * MiB}


@pytest.fixture(scope="module")
def lab() -> Iterator[Laboratory]:
    with laboratory() as running:
        yield running


@pytest.fixture
async def platform(lab: Laboratory) -> AsyncIterator[ScpPlatform]:
    async with ScpPlatform(lab.settings(), directory=lab.directory / "journal") as platform:
        yield platform
    assert lab.left() == {}


class TestContract(PlatformContract):
    @pytest.fixture
    async def platform_case(self, lab: Laboratory, platform: ScpPlatform) -> PlatformCase:
        if "contract" not in lab.ask("vms"):
            lab.add("contract", list(SIZES.values()))
        lab.switch("contract", running=False)
        [vm] = [vm for vm in await platform.vms() if vm.name == "contract"]
        return PlatformCase(platform=platform, vm=vm.id, sizes=SIZES, tracks=True)
