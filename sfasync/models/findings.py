"""What looking through a repository finds: differences, damage, repairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


class Difference(NamedTuple):
    """A range of a disk that two backups have differently.

    Attributes:
        disk: The disk's id.
        kind: ``changed``; ``added`` where only the second backup has it; ``removed`` where only the first one has.
        offset: First byte.
        length: Bytes, more than 0.
    """

    disk: str
    kind: Literal["changed", "added", "removed"]
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that verify found damaged or missing.

    Attributes:
        object: Name of the object within the repository.
        problem: What is wrong, in one line.
        backups: Ids of the backups it touches, as far as known.
    """

    object: str
    problem: str
    backups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """What verify found. No problems means that what was asked for is whole.

    Attributes:
        backups: Backups checked.
        objects: Objects of the repository read.
        blobs: Stored blobs found in place (structure) or read and compared with their digests (data).
        bytes_read: Bytes of the repository read.
        data: Whether bytes were read and compared with their digests, or the structure was looked at only.
        problems: Damage that is new, or keeps the backups that it names from being restored.
        known: Objects that are damaged still but in quarantine, one each: an earlier verification told of them, and
            what is spoiled has a good copy elsewhere or is needed by no backup. What was not read counts as bad still.
        leftovers: Files of interrupted writers and others that belong to no backup; no error.
        quarantined: Copies of blobs that were in quarantine, of known and of other objects.
        all_read_since: When the longest unread of the packs concerned was last read whole, in seconds since the epoch,
            this verification included; None if one never was.
        warnings: What else went wrong, one line each: that the result could not be remembered.
        seconds: Wall seconds.
    """

    backups: int
    objects: int
    blobs: int
    bytes_read: int
    data: bool
    problems: tuple[Problem, ...]
    known: tuple[Problem, ...]
    leftovers: tuple[str, ...]
    quarantined: int
    all_read_since: float | None
    warnings: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairAction:
    """Something that repair did, or would do.

    Attributes:
        object: Name of the object within the repository.
        action: `remove` what a killed writer left; `index` a pack; `replace` an index object; put in `quarantine` what
            is bad, or an annotation that is missing; `release` what is good again; take the place of a lost manifest
            with a `void`.
        reason: Why, in one line.
    """

    object: str
    action: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairResult:
    """A finished repair.

    Attributes:
        actions: What was done, in order; what would be done, in a dry run.
        problems: What is damaged after that, with the backups it touches; in a dry run, what is damaged now.
        dry_run: Whether nothing was done.
        seconds: Wall seconds.
    """

    actions: tuple[RepairAction, ...]
    problems: tuple[Problem, ...]
    dry_run: bool
    seconds: float
