"""Image preprocessing for a network: resizing without a crop, and scaling per channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Uint8Image = NDArray[np.uint8]

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "bicubic": Image.Resampling.BICUBIC,
}
MOST = 4096  # pixels per side that a network may ask for
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Preprocessing:
    """Size (height, width), and per channel the mean and std of values in 0..1.

    One mean denotes a one-channel network, which receives colour as luminance.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        """Raise ValueError for what no network was trained with: a side beyond MOST, no channel, a std of 0 or NaN."""
        if not all(type(side) is int and 0 < side <= MOST for side in self.size):
            raise ValueError(f"its input has {str(self.size)[:40]} pixels; wanted 1 to {MOST} per side")
        if not (self.mean and len(self.mean) == len(self.std)):
            raise ValueError(f"it has {len(self.mean)} means and {len(self.std)} standard deviations of its channels")
        if not (all(map(math.isfinite, self.mean)) and all(0 < value < math.inf for value in self.std)):
            raise ValueError("a mean or standard deviation of its channels is not a number, or not above 0")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def resized(self, image: Uint8Image) -> Uint8Image:
        """(height, width) for a gray image or a one-channel network, else (height, width, 3).

        The whole image is resized without a crop, as a finding may be at its edge. A gray image is resized once, not
        per channel: three equal channels stay equal.
        """
        height, width = self.size
        picture = Image.fromarray(image)
        if self.channels == 1 and image.ndim == 3:
            picture = picture.convert("L")
        return np.asarray(picture.resize((width, height), RESAMPLING.get(self.interpolation, RESAMPLING["bicubic"])))

    def __str__(self) -> str:
        height, width = self.size
        mean, std = (" ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        return f"{height} x {width}, {self.interpolation}, {self.channels} channel(s), mean {mean}, std {std}"
