"""One scan in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from backend.formats.geometry import Geometry
from backend.formats.window import Window

MAX_VOXELS = 2**31
"""More than this in one volume is refused, from the header, before anything is decoded."""


@dataclass(frozen=True, eq=False)
class Volume:
    """The values of one volume or picture, and how to show them.

    values    (I, J, K) modality values: rescale and modality LUT applied; integers stay integers where slope and
              intercept are whole. Colour: (I, J, K, 3) uint8 RGB. May be a read-only view
    window    the header's preset for the middle slice, or None
    inverted  low values are white (MONOCHROME1)
    presets   every preset of the header by its explanation ("1", "2", ... where it has none), in the header's order
    padding   (least, greatest) modality value that means "no image here", or None
    """

    values: NDArray[Any]
    geometry: Geometry
    window: Window | None
    inverted: bool
    presets: Mapping[str, Window] = field(default_factory=dict)
    padding: tuple[float, float] | None = None
