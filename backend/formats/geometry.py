"""How a volume lies in the patient, and how it is cut into pictures: pure arithmetic on affines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import aff2axcodes, io_orientation
from numpy.typing import NDArray

from backend.errors import CannotCut

AXES = ("acquisition", "axial", "coronal", "sagittal")

_WORLD = {"sagittal": 0, "coronal": 1, "axial": 2}  # the axis of RAS that a plane is perpendicular to
_NAMES = {number: name for name, number in _WORLD.items()}
# Rows and columns of a picture in radiological convention: the axis of RAS that each runs against.
_SHOWN = {"axial": (1, 0), "coronal": (2, 0), "sagittal": (2, 1)}


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the voxels of one volume are.

    shape        (I, J, K)
    affine       (4, 4): voxel indices to RAS+ mm. Where `regular` is False, only its first two columns and its origin
                 hold exactly; where `orientation` is "", it holds the spacing and no place
    spacing      mm along i, j, k, or None where unknown; the third is 0.0 where only that is (one slice that does not
                 say how thick it is)
    regular      False: the slices are not evenly spaced or not parallel, so only the acquisition axis can be cut
    acquisition  the axis along which the slices were acquired: DICOM and plain pictures 2, NIfTI the one with the
                 coarsest spacing, ties to the last
    orientation  where i, j, k point, as `nibabel.aff2axcodes`: "LPS", ...; "" where nobody knows
    as_stored    whether cuts along the acquisition axis show the pixels as the file has them (DICOM, plain pictures)
                 rather than in radiological convention (NIfTI)
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
        """As text; `from_json` gives the same numbers back, to the last bit."""
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
    DICOM or plain picture shows the pixels as they are stored. Slice n is voxel index n along the axis that is cut.

    axis       what was asked for, one of AXES
    count      how many slices
    shape      (rows, columns) of each picture
    spacing    mm between the centres of rows, of columns; None where unknown
    thickness  mm between slices; None where unknown
    along      the voxel axis that is cut
    down       the voxel axis that runs along a column of the picture, `flip_down`: upwards
    across     the voxel axis that runs along a row of the picture, `flip_across`: leftwards
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
            raise IndexError(f"the {self.axis} cut has slices 0..{self.count - 1}, there is no slice {n}")
        sizes = (values.shape[self.along], values.shape[self.down], values.shape[self.across])
        if values.ndim not in (3, 4) or sizes != (self.count, *self.shape):
            raise ValueError(f"this cut gives {self.count} pictures of {self.shape}, the array is {values.shape}")
        picture = values[(slice(None),) * self.along + (n,)]
        if self.down > self.across:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.flip_down else 1, :: -1 if self.flip_across else 1]

    def put(self, values: NDArray[Any], n: int, picture: NDArray[Any]) -> None:
        """Write `picture` where `take` would read it from: afterwards `take(values, n)` equals it.

        Raises as `take`, and ValueError when the picture has another size.
        """
        place = self.take(values, n)
        if picture.shape != place.shape:
            raise ValueError(f"a picture of {place.shape} goes here, this one is {picture.shape}")
        place[...] = picture


def cut(geometry: Geometry, axis: str) -> Cut:
    """The pictures that a volume gives along one of AXES.

    An oblique volume is cut along its own voxel axes: "axial" is along the one nearest to the body's.

    Raises CannotCut (a ValueError) where `axis` is no axis, or the volume cannot be cut along it: its slices are not
    evenly spaced, its orientation is unknown, or pictures of one slice's edge would come out.
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
                f"there is no {axis} cut: the header does not say how the scan lies in the patient. "
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
        # A picture's rows and columns run against the axes of RAS, so an axis that runs with one is turned.
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
    """For each voxel axis, the axis of RAS it is nearest to; every one of them once."""
    return _orientation(geometry)[:, 0]


def _orientation(geometry: Geometry) -> NDArray[np.float64]:
    return np.asarray(io_orientation(geometry.affine))  # type: ignore[no-untyped-call]


def codes(affine: NDArray[np.float64]) -> str:
    """Where the voxel axes point, as "LPS"; "" when the affine cannot be used."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        return ""
    found = aff2axcodes(affine)  # type: ignore[no-untyped-call]
    return "" if None in found else "".join(found)
