"""Findings are told once, by object, with everybody they touch."""

from __future__ import annotations

import pytest

from sfasync.models import Problem
from sfasync.store import findings as module
from sfasync.store.findings import Findings


def test_problems_are_by_object_and_name_the_backups() -> None:
    findings = Findings()
    findings.add("b", "blob 2", detail=2)
    findings.add("b", "blob 1", detail=1)
    findings.add("b", "blob 1 again", detail=1)
    findings.add("b", "as such")
    findings.add("a", "gone")
    findings.blame("b", "second", detail=1)
    findings.blame("b", "first", detail=1)
    findings.blame("b", "third", detail=99)
    findings.blame("c", "nobody")
    assert findings.problems() == (
        Problem(object="a", problem="gone"),
        Problem(object="b", problem="as such", backups=("third",)),
        Problem(object="b", problem="blob 1", backups=("first", "second")),
        Problem(object="b", problem="blob 2"),
    )


def test_too_many_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PROBLEMS", 10)
    findings = Findings()
    for number in range(25):
        findings.add(f"object {number:02d}", "gone")
    problems = findings.problems()
    assert len(problems) == 11
    assert problems[-1].problem == "15 more problems are not listed"


def test_known_damage_is_a_problem_for_those_who_need_it() -> None:
    findings = Findings()
    findings.know("a", "bad")
    findings.know("b", "bad")
    findings.know("c", "blob 1", needed=False)
    findings.know("d", "blob 1", needed=False)
    findings.add("d", "blob 2", detail=2)
    findings.blame("b", "first", detail=7)
    findings.blame("c", "second", detail=1, problem="there is no good copy")
    findings.know("e", "blob 1", needed=False)
    findings.blame("e", "nobody", detail=2)
    assert findings.problems() == (
        Problem(object="b", problem="bad", backups=("first",)),
        Problem(object="c", problem="there is no good copy", backups=("second",)),
        Problem(object="d", problem="blob 2"),
    )
    assert findings.known() == (Problem(object="a", problem="bad"), Problem(object="e", problem="blob 1"))


def test_too_much_known_damage_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PROBLEMS", 10)
    findings = Findings()
    for number in range(25):
        findings.know(f"object {number:02d}", "gone")
    known = findings.known()
    assert len(known) == 11
    assert known[-1].problem == "15 more objects are not listed"


def test_counts() -> None:
    findings = Findings()
    findings.count(objects=1, bytes_read=10)
    findings.count(blobs=2, bytes_read=5)
    assert (findings.objects, findings.blobs, findings.bytes_read) == (1, 2, 15)
