"""Answers a smart tool of Label Studio: the corrected mask of the label that was clicked."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from uuid import uuid4

import numpy as np

from backend.correction.prompt_tags import prompt_tags
from backend.correction.prompts import prompts, shown_mask, signs
from backend.correction.tools import Tools
from backend.errors import ScanqueueError
from backend.facts import IMPORTED_MASKS, PENDING, version_name
from backend.label_config import LabelConfig
from backend.label_studio.drawing import draw_mask
from backend.label_studio.listing import read_config
from backend.label_studio.studio import Studio
from backend.learning.geodesic import Mask
from backend.learning.learner import Learner
from backend.loop.batch import scan_of_task
from backend.loop.project_settings import row_settings
from backend.records.corrections import SLOW
from backend.records.store import Store
from backend.workers.counters import CountCallback, discard

log = logging.getLogger("scanqueue.correction")

NEAR = 2  # slices from which a mask may come
REMEMBERED = 1000  # tasks whose clicks outside a finding are remembered


class Corrector:
    """Turns prompts into masks. For any thread.

    count  counts the answers, by what became of them, and their seconds
    """

    def __init__(self, store: Store, studio: Studio, learner: Learner, count: CountCallback = discard) -> None:
        self._store = store
        self._tools = Tools(store, studio, learner)
        self._count = count
        self._later = ThreadPoolExecutor(1)
        self._outside: OrderedDict[tuple[int, int], set[str]] = OrderedDict()  # ids of key points, by project and task
        self._mutex = threading.Lock()

    def correct(self, project: int, task: Mapping[str, Any], context: Any, label_config: Any = "") -> dict[str, Any]:
        """One item {model_version, score, result} with the whole mask of each label that has prompts. Never raises.

        label_config  its text in the request; it counts until the worker has read the project's

        The ids of the regions are always new. Accepting a region with the id of another one replaces that one, and
        nothing tells whether that one was corrected by hand meanwhile: a click comes without the masks on the screen,
        and the draft is up to 5 s older. Without prompts, as after Submit, and after a failure, the result is empty,
        which changes nothing on the screen.
        """
        result: list[dict[str, Any]] = []
        masks: dict[str, Mask] | None = None
        began, outcome = time.monotonic(), "failed"
        try:
            masks, result = self._corrected(project, task, context, label_config)
            outcome = "drawn" if result else "empty"
        except ScanqueueError as error:
            log.warning("project %s, task %s: no correction: %s", project, task.get("id"), error)
        except Exception:  # annotators see nothing instead of an error
            log.exception("project %s, task %s: the correction failed", project, task.get("id"))
        seconds = time.monotonic() - began
        self._count("correction", outcome, seconds)
        if seconds > SLOW:
            self._count("correction_slow", outcome)
        if (masks is None or masks) and isinstance(number := task.get("id"), int):
            with suppress(RuntimeError):  # the server is stopping
                self._later.submit(self._record, project, number, time.time(), seconds, masks)
                self._later.submit(self._tools.prepare, project)
        return {"model_version": PENDING, "score": 1.0, "result": result}

    def close(self) -> None:
        """Wait until all answers are recorded."""
        self._later.shutdown(wait=True)

    def _record(self, project: int, task: int, at: float, seconds: float, masks: dict[str, Mask] | None) -> None:
        """Nobody waits for this."""
        try:
            if self._store.project(project) is not None:
                self._store.add_correction(project, task, at, seconds, masks)
        except ScanqueueError as error:
            log.warning("project %s, task %s: the correction was not recorded: %s", project, task, error)
        except Exception:
            log.exception("project %s, task %s: the correction was not recorded", project, task)

    def _corrected(
        self, project: int, task: Mapping[str, Any], context: Any, label_config: Any
    ) -> tuple[dict[str, Mask], list[dict[str, Any]]]:
        """The mask of each label that has prompts, and the regions."""
        row = self._store.project(project)
        if row is None or not isinstance(context, Mapping) or not context.get("result"):
            return {}, []
        config = LabelConfig.from_json(row["config"])
        if config is None and label_config:  # connected a moment ago
            config = read_config(label_config, project, row_settings(row).image)
        if config is None:
            return {}, []
        scan, latest = scan_of_task(self._store, project, task), self._store.latest_round(project, served=True)
        tool = self._tools.of_task(project, task, config, scan, latest)
        height, width = tool.height, tool.width
        labelmap = np.zeros((height, width), np.uint8)
        masks: dict[str, Mask] = {}
        versions = [*([version_name(latest["n"])] if latest else []), IMPORTED_MASKS]
        tags, blind = prompt_tags(label_config), row["overlap"] > 1
        negative = self._negative(project, task, context)
        for label, seeds in prompts(context, config, height, width, tags=tags, negative=negative).items():
            if seeds.current is None:
                seeds.current = shown_mask(
                    task, label, config, height, width, versions, context, tags=tags, blind=blind
                )
            if seeds.current is None or not seeds.current.any():
                seeds.current = self._next_to(project, scan, label, config, (height, width))
            masks[label] = tool.mask(seeds)
            labelmap[masks[label]] = config.labels.index(label) + 1
        return masks, draw_mask(labelmap, config.labels, config, f"correction:{uuid4()}")

    def _negative(self, project: int, task: Mapping[str, Any], context: Any) -> set[str]:
        """Ids of the key points outside a finding, also of those that no longer say so: see `signs`.

        Label Studio forgets it with the next draft that it saves after a page was opened again.
        """
        said = dict(signs(context, task))
        outside = {name for name, positive in said.items() if not positive}
        if isinstance(number := task.get("id"), int):
            with self._mutex:
                outside |= self._outside.pop((project, number), set())
                if 0 < len(outside) < REMEMBERED:
                    self._outside[project, number] = outside
                if len(self._outside) > REMEMBERED:
                    self._outside.popitem(last=False)
        return outside

    def _next_to(
        self, project: int, scan: Mapping[str, Any] | None, label: str, config: LabelConfig, shape: tuple[int, int]
    ) -> Mask | None:
        """The mask of a label on the nearest labelled slice of the same volume, at most NEAR slices away."""
        if scan is None or not scan["volume"]:
            return None
        others = self._store.scans_of(project, self._store.siblings(project, scan["task"]))
        near = [(abs(one["slice"] - scan["slice"]), one["task"]) for one in others if one["annotated"]]
        key = config.reading_key(self._store.renames(project))
        for _, other in sorted(one for one in near if 0 < one[0] <= NEAR):
            name, read_with = self._store.mask_of(project, other)
            if not name or read_with != key:
                continue
            with suppress(FileNotFoundError):
                mask = self._store.arrays("labels", name)["mask"] == config.labels.index(label) + 1
                if mask.shape == shape and mask.any():
                    return np.asarray(mask)
        return None
