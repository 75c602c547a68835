"""Runs the `sfasync` command and writes down, as it ends, its seconds of the processor and the most memory it had.

    python -m tests.support.peak FILE ARGUMENT...

Memory is the process' own, in bytes; what wait4(2) tells begins with that of whoever started it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import NoReturn


def main() -> None:
    file, *arguments = sys.argv[1:]
    sys.argv = ["sfasync", *arguments]
    end = os._exit

    def tell_and_end(status: int) -> NoReturn:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None, "proc(5)"
        Path(file).write_text(f"{time.process_time()} {int(found[1]) * 1024}")
        end(status)

    os._exit = tell_and_end
    from sfasync.__main__ import main

    main()


if __name__ == "__main__":
    main()
