"""What a verification found, collected by its threads."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from ..models import Problem

MOST_PROBLEMS = 10_000
"""More problems are counted, not told: a list of every blob of a lost repository helps nobody."""


@dataclass(slots=True)
class _Found:
    problem: str
    backups: set[str] = field(default_factory=set)


class Findings:
    """Damage, by object and detail, with the backups it touches. Any thread may add.

    Attributes:
        objects, blobs, bytes_read: As of `VerifyResult`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[tuple[str, int | None], _Found] = {}
        self._known: dict[str, str] = {}
        self._known_unneeded: dict[str, str] = {}
        self._untold = 0
        self.objects = 0
        self.blobs = 0
        self.bytes_read = 0

    def count(self, *, objects: int = 0, blobs: int = 0, bytes_read: int = 0) -> None:
        """Add to what was looked at."""
        with self._lock:
            self.objects += objects
            self.blobs += blobs
            self.bytes_read += bytes_read

    def add(self, key: str, problem: str, *, detail: int | None = None) -> None:
        """Record damage.

        Args:
            key: The object concerned.
            problem: What is wrong, in one line.
            detail: Which part of the object; None for the object as such. Each has one problem, the first.
        """
        with self._lock:
            self._add(key, detail, problem)

    def know(self, key: str, problem: str, *, needed: bool = True) -> None:
        """Note damage that is in quarantine: it is no problem but where some backup needs it.

        Args:
            key: The object concerned.
            problem: What is wrong, in one line.
            needed: Whether who needs the object needs what is bad of it.
        """
        with self._lock:
            (self._known if needed else self._known_unneeded).setdefault(key, problem)

    def blame(self, key: str, backup: str, *, detail: int | None = None, problem: str = "") -> None:
        """Record that a backup needs what is damaged.

        Args:
            key, detail: As of `add`.
            backup: Its id.
            problem: What is wrong, if that was not told before: because it is in quarantine.
        """
        with self._lock:
            found = self._found.get((key, detail)) or self._found.get((key, None))
            if found is None and key in self._known:
                found = self._add(key, None, self._known[key])
            elif found is None and problem:
                found = self._add(key, detail, problem)
            if found is not None:
                found.backups.add(backup)

    def _add(self, key: str, detail: int | None, problem: str) -> _Found | None:
        if len(self._found) >= MOST_PROBLEMS:
            self._untold += 1
            return None
        return self._found.setdefault((key, detail), _Found(problem))

    def problems(self) -> tuple[Problem, ...]:
        """Everything found, by object."""
        with self._lock:
            told = [
                Problem(object=key, problem=found.problem, backups=tuple(sorted(found.backups)))
                for (key, _), found in sorted(self._found.items(), key=_order)
            ]
            if self._untold:
                told.append(Problem(object="", problem=f"{self._untold} more problems are not listed"))
            return tuple(told)

    def known(self) -> tuple[Problem, ...]:
        """The objects of which only that is bad which is in quarantine, and which no backup needs."""
        with self._lock:
            told = {key for key, _ in self._found}
            known = self._known_unneeded | self._known
            keys = sorted(known.keys() - told)
            named = [Problem(object=key, problem=known[key]) for key in keys[:MOST_PROBLEMS]]
            if len(keys) > len(named):
                named.append(Problem(object="", problem=f"{len(keys) - len(named)} more objects are not listed"))
            return tuple(named)


def _order(item: tuple[tuple[str, int | None], _Found]) -> tuple[str, int]:
    (key, detail), _ = item
    return key, -1 if detail is None else detail
