"""What can go wrong, in the words of this domain. No HTTP and no Label Studio in here.

The message of every error is meant for a person: what was wrong, where, and what to do.
"""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path


class ScanqueueError(Exception):
    """Any failure that scanqueue can explain."""


class BadSetting(ScanqueueError):
    """A setting has a value that cannot be used, or a name that does not exist."""


class NotSegmentable(ScanqueueError):
    """The project's label config has nothing that a mask could be drawn with."""


class UnreadableScan(ScanqueueError):
    """The pixels of one scan cannot be had: missing, truncated, too large, not an image."""


class UnreadableMask(ScanqueueError):
    """One annotation holds no usable mask: wrong sizes, broken run lengths, unknown label."""


class UnreadableFile(ScanqueueError):
    """A file on this machine is broken, truncated, too large, or holds what we cannot read.

    path  which one. It may name a patient: show it to the person at the terminal, never log it
    what  what was wrong and what to do, without the path and without anything of the header
    """

    def __init__(self, path: Path | str, what: str) -> None:
        super().__init__(path, what)  # both, so that it comes whole out of another process
        self.path = Path(path)
        self.what = what

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


class CannotCut(ScanqueueError, ValueError):
    """A volume has no such plane: its slices are not evenly spaced, or nobody knows how it lies in the patient."""


class BadWindow(ScanqueueError, ValueError):
    """A window that no picture can be shown with, or a preset that the header does not have."""


class CannotDeliver(ScanqueueError):
    """Pictures cannot be put where Label Studio would serve them."""


class CannotExport(ScanqueueError):
    """Labels cannot be written in the format that was asked for: wrong shape, or a source of another kind."""


class NotKnown(ScanqueueError):
    """There is no such project, scan or model here."""


class Overloaded(ScanqueueError):
    """Too much of this kind is asked for at once. Trying again helps."""


class WeightsMissing(ScanqueueError):
    """Pretrained weights are neither on disk nor downloadable."""


class BrokenWeights(WeightsMissing):
    """A file of weights is there and is none, or not all of it. `cut`: the end of it is missing."""

    def __init__(self, message: str, *, cut: bool = False) -> None:
        super().__init__(message)
        self.cut = cut


class StudioUnavailable(ScanqueueError):
    """Label Studio does not answer, or answers with a server error. Trying again may help."""


class StudioRefused(ScanqueueError):
    """Label Studio answered and said no: a wrong token, no permission, a rejected request."""


class ProjectGone(StudioRefused):
    """The project no longer exists in Label Studio, or this token may not see it."""


class BadBackup(ScanqueueError):
    """A file is no backup of a project, is damaged, or was made by another scanqueue than this one can read."""


class BadIdentities(ScanqueueError):
    """The file of identities cannot be used: missing, damaged, of another kind or a later version."""


class LostSource(ScanqueueError):
    """The files that a scan came from are missing, changed or unreadable.

    where  their paths, which may name a patient and are for the person at the terminal only; the message has none
    """

    def __init__(self, message: str, where: str) -> None:
        super().__init__(message)
        self.where = where


class ProjectBusy(ScanqueueError):
    """A worker is at the project and did not let go of it in time. Trying again may help."""


class StorageFull(ScanqueueError):
    """Records or artefacts could not be written to the data folder."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an operating system's or a database driver's error means that a disk or a quota is full."""
    return (
        getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        or getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL  # without the details
        or getattr(error, "sqlstate", None) == "53100"  # PostgreSQL
        or "No space left" in str(error)
    )


class StoreUnavailable(ScanqueueError):
    """The database of the records does not answer. Trying again may help."""


class BadResults(ScanqueueError):
    """The results of a simulation cannot be used: a column is missing, a number is none, a model appears twice."""
