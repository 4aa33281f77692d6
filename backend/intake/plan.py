"""Which scans a source makes and which of their slices are missing: pseudonyms, slice numbers, task data.

A slice number never changes its meaning. A DICOM series that has grown since its import keeps its numbers. If all new
slices follow the last one and only slices as acquired were imported, the scan continues its numbering; otherwise the
new slices become a separate scan of the same patient. Cuts across the slices (coronal ones of an axial series) would
all show different pictures, so a series that has grown is not cut that way again.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from backend.errors import BadSetting, CannotCut
from backend.formats import AXES, Cut, Geometry, Source, Window, cut, read_geometry
from backend.intake.existing_tasks import ExistingTasks
from backend.intake.identities import Identities, ScanRecord
from backend.intake.slicing import IdentifiedSource, Problem, SliceJob, digest, subset

# DICOM PS3.3 C.7.3.1.1.1; any other value of that field may be a name
MODALITIES = frozenset(
    re.findall(
        r"\w+",
        """
        ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DMS DG DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT
        IVUS KER KO LEN LS MG MR M3D NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG
        RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA
        XA XAPROTOCOL XC
        """,
    )
)
GROUPS = ("none", "folder", "file")


@dataclass(frozen=True)
class ImportOptions:
    """Which slices to import, and how.

    axis      one of formats.AXES
    every     only every N-th slice
    best      only this many slices per scan, the most informative ones
    time      number of the volume in a time series
    window    "CENTER,WIDTH"; name of a preset in the header; "percentile"; "auto": the header's first preset, else
              percentiles
    site      text for the task data; "": the institution's pseudonym
    modality  replaces the header's
    group_by  how to group plain files, which name no patient: one of GROUPS
    careful   skip scans with text in their pixels

    Raises BadSetting if a value is invalid.
    """

    axis: str = "acquisition"
    every: int | None = None
    best: int | None = None
    time: int | None = None
    window: str = "auto"
    site: str = ""
    modality: str = ""
    group_by: str = "none"
    careful: bool = False

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise BadSetting(f"--axis: got {self.axis!r}, expected one of {', '.join(AXES)}.")
        if self.every is not None and self.best is not None:
            raise BadSetting("--every and --best both select slices; use only one of them.")
        if self.group_by not in GROUPS:
            raise BadSetting(f"--group-by: got {self.group_by!r}, expected one of {', '.join(GROUPS)}.")
        self.shown  # noqa: B018

    @property
    def shown(self) -> Window | str | None:
        """`window` as formats.choose_window takes it."""
        if self.window.strip().lower() in ("", "auto"):
            return None
        center, comma, width = self.window.partition(",")
        try:
            found = Window(float(center), float(width)) if comma else None
        except ValueError:
            found = None
        if found is None:
            return self.window
        if not (math.isfinite(found.center) and math.isfinite(found.width) and found.width >= 1):
            raise BadSetting(
                f"--window: got {self.window!r}, expected CENTER,WIDTH with a width of at least 1, for example 40,400."
            )
        return found


@dataclass(frozen=True)
class Scan:
    """One scan of a source, and what its tasks have in common.

    record     its record for the identities; not yet written
    slices     the cut of the whole scan
    source     the files that exist now, of all slices or of some
    numbering  slice number of each position in `source`; () if they are equal
    chosen     numbers of the selected slices; () with `best`
    missing    those of them without a task; () with `best`
    best       number of slices to select by content; 0: none
    data       task data without image, slice and window
    """

    record: ScanRecord
    slices: Cut
    source: Source
    numbering: tuple[int, ...]
    chosen: tuple[int, ...]
    missing: tuple[int, ...]
    best: int
    data: Mapping[str, Any]

    @property
    def complete(self) -> bool:
        """Whether every selected slice has a task."""
        return not self.missing and not self.best

    def job(self, options: ImportOptions, existing: ExistingTasks, folder: Path) -> SliceJob:
        """The job for a worker process; for a long series with only the files it needs."""
        scan, axis = self.record.scan, self.slices.axis
        source, numbering = self.source, self.numbering
        by_file = bool(numbering) or _by_file(source, self.slices)
        numbers = numbering or tuple(range(len(source.files)))
        if by_file and not self.best and len(self.missing) < len(numbers):
            missing = set(self.missing)
            places = [place for place, number in enumerate(numbers) if number in missing]
            source, numbering = subset(source, places), tuple(numbers[place] for place in places)
        return SliceJob(
            scan=scan,
            source=source,
            time=self.record.time,
            axis=axis,
            numbering=numbering,
            wanted=self.missing,
            best=self.best,
            existing=existing.numbers(scan, axis),
            window=options.shown,
            shown=existing.window(scan, axis),
            folder=folder,
            by_file=by_file,
            careful=options.careful,
        )


def plan(
    found: IdentifiedSource,
    options: ImportOptions,
    identities: Identities,
    existing: ExistingTasks,
    *,
    remember: bool = True,
) -> Iterator[Scan | Problem]:
    """The scans that a source makes: one, or more if it grew between imports.

    remember  whether to store pseudonyms

    Raises CannotCut, UnreadableFile.
    """
    about = _SourcePlan(found, options, identities, existing, remember)
    source = found.source
    if not _in_instances(source):
        value = f"sha256 {found.digest}"
        known = identities.scan(about.name(value))
        single = about.record(value, source, found.geometry) if known is None else replace(known, source=source)
        yield about.scan(single, source)
        return
    records = [
        record
        for record in identities.scans_with_instances(source.instances)
        if (record.time, record.source.part) == (found.time, source.part) and not _elsewhere(record, found)
    ]
    if not records:
        value = f"series {source.uid}"
        if identities.scan(about.name(value)) is not None:  # used by other files of the same series
            value = _part_name(source)
        yield about.scan(about.record(value, source, found.geometry), source)
        return
    claimed = {instance for record in records for instance in record.source.instances}
    fresh = [place for place, instance in enumerate(source.instances) if instance not in claimed]
    if fresh and len(records) == 1 and _continues(records[0], found, options.axis):
        grown = replace(records[0], source=source, digest=found.digest, geometry=found.geometry)
        yield about.scan(grown, source)
        return
    here = dict(zip(source.instances, source.files, strict=True))
    for record in records:
        before = record.source
        files = tuple(here.get(i, file) for i, file in zip(before.instances, before.files, strict=True))
        record = replace(record, source=replace(before, files=files))
        places = tuple(place for place, instance in enumerate(before.instances) if instance in here)
        if len(places) < len(files) and _by_file(record.source, cut(record.geometry, options.axis)):
            yield about.scan(record, subset(record.source, places), places)
        else:
            yield about.scan(record, record.source)
    if not fresh:
        return
    if _by_file(source, cut(found.geometry, options.axis)):
        part = subset(source, fresh)
        yield about.scan(about.record(_part_name(part), part, read_geometry(part, time=found.time)), part)
    else:
        yield Problem(
            source.files[fresh[0]],
            f"its series has grown by {len(fresh)} slices since it was imported, so its {options.axis} cuts would be "
            "different pictures. Those in Label Studio stay; import the new slices with --axis acquisition.",
        )


class _SourcePlan:
    """What the scans of one source have in common."""

    def __init__(
        self,
        found: IdentifiedSource,
        options: ImportOptions,
        identities: Identities,
        existing: ExistingTasks,
        remember: bool,
    ) -> None:
        self.found = found
        self.options = options
        self.identities = identities
        self.existing = existing
        self.remember = remember
        self.modality = options.modality or _modality(found.header.modality)
        institution = found.header.institution.strip()
        self.site = options.site or (self._pseudonym("site", institution) if institution else "")
        self.patient = self._patient()

    def _pseudonym(self, kind: str, value: str) -> str:
        return self.identities.pseudonym(kind, value, remember=self.remember)

    def _patient(self) -> str:
        """The group that must stay together: patient; else study or series, and name; plain files: see `group_by`."""
        header, source = self.found.header, self.found.source
        if header.patient_id.strip():
            return self._pseudonym("patient", f"id {header.patient_id.strip()}")
        if source.kind == "dicom":
            study, name = header.study.strip(), header.patient_name.strip()
            whose = f"study {study}" if study else f"series {source.uid or self.found.digest}"
            return self._pseudonym("patient", whose + (f" name {name}" if name else ""))
        if self.options.group_by == "folder":
            return self._pseudonym("patient", f"folder {source.files[0].absolute().parent}")
        if self.options.group_by == "file":
            return self._pseudonym("patient", f"file {self.found.digest}")
        return ""

    def name(self, value: str) -> str:
        """The pseudonym of a scan, derived from its content and the selected time."""
        at = "" if self.found.time is None else f" time {self.found.time}"
        return self._pseudonym("scan", value + at)

    def record(self, value: str, source: Source, geometry: Geometry) -> ScanRecord:
        """The record of a new scan."""
        same = source.instances == self.found.source.instances
        return ScanRecord(
            scan=self.name(value),
            source=source,
            digest=self.found.digest if same else digest(source),
            geometry=geometry,
            time=self.found.time,
            modality=self.modality,
            patient=self.patient,
            added_at=time.time(),
        )

    def scan(self, record: ScanRecord, source: Source, numbering: tuple[int, ...] = ()) -> Scan | Problem:
        """The selected and missing slices of a scan; `source` and `numbering` as in Scan."""
        axis = self.options.axis
        slices = cut(record.geometry, axis)
        before = self.existing.slices(record.scan, axis)
        if before and before != slices.count and not record.axes:
            return Problem(
                source.files[0],
                f"Label Studio has {before} slices of it, the file has {slices.count}, and the identities file does "
                "not say how they correspond. Use the identities file with which it was imported.",
            )
        patient = record.patient or self.patient
        record = replace(record, patient=patient, axes=tuple(dict.fromkeys((*record.axes, axis))))
        there = self.existing.numbers(record.scan, axis)
        best = self.options.best or 0
        chosen: tuple[int, ...] = ()
        if best and len(there) >= min(best, len(numbering) or slices.count):
            best, chosen = 0, tuple(sorted(there))
        elif not best:
            numbers = numbering or range(slices.count)
            chosen = tuple(number for number in numbers if number % (self.options.every or 1) == 0)
        return Scan(
            record=record,
            slices=slices,
            source=source,
            numbering=numbering,
            chosen=chosen,
            missing=tuple(number for number in chosen if number not in there),
            best=best,
            data=_task_data(record.scan, slices, self.modality or record.modality, self.site, patient),
        )


def _task_data(scan: str, slices: Cut, modality: str, site: str, patient: str) -> dict[str, Any]:
    data: dict[str, Any] = {"scan": scan, "axis": slices.axis, "slices": slices.count}
    if slices.spacing is not None and all(math.isfinite(mm) and mm > 0 for mm in slices.spacing):
        data["spacing_mm"] = [float(mm) for mm in slices.spacing]
    if slices.thickness is not None and math.isfinite(slices.thickness) and slices.thickness > 0:
        data["thickness_mm"] = float(slices.thickness)
    for key, text in (("modality", modality), ("site", site), ("group", patient)):
        if text:
            data[key] = text
    return data


def _modality(text: str) -> str:
    return text.strip() if text.strip() in MODALITIES else ""


def _in_instances(source: Source) -> bool:
    """Whether every file has a SOPInstanceUID to identify it by."""
    return bool(source.uid and source.instances and all(source.instances)) and len(source.instances) == len(
        source.files
    )


def _elsewhere(record: ScanRecord, found: IdentifiedSource) -> bool:
    """Whether files with the SOPInstanceUIDs of a known scan are not where it is: anonymisers use one UID again."""
    then, now = record.geometry, found.geometry
    if record.source.instances != found.source.instances or not then.orientation:
        return False
    return then.shape != now.shape or not np.allclose(then.affine, now.affine, rtol=0, atol=1e-3)


def _by_file(source: Source, slices: Cut) -> bool:
    """Whether every slice of the cut has its own file."""
    single = source.volumes == 1 and source.part is None
    return len(source.files) == slices.count and source.kind == "dicom" and slices.along == 2 and single


def _continues(record: ScanRecord, found: IdentifiedSource, axis: str) -> bool:
    """Whether the slices of a known scan are the first ones of a source, in all its cuts so far."""
    known = record.source.instances
    if found.source.instances[: len(known)] != known or record.source.uid != found.source.uid:
        return False
    try:
        return all(_by_file(found.source, cut(found.geometry, a)) for a in dict.fromkeys((*record.axes, axis)))
    except CannotCut:
        return False


def _part_name(source: Source) -> str:
    """The name of files that were added to a series later."""
    return f"series {source.uid} part {hashlib.sha256(chr(10).join(sorted(source.instances)).encode()).hexdigest()}"
