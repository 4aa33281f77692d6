"""Runs one export, from the tasks in Label Studio to a folder that is written completely or not at all.

One scan is in memory at a time, plus one line for each task of the project.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend import __version__
from backend.errors import BadSetting, CannotExport, UnreadableFile
from backend.export.annotated import AnnotatedSlices
from backend.export.collect import Slice, Unit, collect, units
from backend.export.location import VOLUMES, Locator
from backend.export.outcome import ANNOTATIONS, MODEL, Outcome, Summary
from backend.export.pictures import COCO, PNG, Pictures
from backend.export.sources import Sources
from backend.export.target import MADE_BY, Target
from backend.export.volumes import NIFTI, RTSTRUCT, SEG, Place, Volume
from backend.intake.identities import Identities
from backend.label_studio.client import redact_url
from backend.label_studio.listing import Annotation
from backend.label_studio.studio import Studio
from backend.loop.project_settings import row_settings
from backend.records.store import Store

if TYPE_CHECKING:
    from backend.export.predicted import ModelMasks
    from backend.loop.batch import BatchProcessor

DEFAULT_FORMATS = (NIFTI, SEG, PNG, COCO)
FORMATS = (*DEFAULT_FORMATS, RTSTRUCT)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Export:
    """What is exported, and from where.

    formats     some of FORMATS; empty: those of DEFAULT_FORMATS that suit each scan
    axis        export only slices along this axis; "": all axes
    scans       export only these scans; (): all
    names       include annotators' names
    identities  of the scans; None: no volumes
    sources     finds the scans' source files, moved ones included
    store       the records, which know image sizes; None: images are fetched
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

        A scan, slice or annotation that cannot be exported becomes a problem in the summary and the manifest;
        everything else is exported.

        Raises BadSetting if `out` may not be replaced or an argument is invalid, NotSegmentable, NotKnown if the
        model does not exist, and the errors of Studio. In these cases nothing is written.
        """
        for name in self.formats:
            if name not in FORMATS:
                raise BadSetting(f"--format: unknown format {name!r}; expected one of {', '.join(FORMATS)}.")
        if self.formats and not set(self.formats) & {PNG, COCO} and self.identities is None:
            raise BadSetting(
                "--format: NIfTI, DICOM SEG and RTSTRUCT need the identities file of `scanqueue import`, which records "
                "the source files of each scan. Use --identities, or export png and coco."
            )
        target = Target(out, self.project, redact_url(self.studio.url), force=force)
        with target.filling() as folder:
            running = _Run(self, folder)
            try:
                running.all(progress)
            finally:
                running.close()
        return running.outcome.summary(target.out, target.moved)


def _image(export: Export) -> str:
    """The project's setting `image`, where records are at hand."""
    row = export.store.project(export.project) if export.store else None
    return row_settings(dict(row)).image if row else ""


def _firsts(unit: Unit) -> list[Slice]:
    """The slices of a unit without further tasks of the same slice."""
    return [next(same) for _, same in groupby(unit.slices, key=lambda s: (s.n, "" if s.scan else s.task))]


