"""What is known of files before their pixels are read: facts of one, the source that several make up, its header."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class FileFacts:
    """What the header of one file says; enough to put the files of a series together. Picklable.

    kind         "dicom", "nifti" or "image"
    series       SeriesInstanceUID, or ""
    instance     SOPInstanceUID, or ""
    place        mm along the normal of the slice; without a position, the InstanceNumber
    frames       of a multi-frame DICOM, pages of a TIFF, volumes of a NIfTI; else 1
    placed       whether `place` is a position
    stackable    whether files of one series belong on each other: slices of CT, MR, ... A radiograph is never
    rows, columns  of a slice
    colour       whether it is
    orientation  ImageOrientationPatient, or ()
    position     ImagePositionPatient, or ()
    spacing      mm between rows, between columns, or ()
    thickness    mm, or 0.0
    frame        FrameOfReferenceUID, or ""
    number       InstanceNumber, or 0
    marks        what may tell apart images at one place: time, echo, b-value, ..., as text
    burnt_in     BurnedInAnnotation: "YES", "NO" or ""
    size         of the file, in bytes
    """

    path: Path
    kind: str
    series: str = ""
    instance: str = ""
    place: float = 0.0
    frames: int = 1
    placed: bool = False
    stackable: bool = False
    rows: int = 0
    columns: int = 0
    colour: bool = False
    orientation: tuple[float, ...] = ()
    position: tuple[float, ...] = ()
    spacing: tuple[float, ...] = ()
    thickness: float = 0.0
    frame: str = ""
    number: int = 0
    marks: tuple[str, ...] = ()
    burnt_in: str = ""
    size: int = 0


@dataclass(frozen=True)
class Source:
    """One volume or one picture: what becomes one scan. Picklable.

    kind       "dicom", "nifti" or "image"
    files      DICOM: the slices in order of place, or one multi-frame file; else one file
    uid        names it whatever the files are called and wherever they lie. DICOM: the series and which stack of it;
               else "": take a digest of the content
    instances  SOPInstanceUID of each file (DICOM), else ()
    burnt_in   BurnedInAnnotation: "YES" when any file says so, "NO" when all do, else ""
    volumes    how many volumes over time the file is known to hold, from its sniffed header (NIfTI); 1: choose none
    """

    kind: str
    files: tuple[Path, ...]
    uid: str
    instances: tuple[str, ...] = ()
    burnt_in: str = ""
    volumes: int = 1

    def to_json(self) -> str:
        facts = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({**facts, "files": [str(path) for path in self.files]})

    @classmethod
    def from_json(cls, text: str) -> Source:
        facts = json.loads(text)
        return cls(
            facts["kind"],
            tuple(Path(path) for path in facts["files"]),
            facts["uid"],
            tuple(facts["instances"]),
            facts["burnt_in"],
            int(facts["volumes"]),
        )


@dataclass(frozen=True)
class Header:
    """What a source says about itself that an import needs. PRIVATE: never logged, never sent anywhere.

    Of a series, the header of its first file. "" where it says nothing, as NIfTI and plain pictures do.

    modality  "CT", "MR", ...
    study     StudyInstanceUID
    burnt_in  BurnedInAnnotation: "YES", "NO" or ""
    """

    modality: str = ""
    patient_id: str = ""
    institution: str = ""
    study: str = ""
    burnt_in: str = ""
