"""All operations on Label Studio in one class. Only this folder knows its URLs and its JSON.

Everything is read in bulk: the number of requests does not depend on the number of tasks, except that listings and
imports are split into chunks. Times, masks and versions have the meaning they have in `label-studio` 1.23.
"""

from __future__ import annotations

from backend.label_studio.importing import Importing
from backend.label_studio.queue import PublishedQueue
from backend.label_studio.scan_source import ScanSource
from backend.label_studio.webhooks import Webhooks


class Studio(PublishedQueue, Importing, ScanSource, Webhooks):
    """One Label Studio server, accessed as one user. For the arguments and the errors raised see `Client`."""
