"""What can go wrong, in the words of this domain. No HTTP and no Label Studio in here.

The message of every error is meant for a person: what was wrong, where, and what to do.
"""


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


class ProjectBusy(ScanqueueError):
    """A worker is at the project and did not let go of it in time. Trying again may help."""


class StorageFull(ScanqueueError):
    """Records or artefacts could not be written to the data folder."""


class StoreUnavailable(ScanqueueError):
    """The database of the records does not answer. Trying again may help."""


class BadResults(ScanqueueError):
    """The results of a simulation cannot be used: a column is missing, a number is none, a model appears twice."""
