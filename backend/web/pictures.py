"""Pictures of scans for people: thumbnails with outlined masks, and the comparison of two models.

Every picture is a PNG of the upright scan with its aspect ratio.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import (
    BadSetting,
    NotKnown,
    ScanqueueError,
    StoreUnavailable,
    UnreadableMask,
    UnreadableScan,
    WeightsMissing,
)
from backend.facts import Scan
from backend.fingerprints import fingerprint
from backend.formats.pixels import Letterboxed, letterbox, translate
from backend.label_config import LabelConfig, Renames, unknown_classes
from backend.learning.averages import Recorded
from backend.learning.evaluation import LabelScore
from backend.loop.batch import CHUNK, BatchProcessor
from backend.loop.judging import has_learnt, judged, learnt
from backend.loop.quick_masks import quick_name
from backend.records.scans import scan_of
from backend.records.store import Store
from backend.web.colours import FALLBACKS
from backend.web.drawing import (
    Map,
    difference_picture,
    encode_png,
    outlined,
    shrink,
    thumbnail,
)
from backend.web.legend import label_names, legend, united
from sampling import disagreement

log = logging.getLogger("scanqueue.pictures")

ANNOTATOR = "annotator"
QUICK = "quick"  # the quick model, before the first trained one
PARTS = ("image", "first", "second", ANNOTATOR, "difference")
SMALLEST, LARGEST = 32, 1024  # allowed longer sides in pixels
PATIENCE = 20.0  # seconds after which a comparison returns what it has
KEPT = 10_000  # comparisons of two masks kept in memory: about 30 MB with three labels


@dataclass(frozen=True)
class Compared:
    """Two models on one scan that neither has learnt from. Labels that its annotator could not draw are left out.

    first, second  Dice of each model's mask against the annotator's, 0..1, high is good: mean over the labels of the
                   annotator's mask; None without any
    agreement      Dice of the two masks against each other: mean over the labels that either has; 1 without any.
                   Here, no label is left out
    first_hd95, second_hd95
                   HD95 of each model's mask against the annotator's, low is good, over the same labels as Dice
    unit           unit of these distances: "mm" if the scan's spacing is known, else "px"
    truth_empty, first_empty, second_empty
                   whether the annotator's mask, and each model's, has no foreground
    first_labels, second_labels
                   the scores of each model by label, as far as known
    """

    task: int
    first: float | None
    second: float | None
    agreement: float
    first_hd95: float | None
    second_hd95: float | None
    unit: str
    truth_empty: bool
    first_empty: bool
    second_empty: bool
    first_labels: Mapping[str, LabelScore]
    second_labels: Mapping[str, LabelScore]


class Pictures:
    """Creates pictures from the pixels and masks in `store`; `processor` adds missing ones.

    Any problem with a scan, mask or model raises ScanqueueError and nothing else: NotKnown for an unknown task or
    version, BadSetting for an impossible picture.
    """

    def __init__(self, store: Store, processor: BatchProcessor) -> None:
        self.store = store
        self.processor = processor
        self._measured: OrderedDict[tuple[Any, ...], Compared] = OrderedDict()
        self._lock = threading.Lock()

    def scan(self, project: int, task: int, *, side: int = 160, model: str = "", compared: bool = False) -> bytes:
        """A scan as PNG, its longer side `side` pixels (32..1024).

        model     a version: outline the mask of this model; "annotator": outline the submitted mask; "quick": outline
                  the mask of the quick model that the task shows; "": no outline. `legend` has the colours
        compared  show the masks that `compare` measures, not those that annotators get
        """
        _check_side(side)
        with _explained(project, task):
            scan = self._scan(project, task)
            box = self._box(scan)
            picture = thumbnail(box, side)
            if model:
                names = label_names(self.store, project, model)
                mask = _fitting(self._mask_of(project, scan, model, names, compared), box, task)
                colours = list(legend(self.store, project, names).values()) or FALLBACKS
                picture = outlined(picture, shrink(mask, *picture.shape[:2]), colours)
            return encode_png(picture)

    def difference(self, project: int, task: int, first: str, second: str, part: str, side: int = 256) -> bytes:
        """One part of the comparison of two models on a scan, as PNG.

        part  "image": the scan alone; "first", "second", "annotator": with the outlines of that mask; "difference":
              in grey, filled with ONLY_FIRST, ONLY_SECOND or OTHER_LABEL where the two masks differ, outlined where
              they agree
        """
        if part not in PARTS:
            raise BadSetting(f"a comparison has no part {part!r}; choose one of {', '.join(PARTS)}.")
        if part != "difference":
            model = {"image": "", "first": first, "second": second, ANNOTATOR: ANNOTATOR}[part]
            return self.scan(project, task, side=side, model=model, compared=True)
        _check_side(side)
        with _explained(project, task):
            scan = self._scan(project, task)
            box = self._box(scan)
            names = label_names(self.store, project, first, second)
            masks = (self._mask_of(project, scan, version, names, compared=True) for version in (first, second))
            one, other = (_fitting(mask, box, task) for mask in masks)
            return encode_png(difference_picture(thumbnail(box, side), one, other))

    def held_out(self, project: int, first: str, second: str) -> list[int]:
        """The labelled tasks that neither model has learnt from, on which they are compared."""
        with _explained(project):
            return [scan.task for scan, _ in self._held_out(project, first, second)]

    def compare(
        self, project: int, first: str, second: str, limit: int = 24, *, seconds: float = PATIENCE
    ) -> list[Compared]:
        """Two models on the scans of `held_out`, worst first by the lower of the two Dice values.

        limit    maximum number of results
        seconds  time limit; predicted masks are stored, so the next call continues where this one stopped

        Scans are left out if the mask of either model is missing and cannot be predicted, because the checkpoint or
        the pixels are gone. If nothing could be compared, the last such error is raised.
        """
        with _explained(project):
            one, other = self._judged(project, first), self._judged(project, second)
            names = self._labels(project) or united(one["labels"], other["labels"])
            held, renames = self._held_out(project, first, second), self.store.renames(project)
        found: list[Compared] = []
        problem: ScanqueueError | None = None
        until = time.monotonic() + seconds
        for start in range(0, len(held), CHUNK):
            if start and time.monotonic() >= until:
                log.info("project %s: compared %s of %s scans in %.0f s", project, start, len(held), seconds)
                break
            chunk = held[start : start + CHUNK]
            for model in (one, other):
                try:
                    with _explained(project):
                        self._draw(project, model, [scan for scan, _ in chunk])
                except StoreUnavailable:
                    raise
                except ScanqueueError as error:
                    log.warning("project %s: %s cannot predict: %s", project, model["version"], error)
                    problem = error
            for scan, label in chunk:
                try:
                    with _explained(project, scan.task):
                        found += self._compared(scan, label, one, other, names, renames)
                except StoreUnavailable:
                    raise
                except ScanqueueError as error:
                    log.warning("project %s, task %s: left out of the comparison: %s", project, scan.task, error)
        if not found and problem is not None:
            raise problem
        return sorted(found, key=_worst_first)[:limit]

    # -- records ------------------------------------------------------------------------------

    def _scan(self, project: int, task: int) -> Scan:
        found = self.store.scan(project, task)
        if found is None:
            raise NotKnown(f"project {project} has no task {task} here; it was deleted or has not been read yet.")
        return scan_of(found)

    def _model(self, project: int, version: str) -> Mapping[str, Any]:
        found = self.store.model(project, version)
        if found is None:
            there = ", ".join(version for version, _ in self.store.model_versions(project)) or "none"
            raise NotKnown(f"project {project} has no model {version!r}; available: {there}.")
        return found

    def _judged(self, project: int, version: str) -> Mapping[str, Any]:
        """`_model`, with the weights that have not learnt from the scans held out from it."""
        found = self._model(project, version)
        return {**found, "fingerprint": judged(found)}

    def _config(self, project: int) -> LabelConfig | None:
        row = self.store.project(project)
        return LabelConfig.from_json(row["config"]) if row is not None else None

    def _labels(self, project: int) -> tuple[str, ...]:
        config = self._config(project)
        return config.labels if config is not None else ()

    def _submitted(self, project: int) -> dict[int, Mapping[str, Any]]:
        """The records of the submitted masks by task; only masks read with the present label config."""
        config = self._config(project)
        key = config.reading_key(self.store.renames(project)) if config else ""
        return {
            label["task"]: dict(label)
            for label in self.store.labels(project)
            if label["mask"] and not label["problem"] and (not key or label["config"] == key)
        }

    def _held_out(self, project: int, *versions: str) -> list[tuple[Scan, Mapping[str, Any]]]:
        """Labelled scans that none of these models has learnt from, and their annotations, in a stable order."""
        submitted = self._submitted(project)
        scans = [scan_of(row) for row in self.store.scans(project)]
        tasks = {label["annotation"]: label["task"] for label in self.store.labels(project)}
        known = set().union(*(learnt(self._model(project, version), scans, tasks) for version in versions))
        usable = [
            scan for scan in scans if scan.annotated and scan.digest and not scan.problem and scan.task in submitted
        ]
        left = [(scan, submitted[scan.task]) for scan in usable if not has_learnt(known, scan)]
        left = [(scan, label) for scan, label in left if self.store.has("labels", label["mask"])]
        return sorted(left, key=lambda one: (one[0].digest, one[0].task))

    # -- pixels and masks ---------------------------------------------------------------------

    def _box(self, scan: Scan) -> Letterboxed:
        size = self.processor.learner.image_size
        if scan.digest:
            return self.processor.pixels(scan, size)
        if scan.problem:  # only workers try again, because the image host may not answer
            raise UnreadableScan(scan.problem)
        _, image, problem = self.processor.fetch(scan.image)  # not read yet: nothing is stored
        if image is None:
            raise UnreadableScan(problem)
        return letterbox(image, size)

    def _mask_of(self, project: int, scan: Scan, model: str, names: Sequence[str], compared: bool) -> Map:
        """The mask of a version or of "annotator", in the classes `names`, which begin with the label config's."""
        if model == QUICK:
            quick = self.store.quick_mask(project, scan.task)
            drawn = self.processor.mask(quick_name(quick["drawn"]), scan) if quick and quick["drawn"] else None
            if quick is None or drawn is None:
                raise UnreadableMask(f"project {project}, task {scan.task}: it shows no mask of the quick model.")
            renames = self.store.renames(project)
            drawn_names = [renames.label(name) or name for name in json.loads(quick["names"])]
            return translate(_label_map(drawn, scan.task), drawn_names, names)
        if model != ANNOTATOR:
            row = self._judged(project, model) if compared else self._model(project, model)
            return translate(self._drawn(project, scan, row), row["labels"], names)
        label = self._submitted(project).get(scan.task)
        try:
            if label is not None:
                return _label_map(self.store.arrays("labels", label["mask"])["mask"], scan.task)
        except FileNotFoundError:
            pass
        raise UnreadableMask(
            f"project {project}, task {scan.task}: no submitted mask is stored here. Label the scan in Label Studio; a "
            "lost mask is read again before the next training."
        )

    def _drawn(self, project: int, scan: Scan, model: Mapping[str, Any]) -> Map:
        """The mask of a model at original size, in the model's own classes."""
        found = self.processor.mask(model["fingerprint"], scan)
        if found is None:
            self._draw(project, model, [scan])
            found = self.processor.mask(model["fingerprint"], scan)
        if found is not None:
            return _label_map(found, scan.task)
        if self.store.has("models", model["fingerprint"]):
            row = self.store.scan(project, scan.task)
            problem = row["problem"] if row else ""
            raise UnreadableScan(problem or f"task {scan.task} has not been read yet; try again later.")
        raise WeightsMissing(
            f"project {project}, task {scan.task}: the mask of {model['version']} is not stored, and its checkpoint "
            "was removed, so it cannot be predicted again. SCANQUEUE_KEEP_MODELS sets how many are kept (0: all)."
        )

    def _draw(self, project: int, model: Mapping[str, Any], scans: Sequence[Scan]) -> None:
        """Predict the missing masks of these scans, if the model's checkpoint exists."""
        read = [scan for scan in scans if scan.digest]
        if read and self.store.has("models", model["fingerprint"]):
            self.processor.draw(project, model["fingerprint"], read)

    # -- measuring ----------------------------------------------------------------------------

    def _compared(
        self,
        scan: Scan,
        label: Mapping[str, Any],
        one: Mapping[str, Any],
        other: Mapping[str, Any],
        names: Sequence[str],
        renames: Renames,
    ) -> list[Compared]:
        """One comparison; [] when a mask is missing."""
        if not all(self.store.has("masks", fingerprint(m["fingerprint"], scan.digest)) for m in (one, other)):
            return []
        masks = one["fingerprint"], other["fingerprint"], label["mask"]
        unknown = unknown_classes(label["known"], names, renames)
        key = (*masks, unknown, scan.task, scan.digest, scan.spacing, *names)
        with self._lock:
            known = self._measured.get(key)
        if known is not None:
            return [known]
        truth = _label_map(self.store.arrays("labels", label["mask"])["mask"], scan.task)
        drawn = []
        for model in (one, other):
            mask = self.processor.mask(model["fingerprint"], scan)
            if mask is None:
                return []
            drawn.append(translate(_label_map(mask, scan.task), model["labels"], names))
        if any(mask.shape != truth.shape for mask in drawn):
            raise UnreadableMask(f"task {scan.task}: its masks differ in size, so they belong to different images.")
        classes, compare = len(names) + 1, self.processor.learner.compare
        first, second = (compare(mask, truth, classes, scan.spacing, unknown) for mask in drawn)
        same = 1.0 - disagreement(np.stack(drawn), classes)
        empty = first.truth_empty, first.drawn_empty, second.drawn_empty
        each = [Recorded.of(one, names).labels for one in (first, second)]
        found = Compared(scan.task, first.dice, second.dice, same, first.hd95, second.hd95, first.unit, *empty, *each)
        with self._lock:
            self._measured[key] = found
            while len(self._measured) > KEPT:
                self._measured.popitem(last=False)
        return [found]


