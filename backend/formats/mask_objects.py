"""Masks as DICOM objects: segmentations (SEG) and structure sets (RTSTRUCT), which refer to the images of their scan.

Source: DICOM PS3.3 A.51 and C.8.20 (SEG), A.19 and C.8.8.6 (RTSTRUCT).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
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
from backend.formats.masks import NEAR, Grid, MaskMisfit, Segment, Where, placed
from backend.formats.outlines import filled

_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_BETWEEN = 0.3  # maximum distance of a contour from the middle of its slice, in slices

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
                Segment(number := fields.whole(item, "SegmentNumber"), fields.text(item, "SegmentLabel") or str(number))
                for item in items(header, "SegmentSequence")
            )

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def onto(self, grid: Grid, *, without: frozenset[int] = frozenset()) -> Iterator[tuple[Segment, Mask]]:
        header = dicom.load(self.path, pixels=True)
        with dicom.reported(self.path):
            count = max(1, fields.whole(header, "NumberOfFrames"))
            if count > frames.MAX_FRAMES:
                raise UnreadableFile(self.path, f"declares {count:,} frames; the maximum is {frames.MAX_FRAMES:,}")
            places = frames.of_header(header, count)
            numbered = fields.text(header, "SegmentationType") == "LABELMAP"
            full = fields.number(header, "MaximumFractionalValue") if header.BitsAllocated > 1 else 1
            frames_of: dict[int, list[int]] = defaultdict(list)
            for n in range(0 if numbered else count):
                frames_of[self._segment(header, n)].append(n)
        if unknown := frames_of.keys() - {segment.number for segment in self.named}:
            raise UnreadableFile(
                self.path, f"draws the segment {min(unknown)}, which it does not describe; export it again"
            )
        if numbered:
            yield from self._numbered(header, places, grid, without)
            return
        for segment in self.named:
            if segment.number in without:
                continue
            found = np.zeros(grid.geometry.shape, np.bool_)
            for n in frames_of.get(segment.number, ()):
                plane = self._plane(header, n) >= (full or 1) / 2
                if plane.any():
                    _place(self.path, found, plane, places[n], _source_of(header, n), grid)
            if found.any():
                yield segment, found

    def _numbered(
        self, header: Dataset, places: Sequence[frames.Frame], grid: Grid, without: frozenset[int]
    ) -> Iterator[tuple[Segment, Mask]]:
        """The structures of a label map; 0 is its background, even if it has a name."""
        unwanted = np.array(sorted(without | {0}))
        found = np.zeros(grid.geometry.shape, np.uint16)
        for n, place in enumerate(places):
            plane = self._plane(header, n)
            plane = np.where(np.isin(plane, unwanted), 0, plane)
            if plane.any():
                _place(self.path, found, plane, place, _source_of(header, n), grid)
        names = {segment.number: segment for segment in self.named}
        for number in np.unique(found[found > 0]).tolist():
            yield names.get(number, Segment(number, str(number))), found == number

    def _plane(self, header: Dataset, n: int) -> NDArray[Any]:
        with dicom.reported(self.path):
            return np.asarray(pixel_array(header, index=n))

    def _segment(self, header: Dataset, n: int) -> int:
        """The segment that frame n belongs to."""
        for group in groups(header, n):
            if (item := first_item(group, "SegmentIdentificationSequence")) is not None:
                return fields.whole(item, "ReferencedSegmentNumber")
        if len(self.named) == 1:
            return self.named[0].number
        raise UnreadableFile(self.path, "has frames that belong to none of its segments; export it again")


def _source_of(header: Dataset, n: int) -> str:
    """SOPInstanceUID of the only image that frame n was drawn on, or ""."""
    for group in groups(header, n):
        derived = first_item(group, "DerivationImageSequence")
        sources = items(derived, "SourceImageSequence") if derived is not None else []
        if sources:
            return fields.text(sources[0], "ReferencedSOPInstanceUID") if len(sources) == 1 else ""
    return ""


def _place(path: Path, found: NDArray[Any], plane: NDArray[Any], frame: frames.Frame, source: str, grid: Grid) -> None:
    """Draw a frame (rows, columns) where it belongs."""
    rows, columns = plane.shape
    own = frames.geometry(rows, columns, [frame])
    scan = grid.geometry
    known = own.orientation and scan.orientation
    part: NDArray[Any] = plane.T[..., None]
    where: Where
    if known and scan.regular:
        part, where = placed(path, part, own, scan)
    elif source in grid.instances and _same_plane(own, grid, k := grid.instances.index(source)):
        where = (slice(None), slice(None), slice(k, k + 1))
    else:
        raise MaskMisfit(
            path,
            "does not fit: a frame's image is not in the scan, or is in another place than the frame. Save it on the "
            "images of the scan"
            if known
            else "does not fit: its frames have no position, and refer to no single image of the scan",
        )
    found[where] = np.maximum(found[where], part)


def _same_plane(own: Geometry, grid: Grid, k: int) -> bool:
    """Whether a frame has the size and, where both are known, the directions, pixels and place of slice k."""
    scan = grid.geometry
    if own.shape[:2] != scan.shape[:2]:
        return False
    if not (own.orientation and scan.orientation):
        return True
    drift = np.abs(own.affine[:3, :2] - scan.affine[:3, :2]).max(0) * (np.array(own.shape[:2]) - 1)
    pixel = np.linalg.norm(scan.affine[:3, :2], axis=0)
    apart = np.abs(own.affine[:3, 3] - grid.origins[k]).max() if grid.origins else 0.0
    return bool((drift <= NEAR * pixel).all() and apart <= NEAR * pixel.min())


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
            # Points of reference and marks have no area. A number says nothing: planning systems count structures.
            drawn = {_roi(item) for item in items(header, "ROIContourSequence") if _contours(path, item)}
            self.named = tuple(Segment(number, names.get(number) or str(number)) for number in sorted(drawn))

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def onto(self, grid: Grid, *, without: frozenset[int] = frozenset()) -> Iterator[tuple[Segment, Mask]]:
        header = dicom.load(self.path)  # again: outlines of many files would not fit into memory
        for segment in self.named:
            if segment.number in without:
                continue
            with dicom.reported(self.path):
                rois = [one for one in items(header, "ROIContourSequence") if _roi(one) == segment.number]
                contours = [contour for one in rois for contour in _contours(self.path, one)]
            found = np.zeros(grid.geometry.shape, np.bool_)
            by_slice: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
            for contour in contours:
                k, points = self._on_slice(contour, grid)
                by_slice[k].append(points)
            for k, outlines in by_slice.items():
                found[:, :, k] = filled(self.path, outlines, grid.geometry.shape[1], grid.geometry.shape[0]).T
            if found.any():
                yield segment, found

    def _on_slice(self, contour: _Contour, grid: Grid) -> tuple[int, NDArray[np.float64]]:
        """The slice of an outline, and its points (n, 2) in columns and rows from the corner of the picture."""
        scan = grid.geometry
        if not scan.orientation:
            raise MaskMisfit(self.path, "does not fit: the scan has no position in the patient, but the outlines have")
        if not np.isfinite(contour.points).all():
            raise UnreadableFile(self.path, "is a damaged RTSTRUCT: an outline has values that are not numbers")
        if not scan.regular:
            return self._on_image(contour, grid)
        voxels = (contour.points - scan.affine[:3, 3]) @ np.linalg.inv(scan.affine[:3, :3]).T
        k = round(float(voxels[:, 2].mean()))
        size = np.array(scan.shape[:2])
        if (voxels[:, :2].max(0) < -0.5).any() or (voxels[:, :2].min(0) > size - 0.5).any():
            raise MaskMisfit(self.path, "does not fit: it has outlines outside the pictures of the scan")
        if np.abs(voxels[:, 2] - k).max() > _BETWEEN:
            raise MaskMisfit(self.path, "does not fit: it has outlines between or across the slices of the scan")
        if not 0 <= k < scan.shape[2]:
            raise MaskMisfit(self.path, "does not fit: it has outlines outside the scan")
        return k, voxels[:, :2] + 0.5

    def _on_image(self, contour: _Contour, grid: Grid) -> tuple[int, NDArray[np.float64]]:
        """The same, of slices that only share their directions (gantry tilt, gaps): on the image that it names."""
        if contour.instance not in grid.instances or not grid.origins:
            raise MaskMisfit(
                self.path,
                "does not fit: the slices of the scan are not evenly spaced, and nothing says where they are: its "
                "outlines name no image, or the scan's files are elsewhere now. Use DICOM SEG, or one PNG per slice",
            )
        k = grid.instances.index(contour.instance)
        columns, spacing = grid.geometry.affine[:3, :2], grid.geometry.spacing
        relative = contour.points - grid.origins[k]
        inside = relative @ np.linalg.pinv(columns).T
        beside = np.abs(relative - inside @ columns.T).max()
        if beside > _BETWEEN * ((spacing[2] if spacing else 0.0) or 1.0):
            raise MaskMisfit(self.path, "does not fit: it has outlines beside the images that they name")
        return k, inside + 0.5


def _roi(item: Dataset) -> int:
    return fields.whole(item, "ReferencedROINumber")


def _contours(path: Path, roi: Dataset) -> list[_Contour]:
    found = []
    for item in items(roi, "ContourSequence"):
        kind = fields.text(item, "ContourGeometricType")
        if not item.get("ContourData") or (kind and not kind.startswith("CLOSED")):
            continue
        if not kind:
            raise UnreadableFile(
                path, "has outlines that are not said to be closed (ContourGeometricType); export it again"
            )
        stored = item.ContourData
        if isinstance(stored, bytes):  # of more than 64 KB, which DICOM with explicit VRs stores as unknown
            stored = stored.decode("ascii").rstrip("\0 ").split("\\")
        points = np.asarray(stored, np.float64).reshape(-1, 3) * (-1, -1, 1)  # LPS to RAS
        image = first_item(item, "ContourImageSequence")
        found.append(_Contour(points, "" if image is None else fields.text(image, "ReferencedSOPInstanceUID")))
    return found


Object = DicomSegmentation | StructureSet
