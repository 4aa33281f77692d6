"""Who a source is and which of its slices are still to be imported: pseudonyms, slice numbers, task data.

A slice number never changes its meaning. A DICOM series that has grown since it was imported keeps the numbers it has:
where all new slices lie beyond the last one and only slices as acquired were imported, the scan goes on counting;
otherwise the new slices become a scan of their own, of the same patient. Cuts across the slices (coronal ones of an
axial series) would all be other pictures, so a series that has grown is not cut so again.
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

from backend.errors import BadSetting, CannotCut
from backend.formats import AXES, Cut, Geometry, Source, Window, cut, read_geometry
from backend.intake.existing_tasks import ExistingTasks
from backend.intake.identities import Identities, ScanRecord
from backend.intake.slicing import IdentifiedSource, Problem, SliceJob, digest, subset

# DICOM PS3.3 C.7.3.1.1.1; anything else that stands in that field may be a name
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
    """What the person at the keyboard asked for.

    axis      one of formats.AXES
    every     only each N-th slice
    best      only the most informative slices of a scan, how many
    time      which volume of several over time
    window    "CENTER,WIDTH"; name of a preset of the header; "percentile"; "auto": the header's first preset, else that
    site      text that stands in the task data as it is; "": the pseudonym of the institution
    modality  instead of what the header says
    group_by  what groups plain files, which name no patient: one of GROUPS
    careful   leave out scans with text in their pixels

    Raises BadSetting where these cannot be.
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
            raise BadSetting(f"--axis: got {self.axis!r}, wanted one of {', '.join(AXES)}.")
        if self.every is not None and self.best is not None:
            raise BadSetting("--every and --best both choose slices; give one of them.")
        if self.group_by not in GROUPS:
            raise BadSetting(f"--group-by: got {self.group_by!r}, wanted one of {', '.join(GROUPS)}.")
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
            raise BadSetting(f"--window: got {self.window!r}, wanted CENTER,WIDTH, the width 1 or more, as 40,400.")
        return found


@dataclass(frozen=True)
class Scan:
    """One scan of a source, and what its tasks have in common.

    record     what the identities hold of it; not yet written
    slices     the cut of the whole scan
    source     the files that are there now, of all slices or of some
    numbering  slice number of each place of `source`; () where they are the same
    chosen     slice numbers that are meant; () with `best`
    missing    those of them without a task; () with `best`
    best       how many are to be chosen by their content, 0: none
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
        """Whether nothing is to be done."""
        return not self.missing and not self.best

    def job(self, options: ImportOptions, existing: ExistingTasks, folder: Path) -> SliceJob:
        """What a worker process has to do; of a long series only the files that are needed."""
        scan, axis = self.record.scan, self.slices.axis
        source, numbering = self.source, self.numbering
        by_file = bool(numbering) or _by_file(source, self.slices)
        numbers = numbering or tuple(range(len(source.files)))
        if by_file and not self.best and len(self.missing) < len(numbers):
            wished = set(self.missing)
            places = [place for place, number in enumerate(numbers) if number in wished]
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
    """The scans that a source makes: one, or more when it grew between imports.

    remember  whether pseudonyms may be written down

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
    records = [record for record in identities.scans_with_instances(source.instances) if record.time == found.time]
    if not records:
        value = f"series {source.uid}"
        if identities.scan(about.name(value)) is not None:  # other files of the same series
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
            "other pictures. Those in Label Studio are kept; import the new slices with --axis acquisition.",
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
        """The group that must not be split: a patient; a study or series of nobody; for plain files as asked."""
        header, source = self.found.header, self.found.source
        if header.patient_id.strip():
            return self._pseudonym("patient", f"id {header.patient_id.strip()}")
        if source.kind == "dicom":
            study = header.study.strip()
            return self._pseudonym("patient", f"study {study}" if study else f"series {source.uid}")
        if self.options.group_by == "folder":
            return self._pseudonym("patient", f"folder {source.files[0].absolute().parent}")
        if self.options.group_by == "file":
            return self._pseudonym("patient", f"file {self.found.digest}")
        return ""

    def name(self, value: str) -> str:
        """The pseudonym of a scan: of what it is made of, and of the time that was chosen."""
        at = "" if self.found.time is None else f" time {self.found.time}"
        return self._pseudonym("scan", value + at)

    def record(self, value: str, source: Source, geometry: Geometry) -> ScanRecord:
        """Of a scan that is not known."""
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
        """What of a scan is chosen and missing; `source` and `numbering` as in Scan."""
        axis = self.options.axis
        slices = cut(record.geometry, axis)
        told = self.existing.slices(record.scan, axis)
        if told and told != slices.count and not record.axes:
            return Problem(
                source.files[0],
                f"Label Studio has it with {told} slices, it has {slices.count}, and the file of identities does not "
                "know which are which. Give the file that it was imported with.",
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
            data=_data(record.scan, slices, self.modality or record.modality, self.site, patient),
        )


def _data(scan: str, slices: Cut, modality: str, site: str, patient: str) -> dict[str, Any]:
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
    """Whether every file has a SOPInstanceUID that it can be known by."""
    return bool(source.uid and source.instances and all(source.instances)) and len(source.instances) == len(
        source.files
    )


def _by_file(source: Source, slices: Cut) -> bool:
    """Whether every slice of the cut is a file of its own."""
    return len(source.files) == slices.count and source.kind == "dicom" and slices.along == 2


def _continues(record: ScanRecord, found: IdentifiedSource, axis: str) -> bool:
    """Whether the slices of a known scan are the first ones of a source, in all cuts that anybody made."""
    known = record.source.instances
    if found.source.instances[: len(known)] != known or record.source.uid != found.source.uid:
        return False
    try:
        return all(_by_file(found.source, cut(found.geometry, a)) for a in dict.fromkeys((*record.axes, axis)))
    except CannotCut:
        return False


def _part_name(source: Source) -> str:
    """What names files that came later than others of their series."""
    return f"series {source.uid} part {hashlib.sha256(chr(10).join(sorted(source.instances)).encode()).hexdigest()}"
