"""From modality values to the 8 bits of a picture: window and level as DICOM defines them (PS3.3 C.11.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from backend.formats.volume import Volume


@dataclass(frozen=True)
class VoiTable:
    """A VOI LUT of a header.

    first   the modality value that `values[0]` is for; below it the first entry holds, above the table the last
    values  entries, 0..2**bits - 1
    """

    first: int
    bits: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """Which modality values are shown from black to white.

    center, width  in modality units (HU, ...)
    function       "LINEAR" (black at center - width / 2 but for the standard's half unit), "LINEAR_EXACT", "SIGMOID"
    lut            the header's VOI LUT, where that is what it has; `center` and `width` then span its entries
    """

    center: float
    width: float
    function: str = "LINEAR"
    lut: VoiTable | None = None


def choose_window(volume: Volume, wanted: Window | str | None) -> Window:
    """The window to show a whole volume with.

    wanted  a Window: itself. A name: the header's preset of that name (case does not count), or "percentile". None:
            the header's preset, else the percentiles

    Without a preset, black is the 0.5th and white the 99.5th percentile of the finite values that are not padding (of
    a fixed sample in large volumes); where these are one number, least and greatest.

    Raises BadWindow when the header has no preset of that name (the sentence lists those it has).
    """
    raise NotImplementedError


def to_uint8(picture: NDArray[Any], window: Window, *, inverted: bool) -> NDArray[np.uint8]:
    """Modality values as the pixels of a picture: 0 black, 255 white, rounded to nearest.

    picture   (H, W) numbers, or (H, W, 3) uint8 RGB, which passes; not modified
    inverted  low is white (MONOCHROME1)

    Not-a-number is 0 before inversion. Raises BadWindow when the width is not positive (LINEAR: less than 1) or the
    function is unknown. Source: DICOM PS3.3 C.11.2.1.2, C.11.2.1.3.
    """
    raise NotImplementedError
