"""The `sfasync` command; `python -m sfasync` is the same."""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from ._version import VERSION

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line in `sys.argv` and end the process with its exit code.

    `--version` is answered before anything is loaded.
    """
    gc.disable()  # what importing makes is no garbage, and looking costs 8 ms; `cli.runner` goes on with it
    _open_standard_streams()
    _take_signals()
    _leave(_print_version() if sys.argv[1:2] == ["--version"] else _run())


def _run() -> int:
    from .cli.app import run

    return run(sys.argv[1:])


def _print_version() -> int:
    try:
        print("sfasync", VERSION, flush=True)
    except BrokenPipeError:
        pass  # nobody reads it
    except OSError as error:
        sys.stderr.write(f"sfasync: cannot write to standard output: {error.strerror}\n")
        return 21
    return 0


def _open_standard_streams() -> None:
    """Put /dev/null where the caller closed a standard stream: a pack opened later must not become descriptor 1.

    Standard output is one that cannot be written, which is an error for who has something to say there.
    """
    for name, mode, flags in (
        ("stdin", "r", os.O_RDONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            nothing = open(os.open(os.devnull, flags), mode)  # noqa: SIM115 - it stays open as long as the process
            setattr(sys, name, nothing)


def _take_signals() -> None:
    """End in good order when a signal comes while modules are being loaded; later, signals are the runner's."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, or a shell without job control
            signal.signal(number, _interrupted)


def _interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    """What `Output.failure` says of a signal, with nothing loaded: it may come in the middle of an import."""
    status, message = 128 + number, f"interrupted by {signal.Signals(number).name}"
    with suppress(OSError):
        if "--json" in sys.argv:
            line = f'{{"event":"error","ok":false,"code":"interrupted","exit":{status},"message":"{message}"}}\n'
            os.write(1, line.encode())
        os.write(2, f"sfasync: {message}\n".encode())
    os._exit(status)


def _leave(status: int) -> NoReturn:
    """End without waiting for threads: one may be stuck in an fsync or a name look-up, and the job is over."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # what matters was flushed, and that checked, when it was written
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
