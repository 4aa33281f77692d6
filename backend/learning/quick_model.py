"""A segmentation model that learns within a second from the first few labels: ridge regression on frozen features.

Each labelled scan is reduced once to the sums that least squares needs (`Terms`); learning from any number of scans
adds these up and solves one small system for each label. The weight of the penalty, the thresholds and the expected
Dice come from cross-fitting over the labelled scans (Stone 1974), whole patients or volumes left out together. They are
chosen for the masks that people see, so false alarms on scans without the label count as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.formats.pixels import box_of
from backend.learning.patch_features import SIDE
from backend.learning.ridge_head import (
    COMPONENTS,
    FINE,
    FOLDS,
    NEVER,
    PENALTIES,
    USUAL,
    WATCHED,
    fractions,
    place,
)

THRESHOLDS = np.arange(0.1, 0.91, 0.05)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Terms:
    """What the model needs of one labelled scan.

    features  (G * G, C) float16, see `patch_features`
    products  (D, D) second moments of the inputs, features and place, over the patches of the picture; padding counts
              nothing
    sums      (D, labels) moments of the inputs with the drawn fractions
    truth     (labels, FINE, FINE) bool: the mask; every label that it has keeps at least a cell
    known     (labels,) bool: whether the annotator could draw the label
    group     patient or volume; "": a scan of its own
    """

    features: NDArray[np.float16]
    products: Floats
    sums: Floats
    truth: NDArray[np.bool_]
    known: NDArray[np.bool_]
    group: str = ""

    @classmethod
    def of(
        cls,
        features: NDArray[np.float16],
        mask: NDArray[np.uint8],
        labels: int,
        *,
        unknown: Iterable[int] = (),
        group: str = "",
    ) -> Terms:
        """From a scan's features and its mask (H, W) of label numbers, 0 = background.

        unknown  label numbers that the annotator could not draw
        """
        inputs = _inputs(features)
        grid = round(len(inputs) ** 0.5)
        inside = fractions(np.ones_like(mask), 1, grid).reshape(-1, 1)
        drawn = fractions(mask, labels, grid).reshape(labels, -1).T
        weighted: Floats = (inputs * inside).T.astype(np.float32)
        fine = fractions(mask, labels, FINE)
        truth = (fine >= 0.5) | ((fine > 0) & (fine == fine.max(axis=(1, 2), keepdims=True)))
        known = np.array([number not in set(unknown) for number in range(1, labels + 1)])
        return cls(features, weighted @ inputs, weighted @ drawn, truth & known[:, None, None], known, group)


@dataclass(frozen=True)
class QuickModel:
    """A trained model.

    weights     (D, labels) for features and place
    thresholds  (labels,) of the scores; NEVER for a label that nobody drew
    dice        (labels,) expected Dice on scans with the label or with a false alarm, which counts 0; NaN where it is
                not known
    """

    weights: Floats
    thresholds: Floats
    dice: Floats

    def arrays(self) -> dict[str, Floats]:
        """To store; `of_arrays` reads them."""
        return {"weights": self.weights, "thresholds": self.thresholds, "dice": self.dice}

    @classmethod
    def of_arrays(cls, stored: Mapping[str, NDArray[Any]]) -> QuickModel:
        return cls(stored["weights"], stored["thresholds"], stored["dice"])

    @property
    def expected_dice(self) -> float | None:
        """Mean over the labels of the expected Dice; None if no label has one."""
        return float(np.nanmean(self.dice)) if np.isfinite(self.dice).any() else None

    def leads(self, features: NDArray[np.float16]) -> Floats:
        """(G, G, labels): score minus threshold, above 0 where a label is drawn."""
        scores = _inputs(features) @ self.weights - self.thresholds
        grid = round(len(scores) ** 0.5)
        return scores.reshape(grid, grid, -1).astype(np.float32)

    def probabilities(self, features: NDArray[np.float16], height: int, width: int) -> Floats:
        """(1 + labels, h, w) of a scan of (height, width), as `restore` expects them; they sum to 1, uncalibrated."""
        leads = _upsampled(self.leads(features), SIDE)
        top, left, h, w = box_of(height, width, SIDE)
        inner = np.clip(leads[top : top + h, left : left + w].transpose(2, 0, 1) + 0.5, 0.0, 1.0)
        shares = np.concatenate([np.full((1, h, w), 0.5, np.float32), inner])
        whole: Floats = np.ascontiguousarray(shares / shares.sum(axis=0))
        return whole


def learn(scans: Sequence[Terms]) -> QuickModel:
    """A model that has learnt from these labelled scans, at least one; the same scans in the same order give the same.

    A label that none of them shows is never drawn. Scans on which a label is unknown say nothing about it.
    Raises ValueError without scans.
    """
    if not scans:
        raise ValueError("a model needs at least one labelled scan, got none")
    units = _units([one.group for one in scans])
    labels = scans[0].sums.shape[1]
    reduced = _basis(_sum(scans, "products"))
    weights = np.zeros((len(reduced), labels), np.float32)
    thresholds, dice = np.full(labels, NEVER, np.float32), np.full(labels, np.nan, np.float32)
    known = np.stack([one.known for one in scans])
    for pattern in {tuple(column) for column in known.T}:  # labels that the same scans know are solved together
        at = [number for number in range(labels) if tuple(known[:, number]) == pattern]
        rows = np.flatnonzero(pattern)
        if any(scans[row].truth[at].any() for row in rows):
            found = _solve_labels([scans[row] for row in rows], units[rows], at, reduced)
            weights[:, at], thresholds[at], dice[at] = found
    return QuickModel(weights, thresholds, dice)


def _solve_labels(
    scans: Sequence[Terms], units: NDArray[np.intp], at: Sequence[int], reduced: NDArray[np.float64]
) -> tuple[Floats, Floats, Floats]:
    """(weights, thresholds, expected Dice) of the labels `at`, which all these scans know."""
    folds = units % FOLDS
    shown = np.array([[one.truth[number].any() for number in at] for one in scans])
    numbers = np.unique(folds)
    parts = {f: [one for one, fold in zip(scans, folds, strict=True) if fold == f] for f in numbers}
    products = {f: reduced.T @ _sum(part, "products") @ reduced for f, part in parts.items()}
    sums = {f: reduced.T @ _sum(part, "sums")[:, at] for f, part in parts.items()}
    product: NDArray[np.float64] = np.sum(list(products.values()), axis=0)
    total: NDArray[np.float64] = np.sum(list(sums.values()), axis=0)
    watched = np.unique(np.linspace(0, len(scans) - 1, min(len(scans), WATCHED)).astype(np.intp))
    inputs = [_inputs(scans[row].features) @ reduced for row in watched]
    truths = [scans[row].truth[at] for row in watched]
    best, thresholds = PENALTIES[-2], np.full(len(at), USUAL, np.float32)
    dice: Floats = np.full(len(at), np.nan, np.float32)
    if len(numbers) > 1:
        tables = []
        for penalty in PENALTIES:
            rest = {f: _ridge(product - products[f], total - sums[f], penalty) for f in numbers}
            scores = [found @ rest[folds[row]] for found, row in zip(inputs, watched, strict=True)]
            tables.append(_dice(scores, truths))
        table = np.stack(tables)
        judged = np.flatnonzero(shown[watched].any(axis=0))
        means = _means(table)
        chosen = int(means[..., judged].max(axis=1).sum(axis=1).argmax())
        best = PENALTIES[chosen]
        for label in judged:
            most = float(means[chosen, :, label].max())
            if most > 0:  # else the folds without the only scan that shows it cannot tell
                thresholds[label] = THRESHOLDS[int(means[chosen, :, label].argmax())]
            dice[label] = (most + _chosen_by_others(table[..., label], units[watched])) / 2
    thresholds[~shown.any(axis=0)] = NEVER
    return (reduced @ _ridge(product, total, best)).astype(np.float32), thresholds, dice


def _dice(scores: Sequence[NDArray[np.float64]], truths: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
    """(scans, thresholds, labels): Dice of each scan at each threshold.

    0 where a label is drawn on a scan that does not show it; NaN where it is rightly not drawn, which says nothing
    about the masks that people see.
    """
    labels = len(truths[0])
    grid = round(len(scores[0]) ** 0.5)
    found = np.full((len(scores), len(THRESHOLDS), labels), np.nan)
    for row, (each, truth) in enumerate(zip(scores, truths, strict=True)):
        fine = _upsampled(each.reshape(grid, grid, labels).astype(np.float32), FINE)
        for label in range(labels):
            masks = fine[None, :, :, label] >= THRESHOLDS[:, None, None]
            sizes = masks.sum(axis=(1, 2)) + truth[label].sum()
            hits = 2 * (masks & truth[label]).sum(axis=(1, 2))
            found[row, :, label] = np.divide(hits, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
    return found


def _means(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over the scans, the second axis, without NaN; 0 where nothing else is there."""
    counts = np.maximum(1, (~np.isnan(table)).sum(axis=1))
    means: NDArray[np.float64] = np.nansum(table, axis=1) / counts
    return means


