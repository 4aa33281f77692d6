"""NRRD and MetaImage volumes, attached or detached, through SimpleITK."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from backend.errors import UnreadableFile
from backend.formats import failures, frames, packed
from backend.formats.geometry import Geometry, of_volume
from backend.formats.source import FileFacts, Source
from backend.formats.volume import MAX_VOXELS, Volume

_HEAD = 1 << 20  # bytes of a header that are read: 3D Slicer writes about 1,000 for each segment
_SQUEEZE = 1032  # maximum compression ratio of deflate
_MAX_FILES = 10_000
_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
_META = re.compile(rb"\s*(Object\w*|NDims|Comment|Name|ID|ElementType|DimSize|BinaryData\w*)\s*=", re.ASCII)
_PACKED = re.compile(rb"^(encoding:\s*(gz|gzip|bz2|bzip2)|CompressedData\s*=\s*True)", re.MULTILINE | re.IGNORECASE)
_PLACED = re.compile(
    rb"^(space:\s*(left|right|LPS|RAS|LAS)|(TransformMatrix|Rotation|Orientation)\s*=)", re.MULTILINE | re.IGNORECASE
)
_SEGMENTATION = re.compile(rb"^Segment0_\w+:=", re.MULTILINE)
_SEGMENT = re.compile(rb"^Segment(\d+)_(Name|LabelValue|Layer):=([^\r\n]*)", re.MULTILINE)


def looks_like(first: bytes) -> bool:
    """Whether a file with these first bytes, decompressed, is NRRD or MetaImage."""
    return first.startswith(b"NRRD000") or (_META.match(first) is not None and b"NDims" in first)


def has_known_suffix(path: Path) -> bool:
    return path.name.lower().endswith((*_SUFFIXES, *(f"{suffix}.gz" for suffix in _SUFFIXES)))


def _reported(path: Path) -> AbstractContextManager[None]:
    return failures.reported(path, "is a damaged or truncated NRRD or MetaImage file; copy it again")


def _header(path: Path) -> bytes:
    """The lines before the voxels; for a detached header, all lines."""
    first = packed.start(path, _HEAD)[0]
    ends = rb"\r?\n\r?\n" if first.startswith(b"NRRD") else rb"ElementDataFile\s*=\s*LOCAL[ \t]*\r?\n"
    end = re.search(ends, first)
    return first if end is None else first[: end.end()]


def _data_files(path: Path, header: bytes) -> tuple[str, ...]:
    """The names of the files with the voxels, relative to the header's folder; () if they follow the header."""
    found = re.search(
        rb"^(?:data ?file:|ElementDataFile\s*=)[ \t]*(.*?)[ \t\r]*$", header, re.MULTILINE | re.IGNORECASE
    )
    if found is None:
        return ()
    value = found[1].decode("utf-8", "replace").strip()
    if value.upper() == "LOCAL" or not value:
        return ()
    if value.upper().split()[0] == "LIST":
        names = [line.strip() for line in header[found.end() :].decode("utf-8", "replace").splitlines() if line.strip()]
    elif (pattern := re.fullmatch(r"(\S*%0?\d*d\S*)\s+(-?\d+)\s+(-?\d+)\s+(\d+)(?:\s+\d+)?", value)) is not None:
        first, last, step = int(pattern[2]), int(pattern[3]), max(1, int(pattern[4]))
        names = [pattern[1] % number for number in range(first, last + 1, step)[: _MAX_FILES + 1]]
    else:
        names = [value]
    if len(names) > _MAX_FILES:
        raise UnreadableFile(path, f"names more than {_MAX_FILES:,} data files; save it as one file")
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UnreadableFile(
                path, "names a data file in another folder; move it next to the header and correct its name there"
            )
        if not packed.is_file(path.parent / name):
            raise UnreadableFile(path, "cannot be read: the file that it names for its voxels is missing; copy it too")
    return tuple(names)


def _library() -> Any:
    import SimpleITK  # takes a second and 100 MB

    itk: Any = SimpleITK
    itk.ProcessObject.SetGlobalWarningDisplay(False)  # it quotes paths and values
    return itk


def files(path: Path) -> tuple[Path, ...]:
    """The file, and for a detached header also the files with the voxels. Raises UnreadableFile."""
    with _reported(path):
        return (path, *(path.parent / name for name in _data_files(path, _header(path))))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Geometry, int]]:
    """A reader that has read the header, the geometry, and the number of volumes. Raises UnreadableFile."""
    with _reported(path):
        itk = _library()
        header = _header(path)
        names = _data_files(path, header)
        with packed.local(path, beside=names) as file:
            reader = itk.ImageFileReader()
            reader.SetImageIO("NrrdImageIO" if header.startswith(b"NRRD") else "MetaImageIO")
            reader.SetFileName(str(file))
            reader.ReadImageInformation()
            size = tuple(int(length) for length in reader.GetSize())
            kind = itk.GetPixelIDValueAsString(reader.GetPixelID())
            if "complex" in kind:
                raise UnreadableFile(path, "has complex numbers, which cannot be shown; save their magnitude")
            if not 2 <= len(size) <= 4:
                raise UnreadableFile(path, f"has {len(size)} dimensions; only 2, 3 and 4 (time series) are supported")
            channels = int(reader.GetNumberOfComponents())
            _limit(path, size, channels, kind, file, names, header)
            shape = (*size, 1)[:3] if len(size) < 3 else size[:3]
            colour = channels in (3, 4) and "8-bit unsigned" in kind
            count = (size[3] if len(size) == 4 else 1) * (1 if colour else channels)
            yield reader, _geometry(reader, shape, bool(_PLACED.search(header))), count


