"""The position of a volume in the patient, and how it is cut into pictures: pure arithmetic on affines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes, io_orientation
from numpy.typing import NDArray

from backend.errors import CannotCut

AXES = ("acquisition", "axial", "coronal", "sagittal")

_WORLD = {"sagittal": 0, "coronal": 1, "axial": 2}  # the RAS axis perpendicular to each plane
_NAMES = {number: name for name, number in _WORLD.items()}
# Rows and columns of a picture in radiological convention: the RAS axis in whose opposite direction each runs.
_SHOWN = {"axial": (1, 0), "coronal": (2, 0), "sagittal": (2, 1)}


@dataclass(frozen=True, eq=False)
class Geometry:
    """The positions of the voxels of one volume.

    shape        (I, J, K)
    affine       (4, 4): voxel indices to RAS+ mm. If `regular` is False, only its first two columns and its origin
                 are exact; if `orientation` is "", it contains the spacing but no position
    spacing      mm along i, j, k; None if unknown; the third is 0.0 if only that is unknown (one slice without a
                 thickness)
    regular      False: the slices are not evenly spaced or not parallel, so only the acquisition axis can be cut
    acquisition  the axis along which the slices were acquired: 2 for DICOM and plain pictures, for NIfTI the one with
                 the coarsest spacing, the last one in a tie
    orientation  the directions of i, j, k, as in `nibabel.aff2axcodes`: "LPS", ...; "" if unknown
    as_stored    whether cuts along the acquisition axis show the pixels as stored (DICOM, plain pictures) rather than
                 in radiological convention (NIfTI)
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float] | None
    regular: bool
    acquisition: int
    orientation: str
    as_stored: bool = False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Geometry):
            return NotImplemented
        return self._facts() == other._facts() and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash(self._facts())

    def _facts(self) -> tuple[Any, ...]:
        return self.shape, self.spacing, self.regular, self.acquisition, self.orientation, self.as_stored

    def to_json(self) -> str:
        """JSON text; `from_json` restores the same numbers, to the last bit."""
        return json.dumps(
            {
                "shape": self.shape,
                "affine": self.affine.tolist(),
                "spacing": self.spacing,
                "regular": self.regular,
                "acquisition": self.acquisition,
                "orientation": self.orientation,
                "as_stored": self.as_stored,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Geometry:
        facts = json.loads(text)
        i, j, k = facts["shape"]
        spacing = facts["spacing"]
        return cls(
            (int(i), int(j), int(k)),
            np.array(facts["affine"], np.float64),
            None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
            bool(facts["regular"]),
            int(facts["acquisition"]),
            str(facts["orientation"]),
            bool(facts["as_stored"]),
        )


@dataclass(frozen=True)
class Cut:
    """How a volume becomes pictures, and pictures a volume again.

    Pictures are in radiological convention (axial: anterior up, the patient's right on the left; coronal: head up, the
    patient's right on the left; sagittal: head up, anterior left), except that a cut along the acquisition axis of a
    DICOM or plain picture shows the pixels as stored. Slice n is voxel index n along the cut axis.

    axis       the requested axis, one of AXES
    count      number of slices
    shape      (rows, columns) of each picture
    spacing    mm between the centres of rows, of columns; None if unknown
    thickness  mm between slices; None if unknown
    along      the voxel axis that is cut
    down       the voxel axis along a column of the picture; `flip_down`: upwards
    across     the voxel axis along a row of the picture; `flip_across`: leftwards
    """

    axis: str
    count: int
    shape: tuple[int, int]
    spacing: tuple[float, float] | None
    thickness: float | None
    along: int
    down: int
    across: int
    flip_down: bool = False
    flip_across: bool = False

    def take(self, values: NDArray[Any], n: int) -> NDArray[Any]:
        """Picture n of `values` (I, J, K) or (I, J, K, 3): (rows, columns) or (rows, columns, 3). A view.

        Raises IndexError unless 0 <= n < count, ValueError on an array of another size.
        """
        if not 0 <= n < self.count:
            raise IndexError(f"the {self.axis} cut has slices 0..{self.count - 1}, got slice {n}")
        sizes = (values.shape[self.along], values.shape[self.down], values.shape[self.across])
        if values.ndim not in (3, 4) or sizes != (self.count, *self.shape):
            raise ValueError(f"this cut has {self.count} pictures of {self.shape}, got an array of {values.shape}")
        picture = values[(slice(None),) * self.along + (n,)]
        if self.down > self.across:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.flip_down else 1, :: -1 if self.flip_across else 1]

    def put(self, values: NDArray[Any], n: int, picture: NDArray[Any]) -> None:
        """Write `picture` where `take` reads it: afterwards `take(values, n)` equals it.

        Raises the same errors as `take`, and ValueError if the picture has another size.
        """
        place = self.take(values, n)
        if picture.shape != place.shape:
            raise ValueError(f"expected a picture of {place.shape}, got {picture.shape}")
        place[...] = picture


def cut(geometry: Geometry, axis: str) -> Cut:
    """The pictures of a volume along one of AXES.

    An oblique volume is cut along its own voxel axes: "axial" means the one nearest to the body's axis.

    Raises CannotCut (a ValueError) if `axis` is invalid, or the volume cannot be cut along it: its slices are not
    evenly spaced, its orientation is unknown, or it is a single slice.
    """
    if axis not in AXES:
        raise CannotCut(f"a volume is cut along one of {', '.join(AXES)}, not along {axis!r}")
    if axis == "acquisition":
        along, plane = geometry.acquisition, ""
        if not geometry.as_stored and geometry.orientation:
            plane = _NAMES[int(_world(geometry)[along])]
    else:
        if not geometry.orientation:
            raise CannotCut(
                f"there is no {axis} cut: the header does not contain the orientation of the scan. "
                "Cut along 'acquisition'"
            )
        plane = axis
        along = int(np.flatnonzero(_world(geometry) == _WORLD[axis])[0])
        if along != geometry.acquisition:
            if not geometry.regular:
                raise CannotCut(
                    f"there is no {axis} cut: the slices are not evenly spaced or not parallel. Cut along 'acquisition'"
                )
            if geometry.shape[geometry.acquisition] == 1:
                raise CannotCut(f"there is no {axis} cut: the scan is a single slice. Cut along 'acquisition'")
    flip_down = flip_across = False
    if plane:
        world = _world(geometry)
        signs = _orientation(geometry)[:, 1]
        down, across = (int(np.flatnonzero(world == number)[0]) for number in _SHOWN[plane])
        # A picture's rows and columns run opposite to the RAS axes, so a voxel axis in their direction is flipped.
        flip_down, flip_across = bool(signs[down] > 0), bool(signs[across] > 0)
    else:
        across, down = (number for number in range(3) if number != along)
    spacing = thickness = None
    if geometry.spacing is not None:
        between = geometry.spacing[down], geometry.spacing[across]
        spacing = between if min(between) > 0 else None
        thickness = geometry.spacing[along] or None
    shape = geometry.shape[down], geometry.shape[across]
    return Cut(axis, geometry.shape[along], shape, spacing, thickness, along, down, across, flip_down, flip_across)


def _world(geometry: Geometry) -> NDArray[np.float64]:
    """The nearest RAS axis of each voxel axis; a permutation."""
    return _orientation(geometry)[:, 0]


def _orientation(geometry: Geometry) -> NDArray[np.float64]:
    return np.asarray(io_orientation(geometry.affine))  # type: ignore[no-untyped-call]


def codes(affine: NDArray[np.float64]) -> str:
    """The directions of the voxel axes, such as "LPS"; "" if the affine is unusable."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        return ""
    found = aff2axcodes(affine)  # type: ignore[no-untyped-call]
    return "" if None in found else "".join(found)


def of_volume(shape: tuple[int, int, int], affine: NDArray[np.float64], sizes: NDArray[np.float64]) -> Geometry:
    """The geometry of a volume in one file.

    affine  voxel indices to RAS+ mm; if it is unusable (zeros, say), the position is unknown
    sizes   mm along i, j, k, for that case; anything but positive numbers: unknown
    """
    orientation = codes(affine)
    if orientation:
        sizes = np.asarray(voxel_sizes(affine))  # type: ignore[no-untyped-call]
    else:  # no position, but its voxel sizes may be valid
        known = bool(np.isfinite(sizes).all() and (sizes > 0).all())
        affine = np.diag([*((-1, -1, 1) * (sizes if known else np.ones(3))), 1.0])
        sizes = sizes if known else np.zeros(3)
    spacing = (float(sizes[0]), float(sizes[1]), float(sizes[2])) if sizes.all() else None
    acquisition = 2
    if spacing is not None:
        # Sizes that differ only by 32-bit rounding are equal.
        acquisition = max(axis for axis in range(3) if spacing[axis] >= max(spacing) * (1 - 1e-4))
    if shape[2] == 1 and not (shape[0] == 1 or shape[1] == 1):
        acquisition = 2  # a single slice, whatever its declared thickness
    straight = affine[:3, :3] / np.where(sizes > 0, sizes, 1)
    regular = bool(orientation) and float(np.abs(straight.T @ straight - np.eye(3)).max()) < 0.01
    return Geometry(shape, affine, spacing, regular, acquisition, orientation, as_stored=not orientation)
