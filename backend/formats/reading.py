"""Any file to facts, sources, headers, geometry and values: asks the module of its format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from backend.formats.geometry import Geometry
from backend.formats.source import FileFacts, Header, Source
from backend.formats.volume import Volume


def sniff(path: Path) -> FileFacts | None:
    """What one file is, from its content, whatever its name; only the header is read.

    None: no picture (text, a DICOMDIR, a report, a segmentation, a structure set, the second half of a NIfTI pair).
    Raises UnreadableFile: broken, empty, larger than we read, or named like a picture and none.
    """
    raise NotImplementedError


def group(facts: Iterable[FileFacts]) -> list[Source]:
    """Put files together: the slices of a DICOM stack are one source, every other file is one.

    A series makes several sources where its images differ in orientation, size or frame of reference, and where several
    lie at one place (times, echoes, b-values). Radiographs, ultrasound and other pictures that are no slices are a
    source each, as is a multi-frame file. The same SOPInstanceUID twice counts once. Same files, same answer, in
    whatever order they come.
    """
    raise NotImplementedError


def read_header(source: Source) -> Header:
    """What the source says about itself and its patient. Raises UnreadableFile."""
    raise NotImplementedError


def read_geometry(source: Source, *, time: int | None = None) -> Geometry:
    """Where the voxels are; headers only. Equals `read(source, time=time).geometry`. Raises UnreadableFile as `read`."""
    raise NotImplementedError


def read(source: Source, *, time: int | None = None) -> Volume:
    """The values of a source.

    time  which volume, from 0, where the source holds several over time; else None or 0

    Raises UnreadableFile: truncated, damaged, too large (MAX_VOXELS), not decodable; or several volumes over time and
    no `time`: the sentence says how many and names --time.
    """
    raise NotImplementedError
