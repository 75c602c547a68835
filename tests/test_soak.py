"""A few cycles of the soak, so that it works when it is wanted."""

from .soak import soak
from .support.servers import require


def test_a_few_cycles() -> None:
    for program in ("nbdkit", "qemu-nbd", "nbd-server"):
        require(program)
    assert soak(60, seed=2, cycles=4)["cycles"] == 4