def _chosen_by_others(table: NDArray[np.float64], units: NDArray[np.intp]) -> float:
    """Mean Dice of a label when penalty and threshold are chosen without the scan, and its patient or volume.

    table  (penalties, scans, thresholds)

    The best of many choices looks better than it is, by 0.03 to 0.13 with three to ten labels. This looks worse, by up
    to 0.1. Their middle was right to 0.06 with three to five labels and to 0.03 with more (breast ultrasound, slices of
    hippocampus volumes; means over 20 random sets).
    """
    usual = len(PENALTIES) - 2, int(np.abs(THRESHOLDS - USUAL).argmin())
    found: list[float] = []
    for unit in np.unique(units):
        means = _means(table[:, units != unit])
        penalty, threshold = np.unravel_index(means.argmax(), means.shape) if means.max() > 0 else usual
        found += table[penalty, units == unit, threshold].tolist()
    known = [value for value in found if value == value]
    return float(np.mean(known)) if known else 0.0


def _sum(scans: Sequence[Terms], name: str) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.zeros(getattr(scans[0], name).shape)
    for one in scans:
        total += getattr(one, name)
    return total


def _units(groups: Sequence[str]) -> NDArray[np.intp]:
    """The number of the group of each scan; a scan without a group has a number of its own."""
    of: dict[str, int] = {}
    return np.array([of.setdefault(name or f"row {row}", len(of)) for row, name in enumerate(groups)], dtype=np.intp)