def _worst_first(one: Compared) -> tuple[float, float, int]:
    """By the lower of both Dice values; without a label in the annotator's mask, a false alarm counts as 0."""
    pairs = ((one.first, one.first_empty), (one.second, one.second_empty))
    dices = [float(empty) if dice is None else dice for dice, empty in pairs]
    return min(dices), sum(dices), one.task


@contextmanager
def _explained(project: int, task: int | None = None) -> Iterator[None]:
    """Turn unexpected errors into UnreadableScan, so that an error in a decoder or network costs only one picture."""
    try:
        yield
    except ScanqueueError:
        raise
    except Exception as error:
        where = f"project {project}" + (f", task {task}" if task is not None else "")
        log.exception("%s: no picture", where)
        reason = str(error) or type(error).__name__
        raise UnreadableScan(f"{where}: the picture cannot be created ({reason}); see the scanqueue log.") from error


def _check_side(side: int) -> None:
    if not SMALLEST <= side <= LARGEST:
        raise BadSetting(f"side: got {side}, expected {SMALLEST} to {LARGEST} pixels.")


def _label_map(mask: NDArray[Any], task: int) -> Map:
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise UnreadableMask(f"task {task}: its stored mask is damaged ({mask.dtype}, {mask.shape}).")
    return mask


def _fitting(mask: Map, box: Letterboxed, task: int) -> Map:
    """The mask, checked to have the size of the scan."""
    if mask.shape != (box.original_height, box.original_width):
        height, width = mask.shape
        raise UnreadableMask(
            f"task {task}: its mask has {width} x {height} pixels, but the scan has {box.original_width} x "
            f"{box.original_height}: the image was replaced. Label it again in Label Studio."
        )
    return mask
