"""One scan in memory, and the window to show it with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import BadWindow
from backend.formats.geometry import Geometry
from backend.formats.window import Window

MAX_VOXELS = 2**31
"""Maximum number of voxels per volume, checked in the header before anything is decoded."""

PERCENTILES = (0.5, 99.5)
SAMPLE = 1_000_000  # approximate maximum number of voxels for percentiles


@dataclass(frozen=True, eq=False)
class Volume:
    """The values of one volume or picture, and how to show them.

    values    (I, J, K) modality values: rescale and modality LUT applied; integers stay integers if slope and
              intercept are whole numbers. Colour: (I, J, K, 3) uint8 RGB. May be a read-only view
    window    the header's preset for the middle slice, or None
    inverted  low values are white (MONOCHROME1)
    presets   every preset in the header by explanation ("1", "2", ... if it has none), in the header's order
    padding   range (least, greatest) of modality values that mean "no image here", or None
    """

    values: NDArray[Any]
    geometry: Geometry
    window: Window | None
    inverted: bool
    presets: Mapping[str, Window] = field(default_factory=dict)
    padding: tuple[float, float] | None = None


def choose_window(volume: Volume, wanted: Window | str | None) -> Window:
    """The window to show a whole volume with.

    wanted  a Window: itself. A name: the header's preset of that name (case-insensitive), or "percentile". None: the
            header's preset, else percentiles

    Percentiles: black is the 0.5th and white the 99.5th percentile of the finite values without padding (in large
    volumes of every n-th voxel along each axis); if these are equal, the minimum and the maximum.

    Raises BadWindow if the header has no preset of that name; `shown` lists the existing ones.
    """
    if isinstance(wanted, Window):
        return wanted
    if isinstance(wanted, str) and wanted.strip().casefold() != "percentile":
        for name, preset in volume.presets.items():
            if name.casefold() == wanted.strip().casefold():
                return preset
        none = f"the header has no window named {wanted!r}; it has "
        use = "Use one of these, a center and width, or 'percentile'"
        there = len(volume.presets)
        raise BadWindow(
            f"{none}{there} other{'s' if there != 1 else ''}, whose names are shown in a terminal. {use}",
            f"{none}{', '.join(map(repr, volume.presets)) or 'none'}. {use}",
        )
    if wanted is None and volume.window is not None:
        return volume.window
    return _percentiles(volume)


def _percentiles(volume: Volume) -> Window:
    if volume.values.ndim == 4:
        return Window(127.5, 255.0, "LINEAR_EXACT")  # colour is shown as it is, whatever the window
    step = math.ceil((volume.values.size / SAMPLE) ** (1 / 3)) if volume.values.size > SAMPLE else 1
    steps = [step if size > 2 * step else 1 for size in volume.values.shape]
    sample = volume.values[:: steps[0], :: steps[1], :: steps[2]]
    known = sample[np.isfinite(sample)] if sample.dtype.kind == "f" else sample.ravel()
    if volume.padding is not None:
        image = known[(known < volume.padding[0]) | (known > volume.padding[1])]
        known = image if image.size else known
    if not known.size:
        return Window(0.5, 1.0, "LINEAR_EXACT")
    low, high = (float(value) for value in np.percentile(known, PERCENTILES))
    if high <= low:
        low, high = float(known.min()), float(known.max())
    if high <= low or not math.isfinite(high - low):
        return Window(low + 0.5, 1.0, "LINEAR_EXACT") if math.isfinite(low) else Window(0.5, 1.0, "LINEAR_EXACT")
    return Window((low + high) / 2, high - low, "LINEAR_EXACT")
