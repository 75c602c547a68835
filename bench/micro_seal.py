"""What one chunk costs on the CPU: zero test, digest, seal with its check, unseal: ``python -m bench.micro_seal``."""

from __future__ import annotations

from functools import partial

from sfasync.store.seal import seal, unseal
from sfasync.store.tree import content_digest, is_zero

from .data import MIB, mixed, noise, prose
from .timing import report

_COUNT = 32


def main() -> None:
    """Measure chunks of 1 MiB."""
    report("zero test", partial(is_zero, memoryview(bytes(MIB))), count=_COUNT, size=MIB)
    for name, make in (("noise", noise), ("prose", prose), ("mixed", mixed)):
        chunk = make(MIB)
        report(f"digest {name}", partial(content_digest, chunk), count=_COUNT, size=MIB)
        report(f"seal {name}", partial(seal, chunk), count=_COUNT, size=MIB)
        report(
            f"unseal {name}", partial(unseal, bytes(seal(chunk)), memoryview(bytearray(MIB))), count=_COUNT, size=MIB
        )


if __name__ == "__main__":
    main()
