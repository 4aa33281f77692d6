"""Masks as DICOM objects: segmentations (SEG) and structure sets (RTSTRUCT), which refer to the images of their scan.

Source: DICOM PS3.3 A.51 and C.8.20 (SEG), A.19 and C.8.8.6 (RTSTRUCT).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.utils import pixel_array

from backend.errors import UnreadableFile
from backend.formats import dicom, fields, frames
from backend.formats.functional_groups import first_item, groups, items
from backend.formats.geometry import Geometry
from backend.formats.masks import NEAR, Grid, MaskMisfit, Segment, fitted
from backend.formats.pixels import polygon_to_mask

_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_BETWEEN = 0.3  # maximum distance of a contour from the middle of its slice, in slices
_ON_EDGE = 1e-3  # pixels

Mask = NDArray[np.bool_]


def open_object(path: Path) -> Object | None:
    """The masks in a DICOM file; None if it is another object, such as an image. Raises UnreadableFile."""
    header = dicom.load(path)
    kind = fields.text(header, "SOPClassUID")
    if kind in _SEGMENTATIONS:
        return DicomSegmentation(path, header)
    return StructureSet(path, header) if kind == _STRUCTURE_SET else None


def _referenced(header: Dataset) -> frozenset[str]:
    """Every ReferencedSOPInstanceUID in a header."""
    found: set[str] = set()

    def visit(dataset: Dataset) -> None:
        for element in dataset:
            if element.keyword == "ReferencedSOPInstanceUID":
                found.add(str(element.value))
            elif element.VR == "SQ":
                for item in element.value:
                    visit(item)

    visit(header)
    return frozenset(found)


class DicomSegmentation:
    """A DICOM SEG: binary, fractional (half and more counts as drawn) or a label map."""

    def __init__(self, path: Path, header: Dataset) -> None:
        self.path = path
        with dicom.reported(path):
            self.instances = _referenced(header)
            self.named = tuple(
                Segment(fields.whole(item, "SegmentNumber"), fields.text(item, "SegmentLabel"))
                for item in items(header, "SegmentSequence")
            )

    def onto(self, grid: Grid) -> Iterator[tuple[Segment, Mask]]:
        header = dicom.load(self.path, pixels=True)
        with dicom.reported(self.path):
            count = max(1, fields.whole(header, "NumberOfFrames"))
            placed = frames.of_header(header, count)
            label_map = fields.text(header, "SegmentationType") == "LABELMAP"
            full = fields.number(header, "MaximumFractionalValue") if header.BitsAllocated > 1 and not label_map else 1
            frames_of: dict[int, list[int]] = defaultdict(list)
            for n in range(count):
                for number in [segment.number for segment in self.named] if label_map else [_segment(header, n)]:
                    frames_of[number].append(n)
        for segment in self.named:
            found = np.zeros(grid.geometry.shape, np.bool_)
            for n in frames_of.get(segment.number, ()):
                with dicom.reported(self.path):
                    values: NDArray[Any] = pixel_array(header, index=n)
                plane = values == segment.number if label_map else values >= (full or 1) / 2
                if plane.any():
                    _place(self.path, found, plane, placed[n], _source_of(header, n), grid)
            if found.any():
                yield segment, found


def _segment(header: Dataset, n: int) -> int:
    """The segment that frame n belongs to."""
    for group in groups(header, n):
        if (item := first_item(group, "SegmentIdentificationSequence")) is not None:
            return fields.whole(item, "ReferencedSegmentNumber")
    return 1


def _source_of(header: Dataset, n: int) -> str:
    """SOPInstanceUID of the only image that frame n was drawn on, or ""."""
    for group in groups(header, n):
        derived = first_item(group, "DerivationImageSequence")
        sources = items(derived, "SourceImageSequence") if derived is not None else []
        if sources:
            return fields.text(sources[0], "ReferencedSOPInstanceUID") if len(sources) == 1 else ""
    return ""


def _place(path: Path, found: Mask, plane: Mask, frame: frames.Frame, source: str, grid: Grid) -> None:
    """Draw a frame (rows, columns) where it belongs."""
    rows, columns = plane.shape
    own = frames.geometry(rows, columns, [frame])
    scan = grid.geometry
    if source in grid.instances and _same_plane(own, scan):
        found[:, :, grid.instances.index(source)] |= plane.T
        return
    if not own.orientation or not scan.orientation:
        raise MaskMisfit(path, "does not fit: its frames have no position, and refer to no single image of the scan")
    found |= fitted(path, plane.T[..., None], own, scan)


def _same_plane(own: Geometry, scan: Geometry) -> bool:
    """Whether a frame has the size and, where both are known, the directions and pixels of the scan's slices."""
    if own.shape[:2] != scan.shape[:2]:
        return False
    known = own.orientation and scan.orientation
    drift = np.abs(own.affine[:3, :2] - scan.affine[:3, :2]).max(0) * (np.array(own.shape[:2]) - 1)
    pixel = np.linalg.norm(scan.affine[:3, :2], axis=0)
    return not known or bool((drift <= NEAR * pixel).all())


@dataclass(frozen=True)
class _Contour:
    """A closed outline, (n, 3) in RAS mm, and the image that it was drawn on, or ""."""

    points: NDArray[np.float64]
    instance: str


