"""The tools that draw masks from clicks, ready for the scans that are corrected, and for the next ones in the queue."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import ScanqueueError, WeightsMissing
from backend.formats.pixels import Letterboxed
from backend.label_config import LabelConfig
from backend.label_studio.studio import Studio
from backend.learning.clicks import NETWORK, PUBLISHED, SAM_SIDE, SAMS, TOOLS, UNCOMPARED, best_tool
from backend.learning.geodesic import Geodesic, Tool
from backend.learning.learner import Learner
from backend.learning.patch_features import SIDE, feature_name
from backend.loop.batch import BatchProcessor, digest_of_task, pixels_of_task
from backend.records.scans import scan_of
from backend.records.store import Store

log = logging.getLogger("scanqueue.correction")

PATIENCE = 2.0  # seconds that a click waits for a scan to be made ready; then the shortest paths answer
READY = 16  # scans whose tools are kept: 15 MB each
AHEAD, HEAD = 6, 50  # next scans whose tools are made ready; places of the order in which they are sought
EVERY = 10.0  # seconds between two looks for them

Choice = tuple[str, str, bool]  # one of TOOLS; the model that has the network, or ""; whether that is fitted
Key = tuple[Choice, str, str]  # with image and digest


class Tools:
    """The tools of all projects; for any thread."""

    def __init__(self, store: Store, studio: Studio, learner: Learner) -> None:
        self._store, self._studio, self._learner = store, studio, learner
        self._processor = BatchProcessor(studio, store, learner)
        self._ready: OrderedDict[Key, Tool] = OrderedDict()
        self._looked: dict[int, float] = {}
        self._mutex = threading.Lock()

    def of_task(
        self,
        project: int,
        task: Mapping[str, Any],
        config: LabelConfig,
        scan: Mapping[str, Any] | None,
        latest: Mapping[str, Any] | None,
    ) -> Tool:
        """The tool that was best on held-out scans; before the first model, the published network if it is there.

        scan, latest  the records of the task's scan and of the newest round that was served; None without them

        Raises UnreadableScan when the scan is not available.
        """
        image, digest = digest_of_task(scan, project, task, config)
        key = (self._choice(project, latest), image, digest)
        if found := self._kept(key):
            return found
        size = _side(key[0][0])
        return self._made(key, pixels_of_task(self._store, self._studio, task, config, digest, size), PATIENCE)

    def prepare(self, project: int) -> None:
        """Make the tools of the next scans in the queue ready. Never raises."""
        if time.monotonic() - self._looked.get(project, -EVERY) < EVERY:
            return
        self._looked[project] = time.monotonic()
        try:
            latest = self._store.latest_round(project, served=True)
            tasks = [pick.task for pick in latest["picks"][:HEAD]] if latest else []
            rows = {row["task"]: row for row in self._store.scans_of(project, tasks)}
            there = [rows[task] for task in tasks if task in rows]
            choice = self._choice(project, latest)
            for row in [row for row in there if row["digest"] and not row["annotated"] and not row["problem"]][:AHEAD]:
                key = (choice, row["image"], row["digest"])
                if self._kept(key) is None:
                    self._made(key, self._processor.pixels(scan_of(row), _side(choice[0])), None)
        except ScanqueueError as error:
            log.debug("project %s: the next scans are not ready for clicks: %s", project, error)
        except Exception:
            log.exception("project %s: the next scans are not ready for clicks", project)

    def _kept(self, key: Key) -> Tool | None:
        with self._mutex:
            if key in self._ready:
                self._ready.move_to_end(key)
            return self._ready.get(key)

    def _made(self, key: Key, scan: Letterboxed, patience: float | None) -> Tool:
        (name, model, fitted), _, digest = key
        paths = Geodesic(scan)
        tool: Tool = paths
        if name in PUBLISHED and (published := self._learner.published_tool(name)) is not None:
            tool = published.tool(scan, paths, patience=patience)
        elif name == NETWORK:
            try:
                network = self._learner.click_network(self._store.path("models", model))
                tool = network.tool(scan, self._features(digest, scan), paths, fitted=fitted)
            except WeightsMissing as error:
                log.warning("clicks are answered without the network: %s", error)
        with self._mutex:
            self._ready[key] = tool
            while len(self._ready) > READY:
                self._ready.popitem(last=False)
        return tool

    def _choice(self, project: int, latest: Mapping[str, Any] | None) -> Choice:
        model = self._store.model_summary(project, latest["model"]) if latest and latest["model"] else None
        compared = (model["details"].get("clicks") or {}).get("compared") if model else None
        there = [name for name in TOOLS if name not in PUBLISHED or self._learner.published_tool(name) is not None]
        if model is None or not compared:
            return next(name for name in UNCOMPARED if name in there), "", False
        if (name := best_tool(compared, there)) != NETWORK:
            return name, "", False
        return name, model["fingerprint"], compared.get("fitted", True)

    def _features(self, digest: str, scan: Letterboxed) -> NDArray[np.float16]:
        """From the cache of the quick model, else computed."""
        if digest:
            with suppress(FileNotFoundError):
                found: NDArray[np.float16] = self._store.arrays("features", feature_name(digest))["features"]
                return found
        return self._learner.features(scan.pixels)


def _side(tool: str) -> int:
    """Pixels of the working square that a tool sees."""
    return SAM_SIDE if tool in SAMS else SIDE
