"""Masks of other programs as annotations or pre-annotations, one scan at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import CannotCut, StudioUnavailable, UnreadableFile
from backend.facts import IMPORTED_MASKS
from backend.formats import Cut, LabelPicture, MaskFile, MaskMisfit, Segment, open_mask
from backend.formats.pixels import classes_in
from backend.intake.existing_tasks import PATIENCE, PAUSE
from backend.intake.files import walk
from backend.intake.identities import Identities
from backend.intake.leftovers import Leftovers
from backend.intake.request import Tally
from backend.intake.slicing import Problem
from backend.label_config import LabelConfig
from backend.label_studio.drawing import draw_mask, imported_result
from backend.label_studio.listing import TaskRow
from backend.label_studio.masks import read_mask
from backend.label_studio.studio import Studio
from backend.mask_import.coco import open_coco
from backend.mask_import.exports import Place
from backend.mask_import.labels import LabelMatcher, parse_label_map
from backend.mask_import.matching import Matching, PictureMask, ScanMasks
from backend.mask_import.paint import LabelMap
from backend.mask_import.request import ANNOTATIONS, MaskRequest, MaskTally

EXACT = 0.95  # minimum Dice between a mask and what the project's tags can draw of it
BATCH = 50  # predictions per request

Progress = Callable[[int, int], None]
Mask = MaskFile | PictureMask
Structure = tuple[Segment, NDArray[np.bool_]]


def run(
    request: MaskRequest,
    studio: Studio,
    *,
    progress: Progress = lambda done, total: None,
    stopped: Callable[[], bool] = lambda: False,
) -> MaskTally:
    """Import masks. A mask that cannot be read, or does not fit, is a problem; the others are imported.

    A slice that already has an annotation (or a prediction of an earlier import) keeps it: the same command resumes.

    Raises BadSetting if an argument is invalid, BadIdentities, NotSegmentable, and the errors of Studio.
    """
    config = studio.project(request.project).masks_config(request.project, request.image)
    chosen = parse_label_map(request.label_map, config.labels, config.aliases)
    labels = LabelMatcher(config.labels, chosen, config.aliases)
    with Identities(request.identities, must_exist=True) as identities:
        matching = Matching(studio, request.project, identities, labels)
        importing = _MaskImport(request, studio, config, labels, matching)
        importing.find(stopped)
        found = [scan for scan in matching.scans.values() if scan.volumes or scan.pictures]
        importing.tally.scans = len(found)
        for done, scan in enumerate(found):
            if stopped():
                break
            progress(done, len(found))
            importing.scan(scan)
        importing.send()
        importing.say_order()
        progress(len(found), len(found))
    return importing.tally


def mask_step(request: MaskRequest) -> Callable[[Studio, Tally, Callable[[], bool]], None]:
    """The import of masks as a step after that of the scans: its problems and remarks join theirs."""

    def step(studio: Studio, tally: Tally, stopped: Callable[[], bool]) -> None:
        if request.dry_run and tally.made:
            what = "the masks were not checked, because they need the scans, which a dry run does not import."
            tally.remarks += [Problem(path, what, one=False) for path in request.paths]
            return
        found = run(request, studio, stopped=stopped)
        tally.problems += found.problems
        tally.remarks += found.remarks
        tally.masks = found.counts()

    return step


@dataclass(frozen=True)
class Painted:
    """Label numbers, and the labels that the files say something about."""

    values: NDArray[np.uint8]
    spoken: frozenset[str]


class _MaskImport:
    def __init__(
        self, request: MaskRequest, studio: Studio, config: LabelConfig, labels: LabelMatcher, matching: Matching
    ) -> None:
        self.request = request
        self.studio = studio
        self.config = config
        self.labels = labels
        self.matching = matching
        self.tally = MaskTally()
        self._predicted = {} if request.kind == ANNOTATIONS else studio.published(request.project, IMPORTED_MASKS)
        self._annotated: set[int] = set()
        self._rows: list[dict[str, Any]] = []

    # -- which scan each mask belongs to ----------------------------------------------------

    def find(self, stopped: Callable[[], bool]) -> None:
        """Open every file and give its masks to their scans."""
        given = [path.resolve() for path in self.request.paths]
        others, parts = Leftovers(), set[Path]()
        for path in walk(self.request.paths):
            if stopped():
                return
            if self.matching.exports.is_of_model(path, given):
                self._remark(path, "a model drew it, so it was left out; pass the folder `model` to import it")
                continue
            if self.matching.is_scan(path):
                continue
            try:
                if not self._add(path, parts):
                    others.add(path)
            except UnreadableFile as error:
                self._problem(error)
        others.claim(parts)
        self.tally.problems += others.problems(nothing=False)
        if not (self.tally.files or self.tally.problems or self.tally.remarks):
            what = "contains no masks; pass NIfTI, NRRD, DICOM SEG, RTSTRUCT, PNG or COCO files"
            self.tally.problems += [Problem(path, what) for path in self.request.paths]

    def _add(self, path: Path, parts: set[Path]) -> bool:
        """Give the masks in a file to their scans; whether it contains any.

        parts  the other files of a mask are added to it
        """
        if path.is_dir():
            raise UnreadableFile(path, "the folder cannot be opened; check its permissions")
        if path.suffix.lower() == ".json":
            pictures = open_coco(path)
            for picture in pictures or ():
                try:
                    self.matching.add_picture(picture)
                except UnreadableFile as error:
                    self._problem(error)
            self.tally.files += pictures is not None
            return pictures is not None
        try:
            mask = open_mask(path)
        except UnreadableFile:
            self.matching.miss(path)
            raise
        if mask is None:
            return False
        if isinstance(mask, LabelPicture):
            self.matching.add_picture(mask)
        else:
            parts.update(mask.files[1:])
            self.matching.add_volume(mask)
        self.tally.files += 1
        return True

    # -- one scan ---------------------------------------------------------------------------

    def scan(self, scan: ScanMasks) -> None:
        """Write the masks of a scan for each of its tasks. If one of its volumes is not understood, none is written."""
        if scan.unread:
            first = next(iter([*scan.volumes, *(mask for masks in scan.pictures.values() for mask in masks)]))
            what = (
                "was not imported, as another mask of its scan cannot be read. Repair or remove that, and import again"
            )
            self._problem(UnreadableFile(first.path, what))
            return
        self._annotated = self._annotated_now(scan)
        try:
            cuts = scan.cuts()
            shown = {
                axis: tuple(v for v in scan.volumes if self.matching.exports.shows(v.path, scan.record, axis))
                for axis in cuts
            }
            for volumes in dict.fromkeys(shown.values()):
                painted = self._painted(
                    scan.record.geometry.shape,
                    [(v, v.onto(scan.grid, without=self.labels.left_out(v.named, v.path))) for v in volumes],
                )
                axes = {axis: made for axis, made in cuts.items() if shown[axis] == volumes}
                self._slices(scan, axes, volumes, painted)
        except UnreadableFile as error:
            self._problem(error)
            return
        except CannotCut as error:
            self.tally.problems.append(Problem(scan.record.source.files[0], str(error)))
            return
        for volume in scan.volumes:
            if not any(volume in volumes for volumes in shown.values()):
                self._remark(volume.path, "its slices were labelled along another axis than those of this project.")

    def _slices(self, scan: ScanMasks, cuts: Mapping[str, Cut], volumes: Sequence[MaskFile], painted: Painted) -> None:
        """Write the masks for the tasks along some axes."""
        self._count_absent(scan, cuts, painted.values if volumes else None)
        for place, tasks in sorted(scan.tasks.items()):
            masks = scan.pictures.get(place, [])
            if place[0] not in cuts or not (volumes or masks):
                continue
            try:
                picture = self._painted(cuts[place[0]].shape, [(mask, mask.read()) for mask in masks])
            except UnreadableFile as error:
                self._problem(error)
                continue
            drawn = picture.values.copy()
            if volumes:
                below = cuts[place[0]].take(painted.values, place[1])
                drawn[drawn == 0] = below[drawn == 0]
            self._slice(scan, place, tasks, drawn, [*volumes, *masks], painted.spoken | picture.spoken)

    def _painted(self, shape: tuple[int, ...], masks: Sequence[tuple[Mask, Iterable[Structure]]]) -> Painted:
        """The structures of some files. Raises UnreadableFile if one is not understood."""
        painted = LabelMap(shape, self.config.labels)
        spoken: set[str] = set()
        unknown: dict[str, UnreadableFile] = {}
        by_order = not any(not mask.named and self.labels.of_path(mask.path)[1] for mask, _ in masks)
        for mask, structures in masks:
            spoken |= self.labels.speaks_of(mask.named, mask.path)
            for segment, voxels in structures:
                if voxels.shape != shape:
                    sizes = [" x ".join(map(str, one[::-1])) for one in (voxels.shape, shape)]
                    raise MaskMisfit(mask.path, f"does not fit: it has {sizes[0]} pixels, the picture {sizes[1]}")
                try:
                    label = self.labels.label(segment, mask.path, by_order=by_order)
                except UnreadableFile as error:
                    unknown[error.what] = error
                    continue
                if label:
                    painted.paint(label, voxels)
                    spoken.add(label)
        while len(unknown) > 1:  # all of them at once: a structure set may have dozens
            self._problem(unknown.pop(next(iter(unknown))))
        for last in unknown.values():
            raise last
        for label in painted.hidden():
            self._remark(masks[0][0].path, f"more than half of {label!r} lies below other labels, which hide it.")
        return Painted(painted.values, frozenset(spoken))

    def _count_absent(self, scan: ScanMasks, cuts: Mapping[str, Cut], volume: NDArray[np.uint8] | None) -> None:
        """Count slices on which something is drawn, but which have no task."""
        if volume is None:
            return
        for axis, slices in cuts.items():
            for n in range(slices.count):
                self.tally.absent += (axis, n) not in scan.tasks and bool(slices.take(volume, n).any())

    def _slice(
        self,
        scan: ScanMasks,
        place: Place,
        tasks: Sequence[TaskRow],
        drawn: NDArray[np.uint8],
        files: Sequence[Mask],
        spoken: frozenset[str],
    ) -> None:
        key = (scan.record.scan, *place)
        spoken = frozenset(self.config.labels) if self.request.complete else spoken
        if not drawn.any():
            looked = any(place in self.matching.exports.labelled(mask.path, scan.record.scan) for mask in files)
            if not (self.request.complete or looked) or spoken < set(self.config.labels):
                self.tally.empty += len(tasks)
                return
        origin = ":".join(map(str, ("masks", *key)))
        result = draw_mask(drawn, self.config.labels, self.config, origin, exact=True)
        if self._approximates(files[0].path, result, drawn):
            return
        for task in tasks:
            if self._is_there(task):
                self.tally.there += 1
                continue
            if not self.request.dry_run:
                self._write(task.task, result, spoken)
            self.tally.made += 1

    def _approximates(self, path: Path, result: list[dict[str, Any]], drawn: NDArray[np.uint8]) -> bool:
        """Whether the project's tags cannot draw the mask, which is then a problem."""
        read, _ = read_mask(result, self.config, drawn.shape[0], drawn.shape[1])
        for number in classes_in(drawn):
            ours, theirs = read == number, drawn == number
            if 2 * (ours & theirs).sum() < EXACT * (ours.sum() + theirs.sum()):
                label = self.config.labels[number - 1]
                what = (
                    f"has a mask of {label!r} that the label config cannot draw: its tag draws only "
                    f"{self.config.tag_of(label).kind}s. Add BrushLabels with this label to the config"
                )
                self.tally.problems.append(Problem(path, what))
                return True
        return False

    # -- Label Studio -----------------------------------------------------------------------

    def _is_there(self, task: TaskRow) -> bool:
        return task.task in (self._annotated if self.request.kind == ANNOTATIONS else self._predicted)

    def _annotated_now(self, scan: ScanMasks) -> set[int]:
        """The tasks of a scan with an annotation, also of those who annotate while this import runs."""
        if self.request.kind != ANNOTATIONS:
            return set()
        return self.studio.annotated(self.request.project, [t.task for tasks in scan.tasks.values() for t in tasks])

    def _write(self, task: int, result: list[dict[str, Any]], spoken: frozenset[str]) -> None:
        if self.request.kind != ANNOTATIONS:
            self._rows.append({"task": task, "model_version": IMPORTED_MASKS, "score": None, "result": result})
            if len(self._rows) >= BATCH:
                self.send()
            return
        unknown = set(self.config.labels) - spoken
        body = imported_result(result, [label for label in self.config.labels if label in spoken] if unknown else None)
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self.studio.add_annotation(task, body, ground_truth=self.request.ground_truth)
                return
            except StudioUnavailable:
                if time.monotonic() > until:
                    raise
            time.sleep(PAUSE)
            with suppress(StudioUnavailable):
                if any(not isinstance(found, int) for found in self.studio.annotations(self.request.project, [task])):
                    return  # the request arrived

    def send(self) -> None:
        """Send the predictions that are waiting."""
        if self._rows:
            self.studio.import_predictions(self.request.project, self._rows)
        self._rows = []

    def say_order(self) -> None:
        """Remark which numbers got their labels by the order of the label config only, if anything was drawn so."""
        pairs = ", ".join(f"{number} = {label}" for number, label in sorted(self.labels.by_order.items()))
        if pairs and self.tally.made:
            became, delete = "became", f"delete these {self.request.kind} and "
            if self.request.dry_run:
                became, delete = "would become", ""
            what = f"numbers without names {became} the labels in the order of the config: {pairs}."
            cure = f"If that is wrong, {delete}use --label-map."
            self.tally.remarks.append(Problem(self.request.paths[0], f"{what} {cure}", one=False))

    def _problem(self, error: UnreadableFile) -> None:
        self.tally.problems.append(Problem(error.path, error.what, shown=error.shown))

    def _remark(self, path: Path, what: str) -> None:
        self.tally.remarks.append(Problem(path, what))
