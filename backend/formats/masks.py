"""Masks that other programs have drawn, brought into the voxels of the scan that they belong to.

    mask = open_mask(path)                              None: the file cannot be a mask
    for segment, voxels in mask.onto(Grid(geometry)):    (I, J, K) booleans, one structure at a time

Every error is an `UnreadableFile`; a mask that does not fit its scan is the subclass `MaskMisfit`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnreadableFile
from backend.formats.geometry import Geometry

NEAR = 0.1  # maximum distance of voxel centres that count as the same place, in voxels
ROUNDED = 0.01  # what a scale in the header (scl_slope) may cost a whole number: nibabel stores 1 of 0..2 as 127 / 255
Where = tuple[slice, ...]


class MaskMisfit(UnreadableFile):
    """A mask whose voxels are not those of the scan."""


@dataclass(frozen=True)
class Segment:
    """One structure of a mask file: its number there, and its name; "": the file has no names."""

    number: int
    name: str = ""


@dataclass(frozen=True)
class Grid:
    """The voxels of a scan.

    instances  SOPInstanceUID of each slice k; () if not every slice has a file of its own
    origins    where the first voxel of each slice is, RAS mm, if the affine does not say so; () if unknown
    """

    geometry: Geometry
    instances: tuple[str, ...] = ()
    origins: tuple[tuple[float, ...], ...] = ()


class MaskFile(Protocol):
    """A file with the masks of one scan."""

    @property
    def path(self) -> Path: ...

    @property
    def named(self) -> tuple[Segment, ...]:
        """The structures that the file declares, drawn or not; () if it has no names."""

    @property
    def instances(self) -> frozenset[str]:
        """SOPInstanceUIDs of the images that it refers to. Empty: only its name says which scan it belongs to."""

    @property
    def files(self) -> tuple[Path, ...]:
        """`path`, and the other files that it consists of."""

    def onto(self, grid: Grid, *, without: frozenset[int] = frozenset()) -> Iterator[tuple[Segment, NDArray[np.bool_]]]:
        """Each structure that is drawn, in the voxels (I, J, K) of a scan.

        without  numbers of structures that are not needed, and need not fit

        Raises MaskMisfit if they are other voxels, UnreadableFile if the file is damaged or is no mask.
        """


def whole_numbers(path: Path, values: NDArray[Any]) -> NDArray[np.uint16]:
    """The values of a label map. Raises UnreadableFile if they are not the numbers of at most 255 structures."""
    if values.dtype.kind == "b":
        return values.astype(np.uint16)
    if values.dtype.kind == "f":
        whole = np.rint(values)
        if not np.isfinite(values).all() or np.abs(values - whole).max(initial=0) > ROUNDED:
            raise UnreadableFile(path, "is not a mask: it has values between whole numbers. Save one number per label")
        values = whole
    if values.size and (values.min() < 0 or values.max() > np.iinfo(np.uint16).max):
        raise UnreadableFile(path, "is not a mask: it has values below 0 or above 65535. Save one number per label")
    found = values.astype(np.uint16)
    count = int(np.count_nonzero(np.bincount(found.ravel(), minlength=1)[1:]))
    if count > 255:
        raise UnreadableFile(path, f"is not a mask: it has {count} different values. Save one number per label")
    return found


def fitted(path: Path, values: NDArray[Any], own: Geometry, scan: Geometry) -> NDArray[Any]:
    """`values` (of a mask with geometry `own`) in the voxels of a scan; voxels that the mask does not cover are 0."""
    part, where = placed(path, values, own, scan)
    if part.shape == scan.shape:
        return part
    found = np.zeros(scan.shape, values.dtype)
    found[where] = part
    return found


def placed(path: Path, values: NDArray[Any], own: Geometry, scan: Geometry) -> tuple[NDArray[Any], Where]:
    """The voxels of a mask (with geometry `own`) that are those of a scan, and which of the scan's these are.

    The voxel axes may have another order or direction, and the mask may cover a part of the scan, as long as the
    centres of its voxels are centres of the scan's, to a tenth of a voxel.

    Raises MaskMisfit if they are not, or if something outside the scan is drawn.
    """
    if not own.orientation or not scan.orientation:
        return _unplaced(path, values, own, scan), (slice(None),) * 3
    if scan.as_stored and not scan.regular:  # the affine of DICOM slices is then not that of every slice
        raise MaskMisfit(
            path,
            "does not fit: the slices of the scan are not evenly spaced, which this format cannot represent. Use DICOM "
            "SEG or RTSTRUCT, or one PNG per slice",
        )
    step = own.affine.copy()
    if own.shape[2] == 1:  # the thickness of a single slice is no place
        step[:3, 2] = _third(own.affine, scan.affine)
    elif scan.shape[2] == 1:
        raise MaskMisfit(path, f"does not fit: it has {own.shape[2]} slices, the scan has one")
    to_scan = np.linalg.inv(scan.affine) @ step
    turn = np.rint(to_scan[:3, :3])
    if not np.array_equal(np.abs(turn).sum(0), np.ones(3)) or not np.array_equal(np.abs(turn).sum(1), np.ones(3)):
        raise MaskMisfit(path, _difference(own, scan, "its voxels have another size or direction than the scan's"))
    shift = np.rint(to_scan[:3, 3])
    corners = np.stack(np.meshgrid(*((0, size - 1) for size in own.shape), indexing="ij"), -1).reshape(-1, 3)
    apart = np.abs(corners @ (to_scan[:3, :3] - turn).T + (to_scan[:3, 3] - shift)).max()
    if apart > NEAR:
        raise MaskMisfit(path, _difference(own, scan, f"its voxels are up to {apart:.2f} voxels off the scan's"))
    return _moved(path, values, turn, shift, scan.shape)


def _unplaced(path: Path, values: NDArray[Any], own: Geometry, scan: Geometry) -> NDArray[Any]:
    if own.orientation and not np.allclose(own.affine, scan.affine, rtol=0, atol=1e-3):
        raise MaskMisfit(
            path,
            "does not fit: it has a position in the patient, the scan has none, so nothing says which pixel is which. "
            "Use PNG masks",
        )
    if scan.orientation and own.shape[2] > 1:
        raise MaskMisfit(
            path, "does not fit: its header has no position in the patient. Save it with the geometry of its scan"
        )
    if values.shape != scan.shape:
        raise MaskMisfit(path, _difference(own, scan, ""))
    return values


def _third(own: NDArray[np.float64], scan: NDArray[np.float64]) -> NDArray[np.float64]:
    """The step of the scan's axis that runs along neither axis of a single slice."""
    inside = np.linalg.inv(scan[:3, :3]) @ own[:3, :2]
    rest = int(np.argmin(np.abs(inside).max(1)))
    return np.asarray(scan[:3, rest])