def _limit(
    path: Path, size: Sequence[int], channels: int, kind: str, file: Path, names: Sequence[str], header: bytes
) -> None:
    """Check the size before memory is allocated for voxels that the files cannot contain."""
    voxels = int(np.prod(size, dtype=object))
    shown = " x ".join(map(str, size))
    if voxels < 1:
        raise UnreadableFile(path, f"has no voxels: its shape is {shown}")
    if voxels * channels > MAX_VOXELS:
        raise UnreadableFile(
            path, f"is too large: {shown} = {voxels:,} voxels; the maximum is {MAX_VOXELS:,}; import a part of it"
        )
    bits = re.search(r"(\d+)-bit", kind)
    need = voxels * channels * (int(bits[1]) if bits else 8) // 8
    held = sum((file.parent / name).stat().st_size for name in names) or file.stat().st_size - len(header)
    text = re.search(
        rb"^(encoding:\s*(ascii|text|txt|hex)|BinaryData\s*=\s*False)", header, re.MULTILINE | re.IGNORECASE
    )
    if held * (_SQUEEZE if _PACKED.search(header) else 8 if text else 1) < need:
        raise UnreadableFile(path, f"is truncated: it has {held:,} bytes, its header declares {need:,}; copy it again")


def _geometry(reader: Any, shape: tuple[int, ...], placed: bool) -> Geometry:
    """ITK's directions, spacing and origin (LPS) as an affine (RAS); without directions the position is unknown."""
    dimension = int(reader.GetDimension())
    used = min(dimension, 3)
    spacing, affine = np.ones(3), np.eye(4)
    spacing[:used] = reader.GetSpacing()[:used]
    affine[:used, :used] = np.array(reader.GetDirection(), np.float64).reshape(dimension, dimension)[:used, :used]
    affine[:3, :3] *= spacing
    affine[:used, 3] = reader.GetOrigin()[:used]
    affine[:2] *= -1
    return of_volume((shape[0], shape[1], shape[2]), affine if placed else np.zeros((4, 4)), spacing)


def is_segmentation(path: Path) -> bool:
    """Whether it is a segmentation, as 3D Slicer saves it. Raises UnreadableFile."""
    with _reported(path):
        return _SEGMENTATION.search(_header(path)) is not None


def segments(path: Path) -> dict[int, dict[int, str]]:
    """For each layer of a segmentation of 3D Slicer, the names of its numbers. Raises UnreadableFile.

    Until version 4.10, segments had neither layer nor number: each is a volume of its own, with the number 1.
    """
    fields: dict[int, dict[str, str]] = defaultdict(dict)
    with _reported(path):
        for found in _SEGMENT.finditer(_header(path)):
            fields[int(found[1])][found[2].decode()] = found[3].decode("utf-8", "replace").strip()
        layers: dict[int, dict[int, str]] = defaultdict(dict)
        for number, one in sorted(fields.items()):
            layer = int(one.get("Layer", 0 if "LabelValue" in one else number))
            layers[layer][int(one.get("LabelValue", 1))] = one.get("Name", "")
    return dict(layers)


def sniff(path: Path) -> FileFacts | None:
    """The facts of a volume; None for a segmentation, as 3D Slicer saves it."""
    if is_segmentation(path):
        return None
    return facts(path)


def facts(path: Path) -> FileFacts:
    """The facts of a volume or segmentation. Raises UnreadableFile."""
    with _opened(path) as (_, geometry, count):
        return FileFacts(path, "volume", frames=count, rows=geometry.shape[1], columns=geometry.shape[0])


def read_geometry(source: Source, *, time: int | None = None) -> Geometry:
    path = source.files[0]
    with _opened(path) as (_, geometry, count):
        frames.choose_volume(path, count, time)
        return geometry


def read(source: Source, *, time: int | None = None) -> Volume:
    """The values; see `backend.formats.read`. The channels of a pixel that are not colours are volumes."""
    path = source.files[0]
    with _opened(path) as (reader, geometry, count):
        chosen = frames.choose_volume(path, count, time)
        size = list(reader.GetSize())
        channels = int(reader.GetNumberOfComponents())
        if len(size) == 4:  # only the chosen volume
            reader.SetExtractIndex([0, 0, 0, chosen if count == size[3] else chosen // channels])
            reader.SetExtractSize([*size[:3], 0])
        found = _library().GetArrayFromImage(reader.Execute())
        values = found.reshape(*geometry.shape[::-1], channels).swapaxes(0, 2)
    if values.shape[3] > 1 and values.dtype == np.uint8 and channels in (3, 4):
        return Volume(values[..., :3], geometry, None, False)
    values = values[..., chosen % channels]
    return Volume(values.astype(np.float32) if values.dtype == np.float64 else values, geometry, None, False)
