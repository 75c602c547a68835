"""The `sfasync` command as its users have it: a process with arguments, an exit code and two streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA = Path(__file__).parents[2] / "docs" / "json-schema.json"

COMMAND = (sys.executable, "-m", "sfasync")


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended.

    Attributes:
        status: Its exit code.
        out: What it wrote to stdout.
        err: What it wrote to stderr.
    """

    status: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The objects of a command run with --json, each checked against the published schema."""
        return [checked(line) for line in self.out.splitlines()]

    @property
    def last(self) -> dict[str, Any]:
        """The result or the error that a command run with --json ends with."""
        last = self.events[-1]
        assert last["event"] in ("result", "error"), "the last line is the result or the error"
        assert (self.status in (0, 3)) == last["ok"]  # 3: with a loss that was allowed
        if last["event"] == "error":
            assert last["exit"] == self.status
            assert last["message"] in self.err
        return last


def checked(line: str) -> dict[str, Any]:
    """A line of --json, which must be as the schema says."""
    event: dict[str, Any] = json.loads(line)
    validator().validate(event)
    return event


@cache
def validator() -> Draft202012Validator:
    """The published schema, made to refuse fields that it does not describe."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    schema["unevaluatedProperties"] = False
    schema["$defs"]["disk"]["unevaluatedProperties"] = False
    return Draft202012Validator(schema)


def start(*args: str | Path, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start the command; its streams are pipes unless `options` say otherwise."""
    return subprocess.Popen(
        [*COMMAND, *map(str, args)],
        **{
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "env": {**os.environ, **(env or {})},
            **options,
        },
    )


def finish(process: subprocess.Popen[str], timeout: float = 60) -> Ended:
    """Wait for the end of a command that was started; one that does not end is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return Ended(process.returncode, out, err)


def sfasync(*args: str | Path, env: Mapping[str, str] | None = None, timeout: float = 60) -> Ended:
    """Run the command to its end."""
    return finish(start(*args, env=env), timeout)
