"""Scans as people look at them: thumbnails with outlined masks, and two models held against each other.

Every picture is a PNG of the scan upright, its aspect kept. The colours keep apart for colour-blind readers (Okabe &
Ito 2008), and every outline has a dark halo, so that it is seen on black and on white.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
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
from backend.facts import LabelConfig, Scan, validation_rows
from backend.fingerprints import fingerprint
from backend.formats.pixels import Letterboxed, letterbox, translate
from backend.loop.batch import CHUNK, BatchProcessor
from backend.records.scans import scan_of
from backend.records.store import Store

log = logging.getLogger("scanqueue.pictures")

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
"""Of the labels, in the order of the label config; an eighth label has the first colour again."""
ONLY_FIRST, ONLY_SECOND, OTHER_LABEL, BOTH = "#0072B2", "#E69F00", "#CC79A7", "#FFFFFF"
"""Of a difference: labelled by the first model alone, by the second alone, by both but not alike; outline of the rest.
"""
HALO = "#101010"

ANNOTATOR = "annotator"
PARTS = ("image", "first", "second", ANNOTATOR, "difference")
SMALLEST, LARGEST = 32, 1024  # pixels of the longer side
PATIENCE = 20.0  # seconds that a comparison draws masks and measures before it answers with what it has
KEPT = 100_000  # pairs of Dice and HD95 in memory

Map = NDArray[np.uint8]  # a label map (H, W), or pixels (H, W) or (H, W, 3)


@dataclass(frozen=True)
class Compared:
    """Two models on one scan that neither learnt from.

    first, second  Dice of either model's mask against the annotator's, 0..1
    agreement      Dice of the two masks against each other
    first_hd95, second_hd95
                   HD95 of either model's mask against the annotator's, low is good
    unit           of these distances: "mm" where the scan's spacing is known, else "px"
    """

    task: int
    first: float
    second: float
    agreement: float
    first_hd95: float
    second_hd95: float
    unit: str


class Pictures:
    """Draws from what lies in `store`; what is missing is fetched and drawn by `processor`, and then lies there.

    Raises ScanqueueError, and nothing else, for whatever may be wrong with a scan, a mask or a model: NotKnown when
    there is none of that number or version, BadSetting when the picture that is asked for makes no sense.
    """

    def __init__(self, store: Store, processor: BatchProcessor) -> None:
        self.store = store
        self.processor = processor
        self._measured: OrderedDict[tuple[Any, ...], tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def scan(self, project: int, task: int, *, side: int = 160, model: str = "") -> bytes:
        """A scan as PNG, its longer side `side` pixels (32..1024).

        model  a version: with outlines of the mask that this model draws; "annotator": of the submitted one
        """
        _check_side(side)
        with _explained(project, task):
            scan = self._scan(project, task)
            box = self._box(scan)
            picture = _thumbnail(box, side)
            if model:
                mask = self._mask_of(project, scan, model)
                picture = _outlined(picture, _shrunk(_fitting(mask, box, task), *picture.shape[:2]))
            return _png(picture)

    def difference(self, project: int, task: int, first: str, second: str, part: str, side: int = 256) -> bytes:
        """One part of the comparison of two models on a scan, as PNG.

        part  "image": the scan alone; "first", "second", "annotator": with the outlines of that mask; "difference":
              in grey, filled with ONLY_FIRST, ONLY_SECOND or OTHER_LABEL where the two masks differ, and nowhere
              else; what both have alike is outlined
        """
        if part not in PARTS:
            raise BadSetting(f"a comparison has no part {part!r}; there are: {', '.join(PARTS)}.")
        if part != "difference":
            model = {"image": "", "first": first, "second": second, ANNOTATOR: ANNOTATOR}[part]
            return self.scan(project, task, side=side, model=model)
        _check_side(side)
        with _explained(project, task):
            scan = self._scan(project, task)
            box = self._box(scan)
            one, other = (_fitting(self._mask_of(project, scan, v), box, task) for v in (first, second))
            return _png(_differing(_thumbnail(box, side), one, other))

    def held_out(self, project: int) -> list[int]:
        """The labelled tasks that no model learns from, and that models are compared on."""
        with _explained(project):
            return [scan.task for scan, _ in self._held_out(project)]

    def compare(
        self, project: int, first: str, second: str, limit: int = 24, *, seconds: float = PATIENCE
    ) -> list[Compared]:
        """Two models on the held-out scans, the worst first: those with the lowest of the two Dice.

        limit    how many are returned
        seconds  after so many what is known by then is returned; the masks that were drawn are kept, so that the
                 next call gets further

        Scans are left out whose mask by either model is neither kept nor can be drawn, because the checkpoint or the
        pixels are gone. Raises what kept the models from drawing when it kept them from drawing anything.
        """
        with _explained(project):
            one, other = self._model(project, first), self._model(project, second)
            names = self._labels(project) or _united(one["labels"], other["labels"])
            held = self._held_out(project)
        found: list[Compared] = []
        trouble: ScanqueueError | None = None
        until = time.monotonic() + seconds
        for start in range(0, len(held), CHUNK):
            if start and time.monotonic() >= until:
                log.info("project %s: compared %s of %s held-out scans in %.0f s", project, start, len(held), seconds)
                break
            chunk = held[start : start + CHUNK]
            for model in (one, other):
                try:
                    with _explained(project):
                        self._draw(project, model, [scan for scan, _ in chunk])
                except StoreUnavailable:
                    raise
                except ScanqueueError as error:
                    log.warning("project %s: %s cannot draw: %s", project, model["version"], error)
                    trouble = error
            for scan, label in chunk:
                try:
                    with _explained(project, scan.task):
                        found += self._compared(scan, label, one, other, names)
                except StoreUnavailable:
                    raise
                except ScanqueueError as error:
                    log.warning("project %s, task %s: left out of a comparison: %s", project, scan.task, error)
        if not found and trouble is not None:
            raise trouble
        found.sort(key=lambda c: (min(c.first, c.second), c.first + c.second, c.task))
        return found[:limit]

    # -- records ------------------------------------------------------------------------------

    def _scan(self, project: int, task: int) -> Scan:
        found = self.store.scan(project, task)
        if found is None:
            raise NotKnown(f"project {project} has no task {task} here; it was deleted, or is not read yet.")
        return scan_of(found)

    def _model(self, project: int, version: str) -> Mapping[str, Any]:
        found = self.store.model(project, version)
        if found is None:
            there = ", ".join(m["version"] for m in self.store.models(project)) or "none yet"
            raise NotKnown(f"project {project} has no model {version!r}; there are: {there}.")
        return found

    def _config(self, project: int) -> LabelConfig | None:
        row = self.store.project(project)
        return LabelConfig.from_json(row["config"]) if row is not None else None

    def _labels(self, project: int) -> tuple[str, ...]:
        config = self._config(project)
        return config.labels if config is not None else ()

    def _submitted(self, project: int) -> dict[int, str]:
        """Names of the masks that were submitted, by task: those that were read with the labels of today."""
        config = self._config(project)
        return {
            row["task"]: row["mask"]
            for row in self.store.labels(project)
            if row["mask"] and not row["problem"] and (config is None or row["config"] == config.key)
        }

    def _held_out(self, project: int) -> list[tuple[Scan, str]]:
        """Held-out scans with the names of their submitted masks, always in the same order."""
        masks = self._submitted(project)
        labelled = [
            scan_of(row)
            for row in self.store.scans(project)
            if row["annotated"] and row["digest"] and not row["problem"] and row["task"] in masks
        ]
        labelled = [scan for scan in labelled if self.store.has("labels", masks[scan.task])]
        labelled.sort(key=lambda scan: (scan.digest, scan.task))
        held = validation_rows([scan.digest for scan in labelled], [scan.group for scan in labelled])
        return [(scan, masks[scan.task]) for i, scan in enumerate(labelled) if i in held]

    # -- pixels and masks ---------------------------------------------------------------------

    def _box(self, scan: Scan) -> Letterboxed:
        size = self.processor.learner.image_size
        if scan.digest:
            return self.processor.pixels(scan, size)
        if scan.problem:  # asking for it again is the worker's, now and then: whoever has it may not answer
            raise UnreadableScan(scan.problem)
        _, image, problem = self.processor.fetch(scan.image)  # not read yet, or never: nothing is kept of it
        if image is None:
            raise UnreadableScan(problem)
        return letterbox(image, size)

    def _mask_of(self, project: int, scan: Scan, model: str) -> Map:
        """The mask of a version, or of "annotator", in the labels of the config, and others behind them."""
        labels = self._labels(project)
        if model != ANNOTATOR:
            row = self._model(project, model)
            return translate(self._drawn(project, scan, row), row["labels"], _united(labels, row["labels"]))
        name = self._submitted(project).get(scan.task)
        try:
            if name is not None:
                return _label_map(self.store.arrays("labels", name)["mask"], scan.task)
        except FileNotFoundError:
            pass
        raise UnreadableMask(
            f"project {project}, task {scan.task}: no submitted mask is kept here. Label it in Label Studio; a mask "
            "that was lost is read again before the next training."
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
            raise UnreadableScan(problem or f"task {scan.task} is not read yet; try again later.")
        raise WeightsMissing(
            f"project {project}, task {scan.task}: the mask by {model['version']} is not kept, and its checkpoint is "
            "gone, so that it cannot be drawn again. SCANQUEUE_KEEP_MODELS says how many are kept (0: all)."
        )

    def _draw(self, project: int, model: Mapping[str, Any], scans: Sequence[Scan]) -> None:
        """Have the masks of these scans drawn that are missing, if the model's checkpoint is there."""
        read = [scan for scan in scans if scan.digest]
        if read and self.store.has("models", model["fingerprint"]):
            self.processor.draw(project, model["fingerprint"], read)

    # -- measuring ----------------------------------------------------------------------------

    def _compared(
        self, scan: Scan, label: str, one: Mapping[str, Any], other: Mapping[str, Any], names: Sequence[str]
    ) -> list[Compared]:
        """One comparison; none when one of the masks is gone."""
        models = [one, other]
        if not all(self.store.has("masks", fingerprint(m["fingerprint"], scan.digest)) for m in models):
            return []
        pairs = [(one["fingerprint"], label), (other["fingerprint"], label), (one["fingerprint"], other["fingerprint"])]
        keys = [(*pair, scan.digest, scan.spacing, *names) for pair in pairs]
        with self._lock:
            known = [self._measured[key] for key in keys if key in self._measured]
        if len(known) < len(keys):
            maps = {label: _label_map(self.store.arrays("labels", label)["mask"], scan.task)}
            for model in models:
                mask = self.processor.mask(model["fingerprint"], scan)
                if mask is None:
                    return []
                maps[model["fingerprint"]] = translate(_label_map(mask, scan.task), model["labels"], names)
            if len({m.shape for m in maps.values()}) > 1:
                raise UnreadableMask(f"task {scan.task}: its masks differ in size: they are of different images.")
            found = [self.processor.learner.compare(maps[a], maps[b], len(names) + 1, scan.spacing) for a, b in pairs]
            known = [(one.dice, one.hd95) for one in found]
            with self._lock:
                self._measured.update(zip(keys, known, strict=True))
                while len(self._measured) > KEPT:
                    self._measured.popitem(last=False)
        (first, first_hd95), (second, second_hd95), (agreement, _) = known
        return [Compared(scan.task, first, second, agreement, first_hd95, second_hd95, "mm" if scan.spacing else "px")]


