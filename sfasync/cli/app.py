"""The `sfasync` command: which commands there are, and how a call of one ends."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

import click

from .._version import VERSION
from ..errors import StorageError, system_limit
from .output import Output

_COMMANDS = (
    "init",
    "backup",
    "restore",
    "list",
    "show",
    "tag",
    "forget",
    "export",
    "diff",
    "verify",
    "repair",
    "copy",
    "info",
    "vms",
    "cleanup",
    "lab",
    "demo",
    "bench",
)
_COMPLETION = "_SFASYNC_COMPLETE"


class _Commands(click.Group):
    """Commands that live in modules of their own, each loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = import_module(f".commands.{cmd_name}", __package__).command
        assert isinstance(command, click.Command), "each module of a command has `command`"
        return command


@click.group(
    cls=_Commands,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each command has its own --help. Shell completion: see the tutorial.",
)
@click.version_option(VERSION, message="sfasync %(version)s")
def app() -> None:
    """Back up the disks of virtual machines over NBD, and restore them."""


def run(arguments: Sequence[str]) -> int:
    """The exit code of a call with these arguments.

    Whatever happens is told on stdout and stderr; nothing is raised.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold disk contents and keys
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that the terminal cannot show must not end a backup
            stream.reconfigure(errors="backslashreplace")
    output = Output()
    try:
        if instruction := os.environ.get(_COMPLETION):
            return _complete(instruction)
        with app.make_context("sfasync", list(arguments), obj=output) as context:
            status: int = app.invoke(context)
            return status
    except click.exceptions.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        return 0  # only help and completion are printed outside of a command's own work, and nobody reads on
    except BaseException as error:  # noqa: BLE001 - every way a command can end is told in one line
        if isinstance(error, OSError) and system_limit(error) is None:  # likewise
            error = StorageError(f"cannot write to standard output: {error.strerror}")
        output.json |= "--json" in arguments  # the error may have come before the options were looked at
        output.verbosity = max(output.verbosity, 2 * arguments.count("-vv"))
        return output.failure(error)


def _complete(instruction: str) -> int:
    from click.shell_completion import shell_complete

    return shell_complete(app, {}, "sfasync", _COMPLETION, instruction)
