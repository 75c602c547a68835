"""The `sfasync` command; `python -m sfasync` is the same."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

from ._version import VERSION

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line in `sys.argv` and end the process with its exit code.

    `--version` is answered before anything is loaded.
    """
    _open_standard_streams()
    try:
        status = _print_version() if sys.argv[1:2] == ["--version"] else _run()
    except KeyboardInterrupt:  # while modules are being loaded; later, signals are the runner's
        status = 130
    _leave(status)


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
    """Put /dev/null where the caller closed a standard stream: a pack opened later must not become descriptor 1."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it stays open as long as the process


def _leave(status: int) -> NoReturn:
    """End without waiting for threads: one may be stuck in an fsync or a name look-up, and the job is over."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # what matters was flushed, and that checked, when it was written
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