@contextmanager
def _explained(project: int, task: int | None = None) -> Iterator[None]:
    """What cannot be explained costs one picture, never more, whatever decoders, arrays and networks raise."""
    try:
        yield
    except ScanqueueError:
        raise
    except Exception as error:
        where = f"project {project}" + (f", task {task}" if task is not None else "")
        log.exception("%s: no picture", where)
        said = str(error) or type(error).__name__
        raise UnreadableScan(f"{where}: the picture cannot be made ({said}); see the log of scanqueue.") from error


def _check_side(side: int) -> None:
    if not SMALLEST <= side <= LARGEST:
        raise BadSetting(f"side: got {side}, wanted {SMALLEST} to {LARGEST} pixels.")


def _united(labels: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*labels, *more)))


def _label_map(mask: NDArray[Any], task: int) -> Map:
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise UnreadableMask(f"task {task}: what is kept of its mask is damaged ({mask.dtype}, {mask.shape}).")
    return mask


def _fitting(mask: Map, box: Letterboxed, task: int) -> Map:
    """The mask, when it is one of this very scan."""
    if mask.shape != (box.original_height, box.original_width):
        height, width = mask.shape
        raise UnreadableMask(
            f"task {task}: its mask is of {width} x {height} pixels, but the scan has {box.original_width} x "
            f"{box.original_height}: the image was replaced. Label it again in Label Studio."
        )
    return mask