class StructureSet:
    """An RTSTRUCT: closed outlines on slices.

    A voxel belongs to a structure if its centre is inside or on the outline. An outline within another one of the same
    structure and slice is a hole, and its edge belongs to the structure.
    """

    def __init__(self, path: Path, header: Dataset) -> None:
        self.path = path
        with dicom.reported(path):
            self.instances = _referenced(header)
            names = {
                fields.whole(item, "ROINumber"): fields.text(item, "ROIName")
                for item in items(header, "StructureSetROISequence")
            }
            self._contours = {
                fields.whole(item, "ReferencedROINumber"): _contours(item)
                for item in items(header, "ROIContourSequence")
            }
        # points of reference and marks have no area
        self.named = tuple(Segment(number, name) for number, name in names.items() if self._contours.get(number))

    def onto(self, grid: Grid) -> Iterator[tuple[Segment, Mask]]:
        for segment in self.named:
            found = np.zeros(grid.geometry.shape, np.bool_)
            by_slice: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
            for contour in self._contours[segment.number]:
                k, points = self._on_slice(contour, grid)
                by_slice[k].append(points)
            for k, outlines in by_slice.items():
                found[:, :, k] = _filled(self.path, outlines, grid.geometry.shape[1], grid.geometry.shape[0]).T
            if found.any():
                yield segment, found

    def _on_slice(self, contour: _Contour, grid: Grid) -> tuple[int, NDArray[np.float64]]:
        """The slice of an outline, and its points (n, 2) in columns and rows from the corner of the picture."""
        scan = grid.geometry
        if not scan.orientation:
            raise MaskMisfit(self.path, "does not fit: the scan has no position in the patient, but the outlines have")
        relative = contour.points - scan.affine[:3, 3]
        if contour.instance in grid.instances and not scan.regular:
            inside, *_ = np.linalg.lstsq(scan.affine[:3, :2], relative.T, rcond=None)
            return grid.instances.index(contour.instance), np.asarray(inside.T + 0.5, np.float64)
        if not scan.regular:
            raise MaskMisfit(
                self.path, "does not fit: the slices of the scan are not evenly spaced, and its outlines name no image"
            )
        voxels = relative @ np.linalg.inv(scan.affine[:3, :3]).T
        k = round(float(voxels[:, 2].mean()))
        if np.abs(voxels[:, 2] - k).max() > _BETWEEN:
            raise MaskMisfit(self.path, "does not fit: it has outlines between or across the slices of the scan")
        if not 0 <= k < scan.shape[2]:
            raise MaskMisfit(self.path, "does not fit: it has outlines outside the scan")
        return k, voxels[:, :2] + 0.5


def _contours(roi: Dataset) -> list[_Contour]:
    found = []
    for item in items(roi, "ContourSequence"):
        if not fields.text(item, "ContourGeometricType").startswith("CLOSED"):
            continue
        points = np.asarray(item.ContourData, np.float64).reshape(-1, 3) * (-1, -1, 1)  # LPS to RAS
        image = first_item(item, "ContourImageSequence")
        found.append(_Contour(points, "" if image is None else fields.text(image, "ReferencedSOPInstanceUID")))
    return found


def _filled(path: Path, outlines: list[NDArray[np.float64]], rows: int, columns: int) -> Mask:
    """The pixels inside the outlines of one structure on one slice; those within others are holes, and so on."""
    found = np.zeros((rows, columns), np.bool_)
    scale = np.array([100 / columns, 100 / rows])
    if any(not np.isfinite(points).all() for points in outlines):
        raise UnreadableFile(path, "is a damaged RTSTRUCT: an outline has values that are not numbers; export it again")
    drawn: list[Mask] = []
    for points in sorted(outlines, key=lambda points: -_area(points)):
        edge = _on_edge(points, rows, columns)
        inside = polygon_to_mask(points * scale, rows, columns) if len(points) > 2 else np.zeros_like(found)
        here = inside | edge
        if not here.any():
            continue
        if sum(bool((here & ~outer).sum() == 0) for outer in drawn) % 2:
            found &= ~(inside & ~edge)
        else:
            found |= here
        drawn.append(here)
    return found


def _area(points: NDArray[np.float64]) -> float:
    x, y = points.T
    return abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2


def _on_edge(points: NDArray[np.float64], rows: int, columns: int) -> Mask:
    """The pixels whose centre is on an outline."""
    found = np.zeros((rows, columns), np.bool_)
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        low = np.clip(np.ceil(np.minimum(start, end) - 0.5 - _ON_EDGE), 0, (columns, rows)).astype(int)
        high = np.clip(np.floor(np.maximum(start, end) - 0.5 + _ON_EDGE) + 1, 0, (columns, rows)).astype(int)
        if (high <= low).any():
            continue
        x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
        along = end - start
        length = float(np.hypot(*along))
        if length < _ON_EDGE:
            near = np.hypot(x - start[0], y - start[1]) <= _ON_EDGE
        else:
            near = np.abs((x - start[0]) * along[1] - (y - start[1]) * along[0]) <= _ON_EDGE * length
        found[low[1] : high[1], low[0] : high[0]] |= near
    return found


Object = DicomSegmentation | StructureSet
