"""Ways to choose scans, by name: one dict for each of the two moments.

The contract, which one test suite holds every entry to:

- It returns distinct row numbers of the arrays it was given: a cold start every row once, a ranking the
  `count` rows asked for, or all that are unlabelled if those are fewer, and never a labelled one.
- The same input and the same seed give the same answer, and nothing else is random.
- Inputs are not modified. What cannot be ordered is refused with ValueError, NaN with its row number.
- Any N >= 1 works, duplicates and a map with all scans in one place too.

A new strategy is one function and one line in a dict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from sampling.acquisition import ALPHA, Ranking, greedy, rank
from sampling.arrays import FloatArray, IntArray, finite_matrix, whole_number
from sampling.clustering import Clustering, medoid
from sampling.cold_start import Order, Reason, cold_start_order, medoids_then_farthest
from sampling.farthest import farthest_first


class ColdStart(Protocol):
    """Orders a whole pool before any label exists; arguments as for `cold_start_order`."""

    def __call__(self, xy: FloatArray, clustering: Clustering, *, seed: int) -> Order: ...


class WithModel(Protocol):
    """Ranks unlabelled scans once a model has looked at them; arguments as for `rank`."""

    def __call__(
        self,
        entropy: FloatArray,
        xy: FloatArray,
        chosen: Sequence[int] | IntArray,
        *,
        count: int,
        alpha: float = ALPHA,
        seed: int = 0,
    ) -> Ranking: ...


def paper_cold_start(xy: FloatArray, clustering: Clustering, *, seed: int) -> Order:
    """Medoids, then farthest members in proportion to the clusters: `cold_start_order`."""
    return cold_start_order(xy, clustering)


def farthest_cold_start(xy: FloatArray, clustering: Clustering, *, seed: int) -> Order:
    """The medoid of the whole map, then always the scan farthest from all before it, whatever its cluster."""
    xy = finite_matrix("xy", xy, columns=2)
    rows = farthest_first(xy, len(xy), medoid(xy))
    return Order(rows, medoids_then_farthest(1, len(xy)), clustering.labels[rows])


def random_cold_start(xy: FloatArray, clustering: Clustering, *, seed: int) -> Order:
    """A uniformly random order: what the others have to beat."""
    xy = finite_matrix("xy", xy, columns=2)
    rows = np.random.default_rng(seed).permutation(len(xy))
    reasons: list[Reason] = ["random"] * len(xy)
    return Order(rows, tuple(reasons), clustering.labels[rows])


def paper_with_model(
    entropy: FloatArray,
    xy: FloatArray,
    chosen: Sequence[int] | IntArray,
    *,
    count: int,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Ranking:
    """Uncertainty and spread together, weighed by alpha: `rank`."""
    return rank(entropy, xy, chosen, alpha=alpha, count=count)


def entropy_with_model(
    entropy: FloatArray,
    xy: FloatArray,
    chosen: Sequence[int] | IntArray,
    *,
    count: int,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Ranking:
    """The most uncertain scans, wherever they are; no alpha."""
    return rank(entropy, xy, chosen, alpha=1.0, count=count)


def diversity_with_model(
    entropy: FloatArray,
    xy: FloatArray,
    chosen: Sequence[int] | IntArray,
    *,
    count: int,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Ranking:
    """The scans farthest from labelled ones and from each other, whatever the model thinks; no alpha."""
    return rank(entropy, xy, chosen, alpha=0.0, count=count)


def random_with_model(
    entropy: FloatArray,
    xy: FloatArray,
    chosen: Sequence[int] | IntArray,
    *,
    count: int,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Ranking:
    """Uniformly random scans: the score is the draw; no alpha."""
    draw = np.random.default_rng(whole_number("seed", seed, low=0)).random(len(np.atleast_1d(entropy)))
    return greedy(entropy, xy, chosen, count=count, score=lambda _h, _d, rows: draw[rows])


COLD_START: dict[str, ColdStart] = {
    "paper": paper_cold_start,
    "farthest": farthest_cold_start,
    "random": random_cold_start,
}

WITH_MODEL: dict[str, WithModel] = {
    "paper": paper_with_model,
    "entropy": entropy_with_model,
    "diversity": diversity_with_model,
    "random": random_with_model,
}

S = TypeVar("S")


def find_strategy(strategies: Mapping[str, S], name: str) -> S:
    """The strategy of that name. Raises ValueError that lists the names there are.

    >>> find_strategy(WITH_MODEL, "luck")
    Traceback (most recent call last):
    ValueError: strategy: got 'luck', wanted one of paper, entropy, diversity, random
    """
    if name not in strategies:
        raise ValueError(f"strategy: got {name!r}, wanted one of {', '.join(strategies)}")
    return strategies[name]
