"""One export, from the tasks in Label Studio to a folder that is there whole or not at all.

One scan is in memory at a time. Of the project only a line per task is held; annotations and masks are asked for,
written and let go.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backend import __version__
from backend.errors import (
    BadSetting,
    CannotCut,
    CannotExport,
    LostSource,
    UnreadableFile,
    UnreadableMask,
    UnreadableScan,
)
from backend.export.collect import Slice, Unit, best, collect, units
from backend.export.manifest import Files, Sections
from backend.export.pictures import COCO, PNG, Pictures
from backend.export.sources import Sources
from backend.export.target import MADE_BY, MANIFEST, Target
from backend.export.volumes import NIFTI, SEG, Place, Volume
from backend.facts import LabelConfig
from backend.formats import cut
from backend.formats.pixels import decode_image
from backend.intake.identities import Identities
from backend.label_studio.client import redact_url
from backend.label_studio.listing import Annotation, OtherAnnotation
from backend.label_studio.masks import read_mask
from backend.label_studio.studio import Studio
from backend.records.store import Store

if TYPE_CHECKING:
    from backend.export.predicted import ModelMasks
    from backend.loop.batch import BatchProcessor

FORMATS = (NIFTI, SEG, PNG, COCO)
VOLUMES = {NIFTI: "NIfTI", SEG: "DICOM SEG"}
SECTIONS = ("scans", "slices", "unlabelled", "problems", "files")
TOLD = 20  # problems that are kept to be shown; all are in the manifest
ANNOTATIONS, MODEL = "annotations", "model"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Problem:
    """What could not be exported. `where`: paths, for the person at the terminal only."""

    what: str
    where: str = ""


@dataclass(frozen=True)
class Summary:
    """What an export wrote: `files` by format and, of a model, by "model/FORMAT"; `problems` are the first TOLD."""

    folder: Path
    moved: Path | None
    scans: int
    slices: int
    unlabelled: int
    files: Counter[str]
    problem_count: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Export:
    """What is exported, and from where.

    formats     of FORMATS; empty: all that fit each scan
    axis        only slices along this axis; ""
    scans       only these scans; ()
    names       also say the names of annotators
    identities  of the scans; None: pictures only
    sources     where the scans' files may lie besides where they were
    store       our records, which know the sizes of pictures; None: pictures are asked for
    model       a version, "active", or "" for no model masks; needs `processor`
    """

    studio: Studio
    project: int
    formats: tuple[str, ...] = ()
    axis: str = ""
    scans: tuple[str, ...] = ()
    names: bool = False
    identities: Identities | None = None
    sources: Sources = field(default_factory=Sources)
    store: Store | None = None
    model: str = ""
    processor: BatchProcessor | None = None

    def run(self, out: Path, *, force: bool = False, progress: Progress = lambda done, total: None) -> Summary:
        """Write the folder `out`.

        Raises BadSetting when it may not be replaced or nothing can be written, NotSegmentable, NotKnown (no such
        model), and what Studio raises; then nothing was written. A scan, slice or annotation that cannot be exported
        is a problem in the summary and the manifest, and the rest goes on.
        """
        for name in self.formats:
            if name not in FORMATS:
                raise BadSetting(f"--format: there is no {name!r}; there are {', '.join(FORMATS)}.")
        if self.formats and not set(self.formats) & {PNG, COCO} and self.identities is None:
            raise BadSetting(
                "--format: NIfTI and DICOM SEG need the identities file that `scanqueue import` wrote: it knows "
                "which files the scans came from. Give it with --identities, or export png and coco."
            )
        target = Target(out, self.project, redact_url(self.studio.url), force=force)
        with target.filling() as folder:
            running = _Run(self, folder)
            try:
                running.all(progress)
            finally:
                running.close()
        return running.summary(target)


class _Run:
    def __init__(self, asked: Export, folder: Path) -> None:
        self.asked = asked
        self.page = asked.studio.project(asked.project)
        self.config = LabelConfig.from_parsed(self.page.parsed_config, asked.project)
        self.model: ModelMasks | None = None
        if asked.model:
            from backend.export.predicted import ModelMasks  # brings torch, which nothing else here needs

            assert asked.processor is not None
            self.model = ModelMasks(asked.processor, asked.project, self.config, asked.model)
        self.people = asked.studio.user_names() if asked.names else {}
        self.formats = frozenset(asked.formats or FORMATS)
        self.manifest = Sections(folder / MANIFEST, SECTIONS)
        self.files = Files(folder, self.manifest)
        self.drawn = self._pictures("", ANNOTATIONS)
        self.predicted = self._pictures("model/", MODEL) if self.model else None
        self.problems: list[Problem] = []
        self.notes: dict[str, None] = {}
        self.scans: set[str] = set()
        self.counts: Counter[str] = Counter()

    def _pictures(self, place: str, of: str) -> Pictures:
        return Pictures(self.files, place, self.config.labels, self.formats, {"of": of})

    def close(self) -> None:
        self.manifest.close()
        for pictures in (self.drawn, self.predicted):
            if pictures is not None:
                pictures.close()

    def all(self, progress: Progress) -> None:
        asked = self.asked
        slices = collect(asked.studio.each_task(asked.project), self.config, axis=asked.axis, scans=asked.scans)
        labelled = [s.task for s in slices if s.annotated]
        annotations = asked.studio.annotations(asked.project, labelled)
        done = 0
        progress(0, len(slices))
        for unit in units(slices):
            self._unit(unit, annotations)
            done += len(unit.slices)
            progress(done, len(slices))
        self._finish()

    # -- one scan -----------------------------------------------------------------------------

    def _unit(self, unit: Unit, annotations: Iterator[Annotation | int]) -> None:
        place = self._place(unit)
        volume = Volume(place) if place else None
        good = 0
        unlabelled: list[Slice] = []
        for _, same in groupby(unit.slices, key=lambda s: (s.scan, s.n) if s.scan else ("", s.task)):
            tasks = list(same)
            found = [a for a in (next(annotations) for s in tasks if s.annotated) if isinstance(a, Annotation)]
            if not found:
                unlabelled.append(tasks[0])
            else:
                good += self._slice(tasks, found, place, volume)
        if unlabelled:
            row: dict[str, Any] = {"tasks": [s.task for s in unlabelled]}
            if unit.scan:
                row = {"scan": unit.scan, "axis": unit.axis, "slices": [s.n for s in unlabelled], **row}
            self.manifest.add("unlabelled", row)
            self.counts["unlabelled"] += len(unlabelled)
        if place is not None and volume is not None:
            self._write(volume, place, unit, "", None)
        if self.model is not None:
            self._predict(unit, place)
        if unit.scan:
            self.scans.add(unit.scan)
            group = next((s.group for s in unit.slices if s.group), "")
            row = {"scan": unit.scan, "axis": unit.axis, **({"group": group} if group else {})}
            row |= {"slices": place.cut.count} if place else {}
            self.manifest.add("scans", {**row, "tasks": len(unit.slices), "labelled": good})

    def _place(self, unit: Unit) -> Place | None:
        """Where the scan belongs; None for pictures of which that is not known."""
        asked = self.asked
        wanted = self.formats & VOLUMES.keys()
        if not unit.scan:
            if wanted and asked.formats:
                self.note("Pictures that `scanqueue import` did not make have no volume: they are PNG and COCO only.")
            return None
        if asked.identities is None:
            if wanted:
                self.note(
                    "NIfTI and DICOM SEG were not written: they need the identities file that `scanqueue import` "
                    "wrote, which knows the files that scans came from. Give it with --identities."
                )
            return None
        record = asked.identities.scan(unit.scan)
        if record is None:
            if wanted:
                self.problem(
                    f"{unit.scan} is not in the identities file, so no volume was written. Give the file that it "
                    "was imported with.",
                    scan=unit.scan,
                )
            return None
        try:
            made = cut(record.geometry, unit.axis)
        except CannotCut as error:
            self.problem(f"{unit.scan}: {error}", scan=unit.scan, axis=unit.axis)
            return None
        fits = frozenset(f for f in wanted if self._fits(f, record.source.kind, record.geometry.regular, unit.scan))
        if not fits or not (self.model or any(s.annotated for s in unit.slices)):
            return Place(record, made)
        try:
            return Place(record, made, asked.sources.find(record), fits)
        except LostSource as error:
            self.problem(str(error), error.where, scan=unit.scan, axis=unit.axis)
            return Place(record, made)

    def _fits(self, form: str, kind: str, regular: bool, scan: str) -> bool:
        why = ""
        if form == SEG and kind != "dicom":
            why = "DICOM SEG refers to DICOM instances, which this scan does not have"
        elif form == NIFTI and not regular:
            why = "its slices are not evenly spaced, which NIfTI cannot say"
        if not why:
            return form != NIFTI or kind != "image" or bool(self.asked.formats)
        if self.asked.formats:
            self.problem(f"{scan} was not written as {VOLUMES[form]}: {why}.", scan=scan)
        elif form == NIFTI:
            self.note(f"{scan} was not written as {VOLUMES[form]}: {why}.")
        return False

    def _write(self, volume: Volume, place: Place, unit: Unit, folder: str, model: ModelMasks | None) -> None:
        which = {"scan": unit.scan, "axis": unit.axis}
        who = f"{model.version} ({model.fingerprint})" if model else ""
        for form in (f for f in FORMATS if f in place.formats):
            try:
                volume.write(
                    form,
                    self.files,
                    f"{folder}{unit.name}",
                    self.config.labels,
                    model={"name": "scanqueue", "version": who} if model else None,
                    description=f"scanqueue {model.version if model else ANNOTATIONS}",
                    facts={"of": MODEL if model else ANNOTATIONS, **which},
                )
            except UnreadableFile as error:
                said = f"{unit.scan} could not be written as {VOLUMES[form]}: its source cannot be read: {error.what}"
                self.problem(said, str(error.path), **which)
            except CannotExport as error:
                said = f"{unit.scan} was not written as {VOLUMES[form]}: {str(error).rstrip('.')}."
                if self.asked.formats:
                    self.problem(said, **which)
                else:
                    self.note(said)

    # -- one slice ----------------------------------------------------------------------------

    def _slice(
        self, tasks: Sequence[Slice], found: Sequence[Annotation], place: Place | None, volume: Volume | None
    ) -> bool:
        """Write the annotation of one slice; False when it cannot be read."""
        counts = best(found)
        one = next(s for s in tasks if s.task == counts.task)
        try:
            self._inside(one, place)
            height, width = place.cut.shape if place else self._size(one, counts)
            mask, remarks = read_mask(counts.result, self.config, height, width)
        except (UnreadableMask, UnreadableScan) as error:
            self.problem(f"{one.name.removesuffix('.png')}, annotation {counts.id}: {error}", **one.which)
            return False
        png = self.drawn.add(one, mask)
        if volume is not None:
            volume.put(one.n, mask)
        row: dict[str, Any] = {**one.which, "annotation": counts.id, **self._who(counts.completed_by)}
        row |= {"submitted_at": counts.created_at, "changed_at": counts.updated_at, "lead_time": counts.lead_time}
        row |= {"ground_truth": counts.ground_truth, "shown": counts.shown_version}
        if others := self._others(counts, found):
            row["others"] = others
        numbers, pixels = np.unique(mask, return_counts=True)
        row["pixels"] = {str(n): int(p) for n, p in zip(numbers, pixels, strict=True) if n}
        if remarks:
            row["remarks"] = remarks
            self.note(f"Regions were left out of {one.name.removesuffix('.png')}: {remarks[0]}")
        if png:
            row["png"] = png
        self.manifest.add("slices", row)
        return True

    def _others(self, counts: Annotation, found: Sequence[Annotation]) -> list[dict[str, Any]]:
        """The annotations that did not count, oldest first; with their task where it is another one."""
        rows = [(a.task, other) for a in found for other in a.others]
        for a in found:
            if a is not counts:
                rows.append(
                    (a.task, OtherAnnotation(a.id, a.created_at, a.completed_by, a.ground_truth, skipped=False))
                )
        return [
            {
                "annotation": other.id,
                **({"task": task} if task != counts.task else {}),
                **self._who(other.completed_by),
                "submitted_at": other.created_at,
                "ground_truth": other.ground_truth,
                "skipped": other.skipped,
            }
            for task, other in sorted(rows, key=lambda r: r[1].id)
        ]

    def _who(self, user: int | None) -> dict[str, Any]:
        return {"user": user, **({"name": self.people[user]} if user in self.people else {})}

    def _inside(self, one: Slice, place: Place | None) -> None:
        if place is not None and one.n >= place.cut.count:
            raise UnreadableMask(
                f"its task says slice {one.n} (from 0), but the scan has {place.cut.count} along this axis. "
                "Its data was changed in Label Studio."
            )

    def _size(self, one: Slice, annotation: Annotation) -> tuple[int, int]:
        """Rows and columns of a task's picture: as recorded, else from the picture itself."""
        row = self.asked.store.scan(self.asked.project, one.task) if self.asked.store else None
        if row is not None and row["height"] and row["image"] == one.image:
            return int(row["height"]), int(row["width"])
        try:
            height, width = decode_image(self.asked.studio.image(one.image)).shape[:2]
            return height, width
        except UnreadableScan:
            sizes = {(r.get("original_height"), r.get("original_width")) for r in annotation.result}
            (size,) = sizes if len(sizes) == 1 else ((None, None),)
            if all(isinstance(side, int) and 0 < side < 2**15 for side in size):
                return size  # type: ignore[return-value]
            raise

    # -- a model's masks ----------------------------------------------------------------------

    def _predict(self, unit: Unit, place: Place | None) -> None:
        assert self.model is not None
        assert self.predicted is not None
        volume = Volume(place) if place else None
        firsts = [next(same) for _, same in groupby(unit.slices, key=lambda s: (s.n, "" if s.scan else s.task))]
        for one, mask, how in self.model.of(firsts):
            name = one.name.removesuffix(".png")
            if mask is None:
                self.problem(f"{name}: {how}", of=MODEL, **one.which)
                continue
            if place is not None and (mask.shape != place.cut.shape or one.n >= place.cut.count):
                self.problem(f"{name}: the model's mask has another size than the slice.", of=MODEL, **one.which)
                continue
            self.predicted.add(one, mask)
            self.counts[how] += 1
            if volume is not None:
                volume.put(one.n, mask)
        if place is not None and volume is not None:
            self._write(volume, place, unit, "model/", self.model)

    # -- the manifest -------------------------------------------------------------------------

    def note(self, text: str) -> None:
        if len(self.notes) < TOLD:
            self.notes[text] = None

    def problem(self, what: str, where: str = "", /, **which: Any) -> None:
        self.manifest.add("problems", {**which, "what": what})
        if len(self.problems) < TOLD:
            self.problems.append(Problem(what, where))

    def _finish(self) -> None:
        asked = self.asked
        made = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
        info: dict[str, Any] = {
            "description": f"Annotations of project {asked.project}",
            "version": __version__,
            "date_created": made,
            "year": int(made[:4]),
            "contributor": MADE_BY,
            "url": "",
        }
        self.drawn.finish(info)
        head: dict[str, Any] = {
            "made_by": MADE_BY,
            "scanqueue": __version__,
            "made_at": made,
            "project": {
                "id": asked.project,
                "title": self.page.title,
                "label_studio": redact_url(asked.studio.url),
            },
            "labels": [{"number": n, "name": name} for n, name in enumerate(self.config.labels, start=1)],
            "formats": [f for f in FORMATS if f in self.formats],
            "only": {"axis": asked.axis or None, "scans": list(asked.scans)},
            "model": None,
        }
        if self.model is not None and self.predicted is not None:
            description = f"Masks by the model {self.model.version} of project {asked.project}"
            self.predicted.finish(info | {"description": description})
            masks = {how: self.counts[how] for how in ("stored", "shown", "drawn")}
            head["model"] = self.model.facts() | {"masks": masks}
        head["notes"] = list(self.notes)
        self.manifest.write(head)

    def summary(self, target: Target) -> Summary:
        counts = self.manifest.counts
        return Summary(
            folder=target.out,
            moved=target.moved,
            scans=len(self.scans),
            slices=counts["slices"],
            unlabelled=self.counts["unlabelled"],
            files=self.files.kinds,
            problem_count=counts["problems"],
            problems=tuple(self.problems),
            notes=tuple(self.notes),
        )
