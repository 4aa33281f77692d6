"""What is known before pixels are read: facts of one file, the source that several files form, and its header."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from backend.formats import packed

UNNAMED = "without UID "  # begins the `series` of files that have no SeriesInstanceUID
_CONTENT = "sha256 "


def content_of(path: Path) -> str:
    """What identifies a DICOM file without a SOPInstanceUID of its own: a digest of its content, decompressed."""
    with packed.opened(path) as file:
        content: Any = file
        return _CONTENT + hashlib.file_digest(content, "sha256").hexdigest()


def is_content(instance: str) -> bool:
    """Whether an `instance` is a digest made by `content_of`."""
    return instance.startswith(_CONTENT)


@dataclass(frozen=True)
class FileFacts:
    """The facts in the header of one file, enough to assemble the files of a series. Picklable.

    kind         "dicom", "nifti", "volume" (NRRD, MetaImage) or "image"
    series       SeriesInstanceUID; without one, UNNAMED and a digest of what else distinguishes series
    instance     SOPInstanceUID; "" if there is none; `content_of` the file if another image has the same
    place        mm along the normal of the slice; without a position, the InstanceNumber
    frames       number of frames (DICOM), pages (TIFF) or volumes (NIfTI); else 1
    placed       whether `place` is a position
    stackable    whether files of one series may form a stack: slices of CT, MR, ... Never radiographs
    rows, columns  size of a slice
    colour       whether the pixels are coloured
    orientation  ImageOrientationPatient, or ()
    position     ImagePositionPatient, or ()
    spacing      mm between rows, between columns, or ()
    thickness    mm, or 0.0
    frame        FrameOfReferenceUID, or ""
    number       InstanceNumber, or 0
    marks        fields that may distinguish images at one position: time, echo, b-value, ..., as text
    stack        StackID, or ""
    parts        for each stack of a multi-frame file, the number of its volumes over time, echoes, ...
    whole        ConcatenationUID of a file that holds a part of a volume, or ""
    owner        digest of patient and study, or "" if both are unknown
    burnt_in     BurnedInAnnotation: "YES", "NO" or ""
    size         file size in bytes
    remark       what the user should know even though the file was read, a sentence without header values, or ""
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
    stack: str = ""
    parts: tuple[int, ...] = (1,)
    whole: str = ""
    owner: str = ""
    burnt_in: str = ""
    size: int = 0
    remark: str = ""


@dataclass(frozen=True)
class Source:
    """One volume or one picture, which becomes one scan. Picklable.

    kind       "dicom", "nifti", "volume" (NRRD, MetaImage) or "image"
    files      DICOM: the slices in order of position, or one multi-frame file, or the parts of one; else one file
    uid        identifies the source whatever its file names and folders. DICOM: the series and one stack of it; else
               "": use a digest of the content
    instances  `instance` of each file (DICOM), else ()
    part       number of the stack in a multi-frame file with several; None: it has one. In records of older versions
               also None for all stacks together, as stored
    burnt_in   BurnedInAnnotation: "YES" if any file has it, "NO" if all have it, else ""
    volumes    number of volumes over time according to the sniffed header; 1: nothing to choose
    turn       its number among the volumes at the same position in its series (times, echoes, ...), and how many there
               are; not stored
    remarks    what a person should know although the source is read, sentences without header values; not stored
    """

    kind: str
    files: tuple[Path, ...]
    uid: str
    instances: tuple[str, ...] = ()
    burnt_in: str = ""
    volumes: int = 1
    part: int | None = None
    turn: tuple[int, int] = field(default=(0, 1), compare=False)
    remarks: tuple[str, ...] = field(default=(), compare=False)

    def to_json(self) -> str:
        facts = {each.name: getattr(self, each.name) for each in fields(self) if each.compare}
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
            facts.get("part"),
        )


@dataclass(frozen=True)
class Header:
    """The header fields of a source that an import needs. PRIVATE: never logged, never sent anywhere.

    For a series, the header of its first file. "" if a field is missing, as in NIfTI and plain pictures.

    modality  "CT", "MR", ...
    study     StudyInstanceUID
    burnt_in  BurnedInAnnotation: "YES", "NO" or ""
    """

    modality: str = ""
    patient_id: str = ""
    patient_name: str = field(default="", repr=False)  # identifies a patient without an id; in no message
    institution: str = ""
    study: str = ""
    burnt_in: str = ""
