"""What the library logs, as lines of the command's stderr."""

from __future__ import annotations

import logging

from ..errors import one_line
from .output import Output

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def log_to(output: Output) -> None:
    """Show records from the level that -v asks for; with --quiet errors only.

    What asyncio logs comes with tracebacks and is for developers: only with -vv.
    """
    debug = output.verbosity >= 2
    level = logging.ERROR if output.quiet and not output.verbosity else _LEVELS[min(output.verbosity, 2)]
    for name, threshold in (("sfasync", level), ("asyncio", level if debug else logging.CRITICAL + 1)):
        logger = logging.getLogger(name)
        logger.handlers = [_Lines(output)]
        logger.propagate = False
        logger.setLevel(threshold)


class _Lines(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        text = one_line(record.getMessage())
        if record.exc_info and self._output.verbosity >= 2:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self._output.note(f"{record.levelname.lower()}: {text}")
