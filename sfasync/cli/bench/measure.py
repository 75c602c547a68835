"""Runs one command and prints what it took, as one JSON object.

A program of its own, without imports to speak of: the peak memory that the kernel reports for a child starts at that of
the process it was forked from (about 10 MiB here), and says nothing below it.

    python -S measure.py LOG COMMAND [ARGUMENT...]
"""

import os
import sys
import time


def main() -> None:
    """Run the command with its output going to LOG; seconds, and the resources of it and all its children."""
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    actions = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    began = time.monotonic()
    pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, file_actions=actions)
    _, status, used = os.wait4(pid, 0)
    wall = time.monotonic() - began
    print(
        f'{{"exit": {os.waitstatus_to_exitcode(status)}, "wall": {wall:.4f}, "user": {used.ru_utime:.4f}, '
        f'"sys": {used.ru_stime:.4f}, "rss": {used.ru_maxrss * 1024}}}'
    )


if __name__ == "__main__":
    main()