# -- drawing ----------------------------------------------------------------------------------


def _thumbnail(box: Letterboxed, side: int) -> Map:
    """The scan without the padding, its longer side `side`: (h, w) or (h, w, 3) RGB."""
    scale = side / max(box.original_height, box.original_width)
    height, width = (max(1, round(n * scale)) for n in (box.original_height, box.original_width))
    inner = np.ascontiguousarray(box.pixels[box.content])
    shrinking = height * width < inner.shape[0] * inner.shape[1]
    method = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(inner, (width, height), interpolation=method), dtype=np.uint8)


def _shrunk(labels: Map, height: int, width: int) -> Map:
    """A label map at another size, nearest; what is too small to be met by a pixel of it is kept all the same."""
    small = np.asarray(cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)
    if height * width >= labels.size:
        return small
    for number in _classes(labels):
        share = cv2.resize((labels == number).view(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA)
        count, pieces = cv2.connectedComponents((share > 0).view(np.uint8))
        lost = np.ones(count, np.bool_)
        lost[0] = False
        lost[pieces[small == number]] = False
        small[lost[pieces]] = number
    return small


def _classes(labels: Map) -> list[int]:
    """The classes that are in a label map, background left out."""
    return [int(n) for n in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)) if n]


def _outlined(picture: Map, labels: Map) -> Map:
    """(h, w, 3): the picture with the border of every label in its colour; halos first, so that none hides a colour."""
    return _traced(_colour(picture), [(labels == n, COLOURS[(n - 1) % len(COLOURS)]) for n in _classes(labels)])


