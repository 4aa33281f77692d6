"""Domain errors, independent of HTTP and Label Studio.

Every message is for a person: what was wrong, where, and what to do.
"""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path


class ScanqueueError(Exception):
    """A failure that scanqueue can explain."""


class BadSetting(ScanqueueError):
    """A setting has an invalid value or an unknown name."""


class NotSegmentable(ScanqueueError):
    """The project's label config has no tag that draws masks."""


class UnreadableScan(ScanqueueError):
    """The pixels of one scan are not available: missing, truncated, too large, not an image."""


class UnreadableMask(ScanqueueError):
    """One annotation contains no usable mask: wrong size, invalid run lengths, unknown label."""


class UnknownLabels(UnreadableMask):
    """An annotation could be read but for labels that the label config does not have."""

    def __init__(self, text: str, labels: tuple[str, ...]) -> None:
        super().__init__(text)
        self.labels = labels


class UnreadableFile(ScanqueueError):
    """A local file is damaged, truncated, too large, or has unsupported contents.

    path   the file. It may contain a patient's name: show it at the terminal, never log it
    what   the fault and the fix, without the path and without header values
    shown  the same with the names in the header that one needs to fix it; for the terminal, like the path; "": `what`
    """

    def __init__(self, path: Path | str, what: str, shown: str = "") -> None:
        super().__init__(path, what, shown)  # all of them, so that the error can be pickled
        self.path = Path(path)
        self.what = what
        self.shown = shown

    def __str__(self) -> str:
        return f"{self.path}: {self.shown or self.what}"


class CannotCut(ScanqueueError, ValueError):
    """A volume cannot be cut along an axis: uneven slice spacing, or unknown orientation."""


class BadWindow(ScanqueueError, ValueError):
    """An invalid window, or a preset that the file's header does not define.

    shown  the message for the terminal, with the names in the header; "": the message has none
    """

    def __init__(self, message: str, shown: str = "") -> None:
        super().__init__(message, shown)
        self.shown = shown

    def __str__(self) -> str:
        return str(self.args[0])


class CannotDeliver(ScanqueueError):
    """Images cannot be placed where Label Studio serves them."""


class CannotExport(ScanqueueError):
    """Labels cannot be written in the requested format: wrong shape, or unsuitable source."""


class CannotTrain(ScanqueueError):
    """A training is requested for a project that cannot be trained now."""


class NotKnown(ScanqueueError):
    """Unknown project, scan or model."""


class Overloaded(ScanqueueError):
    """Too many concurrent requests of one kind. Retrying helps."""


class WeightsMissing(ScanqueueError):
    """Pretrained weights are neither on disk nor downloadable."""


class BrokenWeights(WeightsMissing):
    """A weights file is invalid or incomplete. `cut`: it is truncated."""

    def __init__(self, message: str, *, cut: bool = False) -> None:
        super().__init__(message)
        self.cut = cut


class DamagedModel(WeightsMissing):
    """A trained model in the data folder is damaged. `path`: its folder, or one file of it."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


class LostEmbeddings(ScanqueueError):
    """Embeddings of scans are missing or damaged, and no longer recorded: the scans are read again."""


class StudioUnavailable(ScanqueueError):
    """Label Studio does not answer, or answers with a server error. Retrying may help."""


class StudioRefused(ScanqueueError):
    """Label Studio rejected a request: invalid token, missing permission, invalid data."""


class ProjectGone(StudioRefused):
    """The project no longer exists in Label Studio, or this token has no access to it."""


class BadBackup(ScanqueueError):
    """A file is not a project backup, is damaged, or has an unsupported version."""


class BadIdentities(ScanqueueError):
    """The identities file is missing, damaged, of another type or of a later version."""


class LostSource(ScanqueueError):
    """The source files of a scan are missing, changed or unreadable.

    where  their paths. They may contain a patient's name: show them at the terminal only; the message omits them
    """

    def __init__(self, message: str, where: str) -> None:
        super().__init__(message)
        self.where = where


class ProjectBusy(ScanqueueError):
    """A worker uses the project and did not release it in time. Retrying may help."""


class StorageFull(ScanqueueError):
    """Records or artefacts cannot be written to the data folder: the disk is full."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an operating system's or a database driver's error means that a disk or a quota is full."""
    return (
        getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        or getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL  # without the details
        or getattr(error, "sqlstate", None) == "53100"  # PostgreSQL
        or "No space left" in str(error)
    )


class StoreUnavailable(ScanqueueError):
    """The records' database does not answer. Retrying may help."""


class DamagedRecords(StoreUnavailable):
    """The records' SQLite file is damaged, or not a file of scanqueue. Only its replacement helps.

    where  the file, or what else is damaged
    what   the fault, as the rest of a sentence that begins with `where`
    """

    def __init__(self, where: Path | str, what: str) -> None:
        super().__init__(
            f"{where} {what}, so the records cannot be used. Nothing was changed. Stop scanqueue, move records.sqlite, "
            "records.sqlite-wal and records.sqlite-shm to another folder, and run `scanqueue restore` with the backup "
            "of each project. Without a backup, start scanqueue and connect the projects again: the labels are in "
            "Label Studio."
        )


class ClusterUnavailable(ScanqueueError):
    """The Dask cluster does not do its work."""


class WorkersLost(ClusterUnavailable):
    """Workers of the Dask cluster died doing the same work, again and again. `part`: its index among many."""

    def __init__(self, message: str, part: int | None = None) -> None:
        super().__init__(message)
        self.part = part


class BadResults(ScanqueueError):
    """Simulation results are invalid: missing column, invalid number, duplicate model."""
