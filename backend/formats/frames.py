"""The positions of the frames of a DICOM source, their order in a volume, and that volume's geometry.

A *frame* is one slice: a single-frame file, or one frame of a multi-frame file (enhanced or not). DICOM coordinates
are LPS; ours are RAS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from backend.errors import UnreadableFile
from backend.formats import dicom
from backend.formats.geometry import Geometry, codes
from backend.formats.source import FileFacts, Source
from backend.formats.stacks import ALIKE, APART

MAX_FRAMES = 100_000
PARALLEL = 1e-3  # maximum difference of direction cosines in a regular volume
UNEVEN = 0.02  # tolerance as a share of the slice distance; larger than the rounding of positions
TILT = 0.01  # maximum sine of the angle between the normal and the step between slices (gantry tilt)
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Frame:
    """One slice; as in FileFacts, () and 0.0 mean unknown."""

    orientation: tuple[float, ...] = ()
    position: tuple[float, ...] = ()
    spacing: tuple[float, ...] = ()
    thickness: float = 0.0


def read_geometry(source: Source, *, time: int | None = None) -> Geometry:
    """Geometry of a DICOM source; see `backend.formats.read_geometry`."""
    found: list[FileFacts] = []
    for path in source.files:
        fact = dicom.sniff(path, certain=True)
        if fact is None:
            raise UnreadableFile(path, dicom.REPLACED)
        found.append(fact)
    first = found[0]
    if len(found) == 1 and first.frames > 1:
        order, placed = layout(source.files[0], dicom.load(source.files[0]), first.frames, time)
        return geometry(first.rows, first.columns, [placed[n] for n in order])
    choose_volume(source.files[0], 1, time)
    return geometry(first.rows, first.columns, [of_file(fact) for fact in found])


def layout(path: Path, header: Dataset, count: int, time: int | None) -> tuple[list[int], list[Frame]]:
    """The frames of a multi-frame file that form volume `time`, in order of k; and all frames as stored."""
    if count > MAX_FRAMES:
        raise UnreadableFile(path, f"declares {count:,} frames; the maximum is {MAX_FRAMES:,}; split it")
    with dicom.reported(path):
        placed = of_multiframe(header, count)
        choices = volumes(placed)
    return choices[choose_volume(path, len(choices), time)], placed


def of_file(facts: FileFacts) -> Frame:
    return Frame(facts.orientation, facts.position, facts.spacing, facts.thickness)


def of_multiframe(header: Dataset, count: int) -> list[Frame]:
    """The frames of a multi-frame file as stored: from functional groups, or from the whole header."""
    whole = Frame(
        dicom.directions(header),
        dicom.numbers(header, "ImagePositionPatient", 3),
        dicom.spacing(header),
        dicom.thickness(header),
    )
    shared = first_item(header, "SharedFunctionalGroupsSequence")
    each = items(header, "PerFrameFunctionalGroupsSequence")
    if shared is not None or each:
        return [_from_groups(shared, each[n] if n < len(each) else None, whole) for n in range(count)]
    detector = first_item(header, "DetectorInformationSequence")
    if detector is not None and dicom.text(header, "Modality").upper() == "NM":  # gives the first position only
        orientation, position = dicom.directions(detector), dicom.numbers(detector, "ImagePositionPatient", 3)
        step = dicom.number(header, "SpacingBetweenSlices")
        if orientation and position and step and "SliceVector" in header:
            towards = step * np.array(dicom.normal(orientation))
            places = [np.array(position) + n * towards for n in range(count)]
            return [Frame(orientation, tuple(map(float, place)), whole.spacing, abs(step)) for place in places]
    return [Frame((), (), whole.spacing, whole.thickness)] * count


def _from_groups(shared: Dataset | None, own: Dataset | None, whole: Frame) -> Frame:
    def macro(keyword: str) -> Dataset:
        for group in (own, shared):
            if group is not None and (found := first_item(group, keyword)) is not None:
                return found
        return Dataset()

    measures = macro("PixelMeasuresSequence")
    return Frame(
        dicom.directions(macro("PlaneOrientationSequence")) or whole.orientation,
        dicom.numbers(macro("PlanePositionSequence"), "ImagePositionPatient", 3),
        dicom.spacing(measures) or whole.spacing,
        dicom.thickness(measures) or whole.thickness,
    )


def items(header: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; [] if it is missing."""
    found = header.get(keyword)
    return list(found) if found else []


def first_item(header: Dataset, keyword: str) -> Dataset | None:
    found = items(header, keyword)
    return found[0] if found else None


def volumes(frames: Sequence[Frame]) -> list[list[int]]:
    """The frames of each volume: frame numbers in order of position, one list per point in time.

    If every position has n frames, they form n volumes; the n-th frame at every position, as stored, belongs to volume
    n. Frames without positions, or all at one position, form one volume as stored.
    """
    as_stored = list(range(len(frames)))
    first = frames[0].orientation
    if not first or not all(
        frame.position and frame.orientation and np.allclose(frame.orientation, first, rtol=0, atol=ALIKE)
        for frame in frames
    ):
        return [as_stored]
    towards = dicom.normal(first)
    place = [float(np.dot(towards, frame.position)) for frame in frames]
    at: list[list[int]] = []
    for n in sorted(as_stored, key=lambda n: place[n]):
        if at and place[n] - place[at[-1][0]] <= APART:
            at[-1].append(n)
        else:
            at.append([n])
    depth = {len(group) for group in at}
    if len(at) == 1 or len(depth) > 1:
        return [as_stored]
    return [[sorted(group)[t] for group in at] for t in range(depth.pop())]


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

    towards = np.array(dicom.normal(first.orientation))
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