def _traced(picture: Map, areas: Sequence[tuple[NDArray[np.bool_], str]]) -> Map:
    """The picture, changed: the border of each area in its colour, with a halo of one pixel or more around it."""
    longest = max(picture.shape[:2])
    width = 1 + (longest >= 200) + (longest >= 600)
    lines = []
    for area, colour in areas:
        contours, _ = cv2.findContours(area.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        line = cv2.drawContours(np.zeros(area.shape, np.uint8), contours, -1, 1)
        lines.append((_wider(line, width), colour))
    for line, _ in lines:
        picture[_wider(line, 2 * ((width + 1) // 2) + 1) > 0] = _rgb(HALO)
    for line, colour in lines:
        picture[line > 0] = _rgb(colour)
    return picture


def _wider(line: Any, size: int) -> Any:
    return cv2.dilate(line, np.ones((size, size), np.uint8))


def _differing(picture: Map, one: Map, other: Map) -> Map:
    """(h, w, 3): what `difference` promises; compared at original size, so that nothing is lost in between."""
    height, width = picture.shape[:2]
    kinds = np.zeros(one.shape, np.uint8)
    kinds[(one > 0) & (other == 0)] = 1
    kinds[(one == 0) & (other > 0)] = 2
    kinds[(one > 0) & (other > 0) & (one != other)] = 3
    kinds = _shrunk(kinds, height, width)
    alike = _shrunk(np.where(one == other, one, 0).astype(np.uint8), height, width)
    alike[kinds > 0] = 0
    grey = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    answer = _traced(_colour(np.asarray(grey, dtype=np.uint8)), [(alike == n, BOTH) for n in _classes(alike)])
    for kind, colour in enumerate((ONLY_FIRST, ONLY_SECOND, OTHER_LABEL), start=1):
        answer[kinds == kind] = _rgb(colour)
    return answer


def _colour(picture: Map) -> Map:
    """A copy with three channels."""
    if picture.ndim == 3:
        return picture.copy()
    return np.repeat(picture[..., None], 3, axis=2)


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def _png(picture: Map) -> bytes:
    ordered = np.ascontiguousarray(picture[..., ::-1]) if picture.ndim == 3 else picture  # OpenCV writes BGR
    done, data = cv2.imencode(".png", ordered)
    if not done:
        raise ValueError(f"no PNG of {picture.shape}")
    return bytes(data)
