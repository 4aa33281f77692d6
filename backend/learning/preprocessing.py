"""Image preprocessing for a network: resizing without a crop, and scaling per channel."""

from __future__ import annotations

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
