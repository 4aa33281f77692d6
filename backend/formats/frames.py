"""The positions of the frames of a DICOM source, their order in a volume, and that volume's geometry.

A *frame* is one slice: a single-frame file, or one frame of a multi-frame file (enhanced or not). DICOM coordinates
are LPS; ours are RAS.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from backend.errors import UnreadableFile
from backend.formats import dicom, fields
from backend.formats.functional_groups import groups, of_frame, other_dimensions
from backend.formats.geometry import Geometry, codes
from backend.formats.source import FileFacts, Source
from backend.formats.stacks import APART, natural, parallel, source_of, volumes

MAX_FRAMES = 100_000
PARALLEL = 1e-3  # maximum difference of direction cosines in a regular volume
UNEVEN = 0.02  # tolerance as a share of the slice distance; larger than the rounding of positions
TILT = 0.01  # maximum sine of the angle between the normal and the step between slices (gantry tilt)
_VECTORS = ("TimeSlotVector", "PhaseVector", "RRIntervalVector", "EnergyWindowVector", "DetectorVector")
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Frame:
    """One slice and where it is stored; as in FileFacts, () and 0.0 mean unknown.

    file    which of the source's files holds it
    number  its number in that file, from 0
    """

    orientation: tuple[float, ...] = ()
    position: tuple[float, ...] = ()
    spacing: tuple[float, ...] = ()
    thickness: float = 0.0
    marks: tuple[str, ...] = ()
    stack: str = ""
    file: int = 0
    number: int = 0


def sniff(path: Path, *, certain: bool) -> FileFacts | None:
    """Facts of one DICOM file, as `dicom.sniff`, with the stacks and volumes of a multi-frame file."""
    fact = dicom.sniff(path, certain=certain)
    if fact is None or fact.frames == 1:
        return fact
    return replace(fact, parts=parts([path]))


def parts(files: Sequence[Path]) -> tuple[int, ...]:
    """For each stack of a multi-frame file, or of the files of a concatenation, the number of its volumes."""
    stored = _stored(files, [dicom.load(path) for path in files])
    with dicom.reported(files[0]):
        return tuple(len(_choices(stack)) for stack in parallel(stored))


def _choices(stack: Sequence[Frame]) -> list[list[Frame]]:
    """The volumes of a stack. Frames at one position, as in a cine loop, are the slices of one volume."""
    found = [volume for _, volume in volumes(stack)]
    if len(found) == 1 or max(map(len, found)) > 1:
        return found
    fields = [[frame.marks[n] for frame in stack] for n in range(min(len(frame.marks) for frame in stack))]
    order = next((values for values in fields if len(set(values)) == len(values)), None)
    stored = range(len(stack))
    return [[stack[n] for n in (stored if order is None else sorted(stored, key=lambda n: natural(order[n])))]]


def sources(facts: Sequence[FileFacts]) -> list[Source]:
    """The sources of multi-frame files: one for each stack. Files of one concatenation belong together."""
    together: dict[tuple[str, ...], list[FileFacts]] = defaultdict(list)
    for fact in sorted(facts, key=lambda fact: (fact.number, str(fact.path))):
        key = (fact.series, fact.owner, fact.whole) if fact.whole else (str(fact.path),)
        together[key].append(fact)
    found = []
    for files in together.values():
        first = files[0]
        counts = first.parts
        if len(files) > 1:
            try:
                counts = parts([fact.path for fact in files])
            except UnreadableFile as error:
                files = [replace(fact, remark=f"part of it cannot be read: {error.what}") for fact in files]
        whole = source_of(files, first.instance if len(files) == 1 else f"{first.series}/{first.whole}")
        if len(counts) == 1:
            found.append(replace(whole, volumes=counts[0]))
        for n, count in enumerate(counts if len(counts) > 1 else ()):
            found.append(replace(whole, uid=f"{whole.uid}/stack {n}", part=n, volumes=count))
    return found


def read_geometry(source: Source, *, time: int | None = None) -> Geometry:
    """Geometry of a DICOM source; see `backend.formats.read_geometry`."""
    found: list[FileFacts] = []
    for path in source.files:
        fact = dicom.sniff(path, certain=True)
        if fact is None:
            raise UnreadableFile(path, dicom.REPLACED)
        found.append(fact)
    placed = [of_file(fact) for fact in found]
    if any(fact.frames > 1 for fact in found):
        placed = layout(source, [dicom.load(path) for path in source.files], time)
    else:
        choose_volume(source.files[0], 1, time)
    return geometry(found[0].rows, found[0].columns, placed)


def origins(source: Source) -> tuple[tuple[float, ...], ...]:
    """Where the first voxel of each slice is, RAS mm, in a source with a slice per file; () if that is not known."""
    found = []
    for path in source.files:
        try:
            fact = dicom.sniff(path, certain=True)
        except UnreadableFile:
            return ()
        if fact is None or not fact.position:
            return ()
        found.append(tuple(float(value) for value in _LPS[:3, :3] @ fact.position))
    return tuple(found)


def layout(source: Source, headers: Sequence[Dataset], time: int | None) -> list[Frame]:
    """The frames that form volume `time` of a source with multi-frame files, in order of k."""
    stored = _stored(source.files, headers)
    with dicom.reported(source.files[0]):
        stacks = parallel(stored)
        if source.part is None and len(stacks) > 1:
            choices = [stored]  # as older versions read it
        elif (source.part or 0) >= len(stacks):
            raise UnreadableFile(source.files[0], dicom.REPLACED)
        else:
            choices = _choices(stacks[source.part or 0])
    return choices[choose_volume(source.files[0], len(choices), time)]


def of_file(facts: FileFacts) -> Frame:
    return Frame(facts.orientation, facts.position, facts.spacing, facts.thickness)


def _stored(files: Sequence[Path], headers: Sequence[Dataset]) -> list[Frame]:
    """All frames of these files as stored."""
    found: list[Frame] = []
    for n, (path, header) in enumerate(zip(files, headers, strict=True)):
        count = max(1, fields.whole(header, "NumberOfFrames"))
        if len(found) + count > MAX_FRAMES:
            raise UnreadableFile(path, f"declares {count:,} frames; the maximum is {MAX_FRAMES:,}; split it")
        with dicom.reported(path):
            found += [replace(frame, file=n, number=k) for k, frame in enumerate(of_header(header, count))]
    return found


def of_header(header: Dataset, count: int) -> list[Frame]:
    """The frames of a multi-frame file: from functional groups, from vectors (NM), or from the whole header."""
    if count == 1 or groups(header, 0):
        dimensions = other_dimensions(header)
        return [_frame(of_frame(header, n), dimensions) for n in range(count)]
    whole = _frame(header, [])
    step = fields.number(header, "SpacingBetweenSlices")  # may be negative
    slices = fields.text(header, "SliceVector").split("\\")
    vectors = [fields.text(header, keyword).split("\\") for keyword in _VECTORS]
    if not (whole.orientation and whole.position and step and len(slices) == count):
        return [replace(whole, orientation=(), position=())] * count
    if not all(part.isdigit() for part in slices):
        slices = [str(n + 1) for n in range(count)]
    towards = step * np.array(fields.normal(whole.orientation))
    found = []
    for n in range(count):
        place = np.array(whole.position) + (int(slices[n]) - 1) * towards
        marks = tuple(vector[n] if len(vector) == count else "" for vector in vectors)
        found.append(replace(whole, position=tuple(map(float, place)), thickness=abs(step), marks=marks))
    return found


def _frame(header: Dataset, dimensions: Sequence[int]) -> Frame:
    return Frame(
        fields.directions(header),
        fields.numbers(header, "ImagePositionPatient", 3),
        fields.spacing(header),
        fields.thickness(header),
        dicom.marks(header, dimensions),
        fields.text(header, "StackID"),
    )


def choose_volume(path: Path, count: int, time: int | None) -> int:
    """The number of the volume to read. Raises UnreadableFile if `time` is missing or not below `count`."""
    if time is None and count > 1:
        raise UnreadableFile(path, f"has {count} volumes over time; choose one with --time 0 .. --time {count - 1}")
    if time is not None and not 0 <= time < count:
        held = "one volume, number 0" if count == 1 else f"{count} volumes over time, 0 to {count - 1}"
        raise UnreadableFile(path, f"has {held}; there is no volume {time}. Use another --time, or omit it")
    return time or 0


def geometry(rows: int, columns: int, frames: Sequence[Frame]) -> Geometry:
    """The geometry of frames in the order of k. For frames that are not regular see Geometry."""
    first, count = frames[0], len(frames)
    between_rows, between_columns = first.spacing or (0.0, 0.0)
    in_plane = (between_columns, between_rows)  # along i, along j
    shape = (columns, rows, count)
    if not (first.orientation and all(frame.position and frame.orientation for frame in frames)):
        steps = (in_plane[0] or 1.0, in_plane[1] or 1.0, first.thickness or 1.0)
        affine = np.diag([-steps[0], -steps[1], steps[2], 1.0])
        spacing = (*in_plane, first.thickness) if first.spacing else None
        return Geometry(shape, affine, spacing, count == 1, 2, "", as_stored=True)

    towards = np.array(fields.normal(first.orientation))
    positions = np.array([frame.position for frame in frames])
    regular, step = _slice_step(frames, positions, towards)
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * (in_plane[0] or 1.0)
    affine[:3, 1] = np.array(first.orientation[3:]) * (in_plane[1] or 1.0)
    affine[:3, 2] = step if step.any() else towards * (first.thickness or 1.0)
    affine[:3, 3] = positions[0]
    affine = _LPS @ affine
    gaps = np.abs(np.diff(positions @ towards))
    thickness = (float(gaps.mean() if regular else np.median(gaps)) if count > 1 else 0.0) or first.thickness
    spacing = (*in_plane, thickness) if first.spacing else None
    return Geometry(shape, affine, spacing, regular, 2, codes(affine), as_stored=True)


def _neighbours(values: Sequence[tuple[float, ...]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = np.array(values)
    return found[:-1], found[1:]


def _slice_step(
    frames: Sequence[Frame], positions: NDArray[np.float64], towards: NDArray[np.float64]
) -> tuple[bool, NDArray[np.float64]]:
    """Whether the slices are parallel, evenly spaced, aligned and of one pixel size; and the step from one slice to
    the next, LPS mm (zero for a single slice)."""
    if len(frames) == 1:
        return True, np.zeros(3)
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    length = float(np.linalg.norm(step))
    off = positions - (positions[0] + np.arange(len(frames))[:, None] * step)
    regular = (
        length > APART
        and float(np.abs(off).max()) <= UNEVEN * length
        and float(np.linalg.norm(np.cross(towards, step))) <= TILT * length
        and bool(np.allclose(*_neighbours([frame.orientation for frame in frames]), rtol=0, atol=PARALLEL))
        and all(len(frame.spacing) == len(frames[0].spacing) for frame in frames)
        and bool(np.allclose([frame.spacing for frame in frames], frames[0].spacing, rtol=1e-3, atol=0))
    )
    return regular, step
