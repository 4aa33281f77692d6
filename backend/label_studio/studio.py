"""One Label Studio, as one user: what its modules can do, in one class. Only this folder knows its URLs and its JSON.

Everything is read in bulk: the number of requests does not depend on how many tasks a project has, except that
listings and imports are split into chunks. Times, masks and versions mean what they mean in `label-studio` 1.23.
"""

from __future__ import annotations

from backend.label_studio.importing import Importing
from backend.label_studio.queue import PublishedQueue
from backend.label_studio.scan_source import ScanSource
from backend.label_studio.webhooks import Webhooks


class Studio(PublishedQueue, Importing, ScanSource, Webhooks):
    """See `Client` for the arguments of the constructor and for the errors that every method raises."""
