"""Frozen features of small patches of a scan, from the built-in network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from backend.fingerprints import fingerprint
from backend.formats.pixels import letterbox
from backend.learning.embedders import open_embedder
from backend.learning.embedding import THREADS
from backend.learning.vision_network import Network
from backend.learning.weights import BUILTIN
from backend.workers.prefetch import ahead

if TYPE_CHECKING:  # torch takes seconds to import: only inside functions
    import torch

SIDE = 256  # pixels of the working square
GRID = 32  # patches per side
STAGES = (1, 2, 3, 4)  # of the network: one value for 4, 8, 16 and 32 pixels
CHANNELS = 496
BATCH = 16


class PatchFeatures:
    """Features of the GRID x GRID patches of scans, each letterboxed into a square of SIDE pixels.

    Raises WeightsMissing if the package with the weights of the built-in network is not installed.
    """

    name = f"patches:{BUILTIN}:{SIDE}:{GRID}"

    def __init__(self, device: str) -> None:
        network = open_embedder(BUILTIN, weights_dir=None, device=device).embedder
        assert isinstance(network, Network)
        self._network = network

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float16]:
        """(N, GRID * GRID, CHANNELS), patches row by row; images (H, W) or (H, W, 3) uint8."""
        found = np.empty((len(images), GRID * GRID, CHANNELS), np.float16)
        at = 0
        for squares in ahead(_square, images, size=BATCH, threads=THREADS):
            maps = self._maps(np.stack(squares))
            found[at : at + len(squares)] = maps
            at += len(squares)
        return found

    def _maps(self, squares: NDArray[np.uint8]) -> NDArray[np.float16]:
        import torch
        from torch.nn.functional import avg_pool2d, interpolate

        with torch.inference_mode():
            parts: list[torch.Tensor] = []
            for stage in self._network.intermediates(squares, STAGES):
                if stage.shape[-1] > GRID:
                    parts.append(avg_pool2d(stage, stage.shape[-1] // GRID))
                else:
                    parts.append(interpolate(stage, size=(GRID, GRID), mode="bilinear", align_corners=False))
            whole = torch.cat(parts, 1).flatten(2).transpose(1, 2)
            result: NDArray[np.float16] = whole.to("cpu", torch.float16).numpy()
        return result


def _square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    pixels = letterbox(image, SIDE).pixels
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def feature_name(digest: str) -> str:
    """The name of the stored features of the scan with this digest."""
    return fingerprint(PatchFeatures.name, digest)
