"""Runs the `sfasync` command with a fault at the N-th call of one function of the operating system, over all threads.

    python -m tests.support.faulty FUNCTION FAULT N MARK ARGUMENT...

`FUNCTION` is the name of one in `os`, or `flock`; of `open`, only calls that may write are counted. `FAULT` is
``before`` or ``after`` (the process is killed before or after the call), ``stop`` (it is stopped before it), ``hang``
(this call and those after it do not return), ``cut-log`` or ``cut-all`` (before it, the power of the repository's file
system is cut, as of `power.cut`, and the process killed) or the name of an errno (the call fails). The file `MARK` is
created when the call is reached. strace can do the like, but counts the calls of each thread apart.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any, NoReturn

from .power import cut

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def inject(function: str, fault: str, when: int, mark: str) -> None:
    """Replace the function by one that has the fault."""
    module: ModuleType = fcntl if function == "flock" else os
    original: Callable[..., Any] = getattr(module, function)
    create: Callable[..., int] = os.open
    calls = itertools.count(1)  # its next value is taken in one step, whatever the thread

    def faulty(*args: Any, **options: Any) -> Any:
        if function == "open" and not args[1] & _WRITING:
            return original(*args, **options)
        number = next(calls)
        if number < when or (number > when and fault != "hang"):
            return original(*args, **options)
        create(mark, os.O_CREAT | os.O_WRONLY, 0o600)
        if fault == "hang":
            select.select([], [], [])
        if fault.startswith("cut-"):
            cut(os.environ["SFASYNC_REPOSITORY"], fault.removeprefix("cut-"))
            _die()
        if fault == "before":
            _die()
        if fault == "stop":
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # to this thread: it must not get any farther
            return original(*args, **options)
        if fault == "after":
            with suppress(OSError):
                original(*args, **options)
            _die()
        code = getattr(errno, fault)
        raise OSError(code, os.strerror(code))

    setattr(module, function, faulty)


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def main() -> None:
    function, fault, when, mark, *arguments = sys.argv[1:]
    sys.argv = ["sfasync", *arguments]
    from sfasync.__main__ import main

    inject(function, fault, int(when), mark)
    main()


if __name__ == "__main__":
    main()
