"""Facts, sources, headers, geometry and values of any file, through the module for its format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from backend.errors import UnreadableFile
from backend.formats import decode, dicom, frames, itk, kinds, nifti, packed, picture
from backend.formats.copies import distinct
from backend.formats.geometry import Geometry
from backend.formats.source import FileFacts, Header, Source
from backend.formats.stacks import stacks
from backend.formats.volume import Volume

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


def sniff(path: Path) -> FileFacts | None:
    """The facts of one file, from its content, whatever its name; reads only the header.

    None: not an image (text, a DICOMDIR, a report, a segmentation, a structure set, the second half of a NIfTI pair).
    Raises UnreadableFile if the file is broken, empty, too large, or named like an image without being one.
    """
    if not packed.is_file(path):
        if path.exists():
            return None  # a folder, a socket
        raise UnreadableFile(path, "cannot be read: it does not exist")
    try:
        first, _ = packed.start(path, 512)
    except OSError as error:
        raise UnreadableFile(path, f"cannot be read: {error.strerror or type(error).__name__}") from error
    named_dicom = path.name.lower().removesuffix(".gz").endswith(_DICOM_SUFFIXES)
    if first and (named_dicom or dicom.looks_like(first)) and not itk.looks_like(first):
        return frames.sniff(path, certain=named_dicom or first[128:132] == b"DICM")
    if nifti.looks_like(path, first):
        return nifti.sniff(path)
    if itk.looks_like(first):
        return itk.sniff(path)
    if picture.looks_like(first):
        return picture.sniff(path)
    if first.startswith(kinds.ARCHIVES) and path.suffix.lower() in ("", ".zip"):
        raise UnreadableFile(path, "is a damaged archive, or an archive in an archive; unpack it and import the folder")
    known = (nifti.has_known_suffix, itk.has_known_suffix, picture.has_known_suffix)
    if not (named_dicom or path.suffix.lower() == ".zip" or any(has(path) for has in known)):
        return None
    if not packed.size(path):
        raise UnreadableFile(path, "is empty (0 bytes); copy it again")
    raise UnreadableFile(path, f"is not an image, although its name ends in {path.suffix}; copy it again, or rename it")


def group(facts: Iterable[FileFacts]) -> list[Source]:
    """Group files into sources: the slices of a DICOM stack are one source, every other file is its own.

    A series makes several sources if its images differ in orientation, size or frame of reference, or if several are at
    one position (times, echoes, b-values). Radiographs, ultrasound and other images that are not slices are separate
    sources, as are multi-frame files. Copies of one SOPInstanceUID count once. The result does not depend on the order
    of the files.
    """
    known = {fact.path: fact for fact in facts}.values()
    files = distinct(fact for fact in known if fact.kind == "dicom")
    concatenated = {fact.whole for fact in files if fact.frames > 1 and fact.whole}
    framed = [fact for fact in files if fact.frames > 1 or fact.whole in concatenated]
    sources = stacks(fact for fact in files if not (fact.frames > 1 or fact.whole in concatenated))
    sources += frames.sources(framed)
    for fact in known:
        if fact.kind == "nifti":
            sources.append(Source("nifti", nifti.files(fact.path), "", volumes=fact.frames, remarks=_remarks(fact)))
        elif fact.kind == "volume":
            sources.append(Source("volume", itk.files(fact.path), "", volumes=fact.frames, remarks=_remarks(fact)))
        elif fact.kind == "image":
            sources.append(Source("image", (fact.path,), "", remarks=_remarks(fact)))
    return sorted(sources, key=lambda source: str(source.files[0]))


def _remarks(fact: FileFacts) -> tuple[str, ...]:
    return (fact.remark,) if fact.remark else ()


def read_header(source: Source) -> Header:
    """The header fields of a source, which may identify its patient. Raises UnreadableFile."""
    if source.kind != "dicom":
        return Header()
    header = dicom.read_header(source.files[0])
    return replace(header, burnt_in=source.burnt_in or header.burnt_in)


def read_geometry(source: Source, *, time: int | None = None) -> Geometry:
    """The geometry, from headers only. Equals `read(source, time=time).geometry`. Raises the same errors as `read`."""
    if source.kind == "dicom":
        return frames.read_geometry(source, time=time)
    if source.kind == "nifti":
        return nifti.read_geometry(source, time=time)
    if source.kind == "volume":
        return itk.read_geometry(source, time=time)
    return picture.read_geometry(source, time=time)


def geometry_of(files: Sequence[FileFacts]) -> Geometry:
    """The same as `read_geometry` for a DICOM source with one slice per file, from the facts of the files in order."""
    return frames.geometry(files[0].rows, files[0].columns, [frames.of_file(facts) for facts in files])


def read(source: Source, *, time: int | None = None) -> Volume:
    """The values of a source.

    time  number of the volume, from 0, if the source has several over time; else None or 0

    Raises UnreadableFile if a file is truncated, damaged, too large (MAX_VOXELS) or cannot be decoded; or if there are
    several volumes over time and `time` is None: the message gives their number and names --time.
    """
    if source.kind == "dicom":
        return decode.read(source, time=time)
    if source.kind == "nifti":
        return nifti.read(source, time=time)
    if source.kind == "volume":
        return itk.read(source, time=time)
    return picture.read(source, time=time)