def _basis(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """(D, K): from inputs to principal components of the standardised features, and the place.

    products  (D, D) second moments of the inputs of all scans; the last input is the constant
    """
    count = products[-1, -1]
    places = place(2).shape[1]
    channels = len(products) - places
    mean = products[-1, :channels] / count
    covariance = products[:channels, :channels] / count - np.outer(mean, mean)
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0)) + 1e-6
    values, axes = np.linalg.eigh(covariance / np.outer(deviation, deviation))
    kept = min(COMPONENTS, channels)
    axes = axes[:, ::-1][:, :kept] * (3 / np.sqrt(max(values[-1], 1e-12)))
    reduced = np.zeros((len(products), kept + places))
    reduced[:channels, :kept] = axes / deviation[:, None]
    reduced[-1, :kept] = -(mean / deviation) @ axes
    reduced[channels:, kept:] = np.eye(places)
    return reduced


def _ridge(product: NDArray[np.float64], sums: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    penalties = np.full(len(product), penalty)
    penalties[-1] = 1e-3  # the constant
    found: NDArray[np.float64] = np.linalg.solve(product + np.diag(penalties), sums)
    return found


def _inputs(features: NDArray[np.float16]) -> Floats:
    """(G * G, D): features and place of each patch; the last input is the constant."""
    return np.hstack([features.astype(np.float32), place(round(len(features) ** 0.5))])


def _upsampled(maps: Floats, side: int) -> Floats:
    """(side, side, labels) from (G, G, labels)."""
    return cv2.resize(maps, (side, side), interpolation=cv2.INTER_LINEAR).reshape(side, side, -1).astype(np.float32)
