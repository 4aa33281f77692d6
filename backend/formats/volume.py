"""One scan in memory, and the window that it is shown with."""

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
"""More than this in one volume is refused, from the header, before anything is decoded."""

PERCENTILES = (0.5, 99.5)
SAMPLE = 1_000_000  # voxels that percentiles are taken of, at most about


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


def choose_window(volume: Volume, wanted: Window | str | None) -> Window:
    """The window to show a whole volume with.

    wanted  a Window: itself. A name: the header's preset of that name (case does not count), or "percentile". None:
            the header's preset, else the percentiles

    Without a preset, black is the 0.5th and white the 99.5th percentile of the finite values that are not padding (of
    every n-th voxel along each axis in large volumes); where these are one number, least and greatest.

    Raises BadWindow when the header has no preset of that name (the sentence lists those it has).
    """
    if isinstance(wanted, Window):
        return wanted
    if isinstance(wanted, str) and wanted.strip().casefold() != "percentile":
        for name, preset in volume.presets.items():
            if name.casefold() == wanted.strip().casefold():
                return preset
        raise BadWindow(
            f"the header has no window named {wanted!r}; it has {', '.join(map(repr, volume.presets)) or 'none'}. "
            "Name one of these, give center and width, or choose 'percentile'"
        )
    if wanted is None and volume.window is not None:
        return volume.window
    return _percentiles(volume)


def _percentiles(volume: Volume) -> Window:
    if volume.values.ndim == 4:
        return Window(127.5, 255.0, "LINEAR_EXACT")  # colour passes whatever the window
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
