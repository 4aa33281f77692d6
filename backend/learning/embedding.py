"""The interface of all embedders, which turn images into vectors in batches; and an embedder without weights."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.learning.preprocessing import Uint8Image
from backend.workers.prefetch import ahead

if TYPE_CHECKING:  # torch takes seconds to import: only inside functions
    pass
BATCH = 16
THREADS = min(4, os.cpu_count() or 1)  # threads that prepare images while the network computes
Prepared = NDArray[Any]


class Embedder(Protocol):
    """Turns images into vectors of one length; similar images should get similar vectors.

    name   reopens the same embedder
    dim    length of a vector
    batch  number of images computed at a time
    """

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def batch(self) -> int: ...

    def prepare(self, image: Uint8Image) -> Prepared:
        """One image as input for `embed_prepared`: small, whatever the image's size. Thread-safe.

        image  (H, W) gray or (H, W, 3) RGB uint8, of any size. Raises ValueError on another shape or type.
        """

    def embed_prepared(self, prepared: Sequence[Prepared]) -> NDArray[np.float32]:
        """(N, D) finite vectors of N prepared images.

        The same images on the same machine give the same vectors.
        """

    def embed(self, images: Sequence[Uint8Image]) -> NDArray[np.float32]:
        """(N, D): the same for N images, which are prepared while the previous ones are computed.

        Images are processed in batches, so N may be large. Raises ValueError with the image's number if it is not an
        image.
        """


class BatchedEmbedder(ABC):
    """`embed` for embedders that define prepare and embed_prepared."""

    name: str
    dim: int

    @property
    def batch(self) -> int:
        return BATCH

    @abstractmethod
    def prepare(self, image: Uint8Image) -> Prepared: ...

    @abstractmethod
    def embed_prepared(self, prepared: Sequence[Prepared]) -> NDArray[np.float32]: ...

    def embed(self, images: Sequence[Uint8Image]) -> NDArray[np.float32]:
        for number, image in enumerate(images):
            checked_image(image, number)
        vectors = np.empty((len(images), self.dim), dtype=np.float32)
        at = 0
        for prepared in ahead(self.prepare, images, size=self.batch, threads=THREADS):
            try:
                vectors[at : at + len(prepared)] = self.embed_prepared(prepared)
            except NotFinite as error:
                raise NotFinite(self.name, at + error.number) from None
            at += len(prepared)
        return vectors


class NotFinite(ValueError):
    """The network returned NaN or infinity for an image."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name}: the network returned NaN or infinity for image {number}. Use other weights")
        self.number = number


class Pixels(BatchedEmbedder):
    """The fallback: a small image descriptor without a trained network.

    A 16 x 16 thumbnail, a 32-bin histogram of gray levels and, in 4 x 4 cells, 8-bin histograms of edge
    directions; each part has length 1. It distinguishes body parts, views and machines, but few finer details.
    """

    name = "pixels"
    dim = 16 * 16 + 32 + 4 * 4 * 8

    def prepare(self, image: Uint8Image) -> Prepared:
        return self._describe(checked_image(image, 0)).astype(np.float32)

    def embed_prepared(self, prepared: Sequence[Prepared]) -> NDArray[np.float32]:
        return np.array(prepared, dtype=np.float32).reshape(len(prepared), self.dim)

    def _describe(self, image: Uint8Image) -> NDArray[np.float64]:
        picture = Image.fromarray(image).convert("L")
        gray = np.asarray(picture.resize((64, 64), Image.Resampling.BOX), dtype=np.float64) / 255
        thumbnail = gray.reshape(16, 4, 16, 4).mean(axis=(1, 3))
        levels = np.array(picture.histogram(), dtype=np.float64).reshape(32, 8).sum(axis=1)

        down, right = np.gradient(gray)
        angle = np.arctan2(down, right) % np.pi  # an edge has a direction, not a sign
        edges = np.zeros((4, 4, 8))
        cell = np.arange(64) // 16
        bins = np.minimum((angle / np.pi * 8).astype(int), 7)
        np.add.at(edges, (cell[:, None], cell, bins), np.hypot(down, right))
        parts = (thumbnail.ravel(), np.sqrt(levels), edges.ravel())
        return np.concatenate([part / max(float(np.linalg.norm(part)), 1e-12) for part in parts])


def checked_image(image: Uint8Image, number: int) -> Uint8Image:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"image {number}: got {kind}, wanted a uint8 array. Scale its window to 0..255 first")
    if 0 in image.shape or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"image {number}: got shape {image.shape}, wanted (H, W) gray or (H, W, 3) RGB")
    return np.ascontiguousarray(image)
