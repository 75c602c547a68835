"""Feeds damaged conversations to the protocol: ``python -m fuzz --inputs 200000 --seed 1``."""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter

from .target import feed, mutated


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=200_000, help="how many conversations")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="of the first one")
    arguments = parser.parse_args()
    outcomes: Counter[str] = Counter()
    findings = 0
    start = time.monotonic()
    for number in range(arguments.seed, arguments.seed + arguments.inputs):
        chance = random.Random(number)
        try:
            outcomes[feed(*mutated(chance), chance)] += 1
        except Exception:  # noqa: BLE001 - this is what is looked for
            findings += 1
            traceback.print_exc()
            print(f"found with: python -m fuzz --inputs 1 --seed {number}", file=sys.stderr)
    seconds = time.monotonic() - start
    told = ", ".join(f"{count} {name}" for name, count in outcomes.most_common())
    print(
        f"{arguments.inputs} conversations from seed {arguments.seed} in {seconds:.0f} s: {told}; {findings} findings"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