class _Run:
    def __init__(self, export: Export, folder: Path) -> None:
        self.export = export
        self.page = export.studio.project(export.project)
        self.config = self.page.masks_config(export.project, _image(export))
        self.model: ModelMasks | None = None
        if export.model:
            from backend.export.predicted import ModelMasks  # imports torch, which nothing else here needs

            assert export.processor is not None
            self.model = ModelMasks(export.processor, export.project, self.config, export.model)
        people = export.studio.user_names() if export.names else {}
        self.formats = frozenset(export.formats or DEFAULT_FORMATS)
        self.outcome = Outcome(folder)
        self.drawn = self._pictures("", ANNOTATIONS)
        self.predicted = self._pictures("model/", MODEL) if self.model else None
        self.locator = Locator(
            self.formats,
            export.identities,
            export.sources,
            self.outcome,
            explicit=bool(export.formats),
            model=self.model is not None,
        )
        self.annotated = AnnotatedSlices(
            export.studio, export.project, self.config, export.store, people, self.drawn, self.outcome
        )

    def _pictures(self, folder: str, of: str) -> Pictures:
        return Pictures(self.outcome.files, folder, self.config.labels, self.formats, {"of": of})

    def close(self) -> None:
        self.outcome.manifest.close()
        for pictures in (self.drawn, self.predicted):
            if pictures is not None:
                pictures.close()

    def all(self, progress: Progress) -> None:
        export = self.export
        tasks = export.studio.each_task(export.project)
        slices = collect(tasks, self.config, export.project, axis=export.axis, scans=export.scans)
        labelled = [s.task for s in slices if s.annotated]
        annotations = export.studio.annotations(export.project, labelled)
        done = 0
        progress(0, len(slices))
        if self.model is not None:
            self.model.prepare([first for unit in units(slices) for first in _firsts(unit)])
        for unit in units(slices):
            self._unit(unit, annotations)
            done += len(unit.slices)
            progress(done, len(slices))
        self._finish()

    # -- one scan -----------------------------------------------------------------------------

    def _unit(self, unit: Unit, annotations: Iterator[Annotation | int]) -> None:
        place = self.locator.place(unit)
        volume = Volume(place) if place else None
        written = 0
        unlabelled: list[Slice] = []
        for _, same in groupby(unit.slices, key=lambda s: (s.scan, s.n) if s.scan else ("", s.task)):
            tasks = list(same)
            found = [a for a in (next(annotations) for s in tasks if s.annotated) if isinstance(a, Annotation)]
            if not found:
                unlabelled.append(tasks[0])
            else:
                written += self.annotated.write(tasks, found, place, volume)
        if unlabelled:
            self._list_unlabelled(unit, unlabelled)
        if place is not None and volume is not None:
            self._write(volume, place, unit, "", None)
        if self.model is not None:
            self._predict(unit, place)
        if unit.scan:
            self._list_scan(unit, place, written)

    def _list_unlabelled(self, unit: Unit, unlabelled: list[Slice]) -> None:
        row: dict[str, Any] = {"tasks": [s.task for s in unlabelled]}
        if unit.scan:
            row = {"scan": unit.scan, "axis": unit.axis, "slices": [s.n for s in unlabelled], **row}
        self.outcome.manifest.add("unlabelled", row)
        self.outcome.counts["unlabelled"] += len(unlabelled)

    def _list_scan(self, unit: Unit, place: Place | None, labelled: int) -> None:
        if labelled:
            self.outcome.scans.add(unit.scan)
        group = next((s.group for s in unit.slices if s.group), "")
        row: dict[str, Any] = {"scan": unit.scan, "axis": unit.axis, **({"group": group} if group else {})}
        row |= {"slices": place.cut.count} if place else {}
        self.outcome.manifest.add("scans", {**row, "tasks": len(unit.slices), "labelled": labelled})

    def _write(self, volume: Volume, place: Place, unit: Unit, folder: str, model: ModelMasks | None) -> None:
        which = {"scan": unit.scan, "axis": unit.axis}
        who = f"{model.version} ({model.fingerprint})" if model else ""
        for form in (f for f in FORMATS if f in place.formats):
            try:
                volume.write(
                    form,
                    self.outcome.files,
                    f"{folder}{unit.name}",
                    self.config.labels,
                    model={"name": "scanqueue", "version": who} if model else None,
                    description=f"scanqueue {model.version if model else ANNOTATIONS}",
                    facts={"of": MODEL if model else ANNOTATIONS, **which},
                )
            except UnreadableFile as error:
                what = f"{unit.scan} could not be written as {VOLUMES[form]}: its source is unreadable: {error.what}"
                self.outcome.problem(what, str(error.path), **which)
            except CannotExport as error:
                what = f"{unit.scan} was not written as {VOLUMES[form]}: {str(error).rstrip('.')}."
                self.outcome.problem(what, **which)

    # -- a model's masks ----------------------------------------------------------------------

    def _predict(self, unit: Unit, place: Place | None) -> None:
        assert self.model is not None
        assert self.predicted is not None
        volume = Volume(place) if place else None
        for one, mask, how in self.model.of(_firsts(unit)):
            name = one.name.removesuffix(".png")
            if mask is None:
                self.outcome.problem(f"{name}: {how}", of=MODEL, **one.which)
                continue
            if place is not None and (mask.shape != place.cut.shape or one.n >= place.cut.count):
                self.outcome.problem(f"{name}: the model's mask and the slice differ in size.", of=MODEL, **one.which)
                continue
            self.predicted.add(one, mask)
            self.outcome.counts[how] += 1
            if volume is not None:
                volume.put(one.n, mask)
        if place is not None and volume is not None:
            self._write(volume, place, unit, "model/", self.model)

    # -- the manifest -------------------------------------------------------------------------

    def _finish(self) -> None:
        export = self.export
        made = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
        info: dict[str, Any] = {
            "description": f"Annotations of project {export.project}",
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
                "id": export.project,
                "title": self.page.title,
                "label_studio": redact_url(export.studio.url),
            },
            "labels": [{"number": n, "name": name} for n, name in enumerate(self.config.labels, start=1)],
            "formats": [f for f in FORMATS if f in self.formats],
            "only": {"axis": export.axis or None, "scans": list(export.scans)},
            "model": None,
        }
        if self.model is not None and self.predicted is not None:
            description = f"Masks by the model {self.model.version} of project {export.project}"
            self.predicted.finish(info | {"description": description})
            masks = {how: self.outcome.counts[how] for how in ("stored", "shown", "drawn")}
            head["model"] = self.model.facts() | {"masks": masks}
        head["notes"] = list(self.outcome.notes)
        self.outcome.manifest.write(head)
