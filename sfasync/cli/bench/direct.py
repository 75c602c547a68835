"""What the disk itself takes: writes a new file past the page cache in four threads and syncs it.

python -m sfasync.cli.bench.direct FILE SIZE
"""

from __future__ import annotations

import mmap
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from ...files import write_at
from ...units import MiB

_THREADS = 4


def main() -> None:
    """Write the file."""
    path, size = sys.argv[1], int(sys.argv[2])
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
    os.posix_fallocate(fd, 0, size)
    memory = mmap.mmap(-1, MiB)
    memory.write(os.urandom(MiB))

    def write(offset: int) -> None:
        with memoryview(memory) as view, view[: size - offset] as piece:
            write_at(fd, offset, piece, direct=fd)

    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(write, range(0, size, MiB)):
            pass
    os.fsync(fd)
    os.close(fd)


if __name__ == "__main__":
    main()
