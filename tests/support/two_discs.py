"""A picture of two bright discs, for the tests of networks for clicks."""

from __future__ import annotations

import numpy as np

H, W = 120, 200


def disc(row: int, column: int, radius: int = 20) -> np.ndarray:
    """(H, W) mask."""
    down, across = np.mgrid[:H, :W]
    return np.asarray(np.hypot(down - row, across - column) < radius)


LEFT, RIGHT = disc(60, 50), disc(60, 150)
IMAGE = np.random.default_rng(0).integers(0, 40, (H, W), dtype=np.uint8) + 180 * (LEFT | RIGHT).astype(np.uint8)