def _moved(
    path: Path, values: NDArray[Any], turn: NDArray[np.float64], shift: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[NDArray[Any], Where]:
    """The part of `values` that lies inside `shape` with voxel v moved to turn @ v + shift, and where it lies."""
    order = [int(np.flatnonzero(turn[axis])[0]) for axis in range(3)]  # own axis along each axis of the scan
    flips = tuple(slice(None, None, -1) if turn[axis, order[axis]] < 0 else slice(None) for axis in range(3))
    turned = values.transpose(order)[flips]
    sizes = turned.shape
    first = [int(shift[a]) - (sizes[a] - 1 if turn[a, order[a]] < 0 else 0) for a in range(3)]
    inner = [max(0, -start) for start in first]
    outer = [max(0, start) for start in first]
    lengths = [max(0, min(sizes[a] - inner[a], shape[a] - outer[a])) for a in range(3)]
    part = turned[tuple(slice(i, i + n) for i, n in zip(inner, lengths, strict=True))]
    lost = int(np.count_nonzero(values)) - int(np.count_nonzero(part))
    if lost:
        raise MaskMisfit(path, f"does not fit: {lost:,} of its voxels lie outside the scan")
    begin = [start if n else 0 for start, n in zip(outer, lengths, strict=True)]
    return part, tuple(slice(o, o + n) for o, n in zip(begin, lengths, strict=True))


def _difference(own: Geometry, scan: Geometry, rest: str) -> str:
    sizes = [" x ".join(map(str, one.shape)) for one in (own, scan)]
    if sizes[0] != sizes[1]:
        rest = f"it has {sizes[0]} voxels, the scan {sizes[1]}" + (f", and {rest}" if rest else "")
    return f"does not fit: {rest}. Save it on the voxels of its scan"
