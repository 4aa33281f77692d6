"""A segmentation head that learns in milliseconds: ridge regression on frozen features of patches.

Every scan is reduced once to the sums that least squares needs, so that training on any set of scans adds these up and
solves one small system. Weight of the penalty and thresholds come from cross-fitting over the labelled scans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.formats.pixels import box_of

COMPONENTS = 128  # principal components of the features
PENALTIES = (300.0, 1000.0, 3000.0, 10000.0)
THRESHOLDS = np.arange(0.1, 0.71, 0.05)
NEVER = 1e6  # threshold that no score reaches; finite, as scores are interpolated
USUAL = 0.35  # threshold where the labelled scans cannot tell
FOLDS = 5
SAMPLED = 20_000  # patches behind the principal components
BASIS_SCANS = 100  # scans behind them
AT_ONCE = 64  # scans whose features are in memory
WATCHED = 60  # scans on which penalty and thresholds are compared
FINE = 64  # side of the grid on which masks are drawn and compared

Rows = Sequence[int] | NDArray[np.intp]
Images = Sequence[NDArray[np.uint8]]
Extract = Callable[[Images], NDArray[np.float16]]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Head:
    """A trained head. `weights` (features, labels), `thresholds` (labels,); NEVER for a label nobody drew."""

    weights: Floats
    thresholds: Floats


class PatchPool:
    """N scans as inputs of the regression and drawn fractions of their patches, ready to train a head on any of them.

    inputs    (N, G * G, D) float16: principal components of the features, position, and a constant
    drawn     (N, G * G, labels) float16: the fraction of each patch that a label covers
    truth     (N, labels, FINE, FINE): the masks on the grid on which they are compared
    products  (N, D, D), sums (N, D, labels): the terms of least squares of each scan; padding counts nothing
    """

    ARRAYS = ("inputs", "drawn", "truth", "products", "sums")

    def __init__(self, **arrays: NDArray[Any]) -> None:
        self.inputs, self.drawn, self.truth, self.products, self.sums = (arrays[name] for name in self.ARRAYS)
        self.size, self.labels = self.sums.shape[1:]
        self.grid = round(self.inputs.shape[1] ** 0.5)
        self.has: NDArray[np.bool_] = np.any(self.truth, axis=(2, 3))  # (N, labels): a scan shows a label

    @classmethod
    def build(
        cls, extract: Extract, images: Images, masks: Sequence[NDArray[np.uint8]], labels: int, *, seed: int = 0
    ) -> PatchPool:
        """From images and their masks (H, W) of label numbers, 0 = background.

        extract  features (N, G * G, C) of N images, see `patch_features`
        seed     of the sample of scans behind the principal components, which use no labels
        """
        some = np.random.default_rng(seed).permutation(len(images))[:BASIS_SCANS]
        basis = _Basis(extract([images[row] for row in some]), seed)
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in cls.ARRAYS}
        for begin in range(0, len(images), AT_ONCE):
            rows = range(begin, min(begin + AT_ONCE, len(images)))
            for row, features in zip(rows, extract([images[row] for row in rows]), strict=True):
                inputs = basis.inputs(features)
                grid = round(len(inputs) ** 0.5)
                drawn = fractions(masks[row], labels, grid).reshape(labels, -1).T
                inside = fractions(np.ones_like(masks[row]), 1, grid).reshape(-1, 1)
                weighted = (inputs * inside).T
                parts["inputs"].append(inputs.astype(np.float16))
                parts["drawn"].append(drawn.astype(np.float16))
                parts["truth"].append(fractions(masks[row], labels, FINE) >= 0.5)
                parts["products"].append(weighted @ inputs)
                parts["sums"].append(weighted @ drawn)
        return cls(**{name: np.stack(values) for name, values in parts.items()})

    def save(self, folder: Path) -> None:
        """Write the arrays into an existing folder."""
        for name in self.ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> PatchPool:
        """Read what `save` wrote; the files stay on disk and are shared by all processes."""
        return cls(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in cls.ARRAYS})

    def fit(self, rows: Rows) -> Head:
        """The head learnt from these scans, at least one; a label that none of them shows is never drawn."""
        rows = np.asarray(rows, dtype=np.intp)
        folds = np.arange(len(rows)) % min(FOLDS, len(rows))
        several = len(rows) > 1
        products = np.stack([self.products[rows[folds == f]].sum(axis=0) for f in range(folds.max() + 1)])
        sums = np.stack([self.sums[rows[folds == f]].sum(axis=0) for f in range(folds.max() + 1)])
        product, total = products.sum(axis=0), sums.sum(axis=0)
        watched = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), WATCHED)).astype(np.intp))
        inputs, drawn = self.inputs[rows[watched]].astype(np.float32), self.drawn[rows[watched]] >= 0.5
        best: tuple[float, float, Floats] = (-1.0, PENALTIES[-2], np.zeros(0, np.float32))
        for penalty in PENALTIES if several else PENALTIES[-2:-1]:
            scores = np.empty((*inputs.shape[:2], self.labels), np.float32)
            for fold in range(len(products)):
                rest = (product - products[fold], total - sums[fold]) if several else (product, total)
                held = folds[watched] == fold
                scores[held] = inputs[held] @ self._solved(*rest, penalty)
            thresholds, dice = _thresholds(scores, drawn, self.has[rows[watched]])
            if dice > best[0]:
                best = (dice, penalty, thresholds)
        thresholds = np.where(self.has[rows].any(axis=0), best[2], NEVER).astype(np.float32)
        return Head(self._solved(product, total, best[1]), thresholds)

    def _solved(self, product: Floats, sums: Floats, penalty: float) -> Floats:
        penalties = np.full(self.size, penalty)
        penalties[-1] = 1e-3  # the constant
        found = np.linalg.solve(product.astype(np.float64) + np.diag(penalties), sums.astype(np.float64))
        return found.astype(np.float32)

    def scores(self, heads: Sequence[Head], row: int) -> list[Floats]:
        """(G, G, labels) of one scan by each head, above 0 where the label is drawn."""
        side, width = self.grid, self.labels
        all_scores = self.inputs[row].astype(np.float32) @ np.hstack([head.weights for head in heads])
        return [
            all_scores[:, i * width : (i + 1) * width].reshape(side, side, width) - head.thresholds
            for i, head in enumerate(heads)
        ]

    def dice(self, heads: Sequence[Head], rows: Rows) -> NDArray[np.float64]:
        """(heads, scans, labels) Dice of each head on these scans; NaN where a scan does not show the label."""
        found = np.full((len(heads), len(rows), self.labels), np.nan)
        for at, row in enumerate(rows):
            shown = np.flatnonzero(self.has[row])
            if not len(shown):
                continue
            for number, scores in enumerate(self.scores(heads, int(row))):
                fine = cv2.resize(scores, (FINE, FINE), interpolation=cv2.INTER_LINEAR).reshape(FINE, FINE, self.labels)
                best, drawn = fine.argmax(axis=2), fine.max(axis=2) >= 0
                for label in shown:
                    mask, truth = drawn & (best == label), self.truth[row, label]
                    found[number, at, label] = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
        return found

    def entropy(self, head: Head, rows: Rows) -> NDArray[np.float64]:
        """(rows,) mean entropy of patches and drawn labels, 0..1; score - threshold + 0.5 counts as probability."""
        found = np.zeros(len(rows))
        known = head.thresholds < NEVER
        for at, row in enumerate(rows):
            scores = self.scores([head], int(row))[0][:, :, known]
            p = np.clip(scores + 0.5, 1e-3, 1 - 1e-3)
            found[at] = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean() if known.any() else 0.0
        return found


def _thresholds(scores: Floats, drawn: NDArray[np.bool_], has: NDArray[np.bool_]) -> tuple[Floats, float]:
    """The threshold of each label with the highest mean Dice over the scans that show it, and the mean of these.

    scores, drawn  (scans, patches, labels); has  (scans, labels)
    """
    found, dice = np.full(scores.shape[2], USUAL, np.float32), []
    for label in np.flatnonzero(has.any(axis=0)):
        at = np.flatnonzero(has[:, label])
        truth = drawn[at, :, label]
        masks = scores[at, :, label][None] >= THRESHOLDS[:, None, None]
        both = 2 * (masks & truth).sum(axis=2) / np.maximum(1, masks.sum(axis=2) + truth.sum(axis=1))
        means = both.mean(axis=1)
        if means.max() > 0:  # else the folds without the only scan that shows it cannot tell
            found[label] = THRESHOLDS[int(means.argmax())]
        dice.append(float(means.max()))
    return found, float(np.mean(dice)) if dice else 0.0


class _Basis:
    """Principal components of standardised features (N, G * G, C)."""

    def __init__(self, features: NDArray[np.float16], seed: int) -> None:
        n, patches, channels = features.shape
        some = np.random.default_rng(seed).choice(n * patches, min(SAMPLED, n * patches), replace=False)
        sample = features.reshape(-1, channels)[np.sort(some)].astype(np.float32)
        self._mean, self._deviation = sample.mean(axis=0), sample.std(axis=0) + 1e-6
        _, values, axes = np.linalg.svd((sample - self._mean) / self._deviation, full_matrices=False)
        kept = min(COMPONENTS, len(values))
        self._axes = axes[:kept].T * (3 * len(sample) ** 0.5 / values[0])
        self._place = place(round(patches**0.5))

    def inputs(self, features: NDArray[np.float16]) -> Floats:
        """(G * G, D) of one scan; the last input is the constant."""
        components = (features.astype(np.float32) - self._mean) / self._deviation @ self._axes
        return np.hstack([components, self._place]).astype(np.float32)


def place(grid: int) -> Floats:
    """(grid * grid, 6): the place of each patch as polynomials of the second degree; the last one is the constant."""
    down, across = (np.mgrid[:grid, :grid] / max(1, grid - 1) * 2 - 1).reshape(2, -1)
    parts = [across, down, across * down, across**2, down**2, np.ones_like(down)]
    return np.stack(parts, axis=1).astype(np.float32)


def fractions(mask: NDArray[np.uint8], labels: int, side: int) -> Floats:
    """(labels, side, side): the fraction of each cell of the letterboxed square that a label covers."""
    top, left, height, width = box_of(mask.shape[0], mask.shape[1], side * 8)
    found = np.zeros((labels, side, side), np.float32)
    for label in range(labels):
        drawn = (mask == label + 1).astype(np.float32)
        square = np.zeros((side * 8, side * 8), np.float32)
        square[top : top + height, left : left + width] = cv2.resize(
            drawn, (width, height), interpolation=cv2.INTER_AREA
        )
        found[label] = square.reshape(side, 8, side, 8).mean(axis=(1, 3))
    return found
