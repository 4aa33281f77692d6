"""Uncertain scans, but not all alike: chance and classes spread what the highest entropies alone would not.

entropy    (P,) of the candidates, >= 0, high = unsure; not modified
count      how many to pick, 0..P
random     draws everything that is random

Each returns `count` distinct positions 0..P-1 in picking order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import FloatArray, IntArray
from sampling.farthest import distances_to

POWER = 1.0
CLASS_SHARE = 2 / 3  # of a batch is picked class by class, the rest by the entropy of the whole scan
BATCHES = 1000


def noisy(values: FloatArray, random: np.random.Generator, power: float = POWER) -> NDArray[np.float64]:
    """power * log(values) + Gumbel noise: its top picks are a draw without replacement, p ~ values ** power.

    power  0 = chance alone, high = the values alone
    Values of 0 come last. Sources: Kirsch et al. 2021; Kool et al. 2019.
    """
    logarithm = np.log(np.maximum(values, 1e-300))
    noised: NDArray[np.float64] = power * logarithm + random.gumbel(size=len(logarithm))
    return noised


def class_stratified(entropy: FloatArray, classes: FloatArray, count: int, random: np.random.Generator) -> IntArray:
    """ClaSP: picks go round the labels, each by the noisy entropy of that label, then by that of the whole scan.

    classes  (P, labels), or (P,) for a single one: entropy of each label's own pixels, 0 where the model sees none
    Two thirds of the picks are made class by class, those first of every cycle of three. The paper lets the noise
    fade over the rounds by a schedule of its own; here its strength is that of the first rounds throughout.
    Source: Lueth et al. 2026 (arXiv 2601.13677).
    """
    columns = [noisy(entropy, random)] + [noisy(column, random) for column in np.atleast_2d(np.asarray(classes).T)]
    queues = [iter(np.argsort(-column, kind="stable").tolist()) for column in columns]
    labels = len(queues) - 1
    taken: dict[int, None] = {}
    by_class = 0
    while len(taken) < count:
        whole = labels == 0 or by_class >= CLASS_SHARE * (len(taken) + 1)
        queue = queues[0] if whole else queues[1 + by_class % labels]
        by_class += not whole
        taken[next(row for row in queue if row not in taken)] = None
    return np.array(list(taken), dtype=np.intp)


def best_batch(entropy: FloatArray, count: int, random: np.random.Generator) -> IntArray:
    """Stochastic batches: of many random sets of `count` scans the one whose mean entropy is highest, unsure first.

    As many sets as the pool can be cut into, again and again until there are at least 1,000.
    Source: Gaillochet et al. 2023.
    """
    best, found = -np.inf, np.arange(min(count, len(entropy)))
    cut = len(entropy) // count if count else 0
    tried = 0
    while cut and tried < BATCHES:
        batches = random.permutation(len(entropy))[: cut * count].reshape(cut, count)
        means = entropy[batches].mean(axis=1)
        if means.max() > best:
            best, found = means.max(), batches[means.argmax()]
        tried += cut
    return np.asarray(found[np.argsort(-entropy[found], kind="stable")], dtype=np.intp)


def uncertain_and_apart(entropy: FloatArray, points: FloatArray, count: int, random: np.random.Generator) -> IntArray:
    """BADGE with the entropy for the length of the gradient: k-means++ on entropy * embedding.

    points  (P, D), embeddings of length 1
    Each pick is drawn with a probability proportional to its squared distance from the nearest pick; the first is
    the longest vector. A real gradient embedding of a segmentation network is far too wide to keep for every scan.
    Sources: Ash et al. 2020; Arthur & Vassilvitskii 2007.
    """
    vectors = np.asarray(entropy)[:, None] * points
    picks = np.empty(count, dtype=np.intp)
    nearest = np.asarray(entropy, dtype=np.float64) * np.linalg.norm(points, axis=1)
    left = np.ones(len(vectors), dtype=bool)
    for i in range(count):
        weight = np.where(left, nearest**2, 0.0)
        total = weight.sum()
        if i == 0:
            pick = int(np.where(left, nearest, -1.0).argmax())
        elif total > 0:
            pick = int(random.choice(len(weight), p=weight / total))
        else:
            pick = int(np.where(left, entropy, -1.0).argmax())
        picks[i] = pick
        left[pick] = False
        distances = distances_to(vectors, vectors[pick])
        nearest = distances if i == 0 else np.minimum(nearest, distances)
    return picks
