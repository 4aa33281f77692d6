"""Any file to facts, sources, headers, geometry and values: asks the module of its format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from backend.errors import UnreadableFile
from backend.formats import decode, dicom, frames, nifti, picture
from backend.formats.geometry import Geometry
from backend.formats.source import FileFacts, Header, Source
from backend.formats.stacks import stacks
from backend.formats.volume import Volume

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


def sniff(path: Path) -> FileFacts | None:
    """What one file is, from its content, whatever its name; only the header is read.

    None: no picture (text, a DICOMDIR, a report, a segmentation, a structure set, the second half of a NIfTI pair).
    Raises UnreadableFile: broken, empty, larger than we read, or named like a picture and none.
    """
    if not path.is_file():
        if path.exists():
            return None  # a folder, a socket
        raise UnreadableFile(path, "cannot be read: it is not there")
    try:
        with path.open("rb") as file:
            first = file.read(512)
    except OSError as error:
        raise UnreadableFile(path, f"cannot be read: {error.strerror or type(error).__name__}") from error
    named_dicom = path.suffix.lower() in _DICOM_SUFFIXES
    if first and (named_dicom or dicom.looks_like(first)):
        return dicom.sniff(path, certain=named_dicom or first[128:132] == b"DICM")
    head = nifti.start(path, first)
    if nifti.looks_like(path, head):
        return nifti.sniff(path)
    if picture.looks_like(first):
        return picture.sniff(path)
    if not (named_dicom or nifti.named_so(path) or picture.named_so(path)):
        return None
    if not first:
        raise UnreadableFile(path, "is empty (0 bytes); copy it again")
    raise UnreadableFile(path, f"is no picture, though its name ends in {path.suffix}; copy it again, or rename it")


def group(facts: Iterable[FileFacts]) -> list[Source]:
    """Put files together: the slices of a DICOM stack are one source, every other file is one.

    A series makes several sources where its images differ in orientation, size or frame of reference, and where several
    lie at one place (times, echoes, b-values). Radiographs, ultrasound and other pictures that are no slices are a
    source each, as is a multi-frame file. The same SOPInstanceUID twice counts once. Same files, same answer, in
    whatever order they come.
    """
    known = {fact.path: fact for fact in facts}.values()
    sources = stacks(fact for fact in known if fact.kind == "dicom")
    for fact in known:
        if fact.kind == "nifti":
            sources.append(Source("nifti", nifti.files(fact.path), "", volumes=fact.frames))
        elif fact.kind == "image":
            sources.append(Source("image", (fact.path,), ""))
    return sorted(sources, key=lambda source: str(source.files[0]))


def read_header(source: Source) -> Header:
    """What the source says about itself and its patient. Raises UnreadableFile."""
    if source.kind != "dicom":
        return Header()
    header = dicom.read_header(source.files[0])
    return replace(header, burnt_in=source.burnt_in or header.burnt_in)


def read_geometry(source: Source, *, time: int | None = None) -> Geometry:
    """Where the voxels are; headers only. Equals `read(source, time=time).geometry`. Raises as `read`."""
    if source.kind == "dicom":
        return frames.read_geometry(source, time=time)
    if source.kind == "nifti":
        return nifti.read_geometry(source, time=time)
    return picture.read_geometry(source, time=time)


def geometry_of(files: Sequence[FileFacts]) -> Geometry:
    """What `read_geometry` says of a DICOM source with one slice a file, from the facts of these files, in order."""
    return frames.geometry(files[0].rows, files[0].columns, [frames.of_file(facts) for facts in files])


def read(source: Source, *, time: int | None = None) -> Volume:
    """The values of a source.

    time  which volume, from 0, where the source holds several over time; else None or 0

    Raises UnreadableFile: truncated, damaged, too large (MAX_VOXELS), not decodable; or several volumes over time and
    no `time`: the sentence says how many and names --time.
    """
    if source.kind == "dicom":
        return decode.read(source, time=time)
    if source.kind == "nifti":
        return nifti.read(source, time=time)
    return picture.read(source, time=time)
