"""ScribblePrompt-UNet (Wong et al. 2024): a published network that draws masks from clicks, boxes and strokes.

Trained on 65 collections of medical images, so that it needs no label of the lab. A lab has it if its file is in the
weights folder. What it draws is fitted to the clicks by `geodesic`, so that every click counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from backend.errors import BrokenWeights, WeightsMissing
from backend.formats.pixels import Letterboxed
from backend.learning.checkpoints import read_tensors
from backend.learning.clicks import Mask, Point
from backend.learning.geodesic import Geodesic, Seeds
from backend.learning.networks import misfits, renamed, scribble_prompt, wanted_tensors

SIDE = 128  # pixels of the square that it was trained on; pictures are squeezed into it
NETWORK = "scribbleprompt"


class ScribblePrompt:
    """The network with its published weights. For any thread."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network.eval()

    @classmethod
    def load(cls, file: Path) -> ScribblePrompt:
        """Raises WeightsMissing when the file is missing, damaged or another one."""
        try:
            tensors = renamed(NETWORK, read_tensors(file))
        except (BrokenWeights, OSError) as error:
            raise WeightsMissing(str(error)) from error
        if misfits(wanted_tensors(NETWORK), tensors):
            raise WeightsMissing(f"{file} does not contain the weights of ScribblePrompt-UNet")
        network = scribble_prompt()
        network.load_state_dict(tensors)
        return cls(network)

    def tool(self, scan: Letterboxed, paths: Geodesic, *, patience: float | None = None) -> ScribbleTool:
        """For the prompts on one scan, whose paths these are. It is ready at once, so that `patience` is not needed."""
        return ScribbleTool(self._network, scan, paths)


class ScribbleTool:
    """The network on one scan."""

    def __init__(self, network: nn.Module, scan: Letterboxed, paths: Geodesic) -> None:
        self._network, self._paths = network, paths
        self.height, self.width = scan.original_height, scan.original_width
        self._picture = _picture(scan)

    def mask(self, seeds: Seeds) -> Mask:
        """(H, W): the finding. Every click inside is in it, and every click outside is not.

        With boxes, nothing outside them is in the finding. The network draws from blank; corrections of a mask are left
        to the paths.
        """
        corrects = seeds.current is not None and bool(seeds.current.any())
        if corrects or not seeds.given:
            return self._paths.mask(seeds)
        drawn = [
            np.maximum(self._dots(points), self._painted(strokes))
            for points, strokes in ((seeds.inside, seeds.drawn_in), (seeds.outside, seeds.drawn_out))
        ]
        so_far = np.zeros_like(self._picture)
        inputs = torch.from_numpy(np.stack([self._picture, self._painted(seeds.boxes), *drawn, so_far]))[None]
        with torch.inference_mode():
            logits = self._network(inputs)[0, 0].numpy()
        whole = np.asarray(cv2.resize(logits, (self.width, self.height), interpolation=cv2.INTER_LINEAR) > 0)
        whole = self._paths.within_boxes(whole, seeds)
        if not any((seeds.inside, seeds.outside, seeds.drawn_in, seeds.drawn_out)):
            return whole
        return self._paths.within_boxes(self._paths.mask(replace(seeds, boxes=[], current=whole)), seeds)

    def _dots(self, points: Sequence[Point]) -> NDArray[np.float32]:
        """(SIDE, SIDE): 1 at the pixels of clicks."""
        found: NDArray[np.float32] = np.zeros((SIDE, SIDE), np.float32)
        for row, column in points:
            at = int(row * SIDE / self.height), int(column * SIDE / self.width)
            found[min(SIDE - 1, max(0, at[0])), min(SIDE - 1, max(0, at[1]))] = 1
        return found

    def _painted(self, masks: Sequence[Mask]) -> NDArray[np.float32]:
        """(SIDE, SIDE): 1 where the masks are; something thin is not lost."""
        found: NDArray[np.float32] = np.zeros((SIDE, SIDE), np.float32)
        for mask in masks:
            shares = cv2.resize(mask.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            found = np.maximum(found, shares > 0.5 * shares.max()).astype(np.float32)
        return found


def _picture(scan: Letterboxed) -> NDArray[np.float32]:
    """(SIDE, SIDE): gray, from 0 for the darkest pixel to 1 for the brightest."""
    pixels = scan.pixels if scan.pixels.ndim == 2 else cv2.cvtColor(scan.pixels, cv2.COLOR_RGB2GRAY)
    content = pixels[scan.content[0], scan.content[1]].astype(np.float32)
    small = cv2.resize(content, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    least, most = float(small.min()), float(small.max())
    return np.asarray((small - least) / max(most - least, 1e-6), np.float32)
