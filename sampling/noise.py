"""Uncertain but varied scans: randomness and classes spread the picks.

entropy    (P,) entropies of the candidates, >= 0, high = uncertain; not modified
count      number of picks, 0..P
random     the only source of randomness

Each returns `count` distinct positions 0..P-1 in picking order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import FloatArray, IntArray
from sampling.farthest import distances_to

POWER = 1.0
CLASS_SHARE = 2 / 3  # share of a batch picked by class; the rest by the entropy of the whole scan
BATCHES = 1000
CANDIDATES = 5_000


def noisy(values: FloatArray, random: np.random.Generator, power: float = POWER) -> NDArray[np.float64]:
    """power * log(values) + Gumbel noise: its top picks are a sample without replacement, p ~ values ** power.

    power  0 = uniformly random, high = by the values only
    Values of 0 come last. Sources: Kirsch et al. 2021; Kool et al. 2019.
    """
    logarithm = np.log(np.maximum(values, 1e-300))
    noised: NDArray[np.float64] = power * logarithm + random.gumbel(size=len(logarithm))
    return noised


def class_stratified(entropy: FloatArray, classes: FloatArray, count: int, random: np.random.Generator) -> IntArray:
    """ClaSP: picks cycle through the labels by the noisy entropy of each label, then by that of the whole scan.

    classes  (P, labels), or (P,) for one label: entropy over the pixels of each label, 0 if the model predicts none
    Two thirds of the picks are made by class, the first two of every three. The paper reduces the noise over the
    rounds; here it keeps its initial strength.
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
    """Stochastic batches: the best of many random sets of `count` scans by mean entropy, most uncertain first.

    Partitions the pool into sets at random, repeatedly, until there are at least 1,000 sets.
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
    """BADGE with the entropy as the gradient length: k-means++ on entropy * embedding.

    points  (P, D), embeddings of length 1
    Each pick is sampled with probability proportional to its squared distance from the nearest pick; the first is
    the longest vector. True gradient embeddings of a segmentation network are too large to store for every scan. In a
    pool of more than `CANDIDATES`, all picks but the first come from a random sample of as many (or `count`, if more).
    Sources: Ash et al. 2020; Arthur & Vassilvitskii 2007.
    """
    entropy = np.asarray(entropy, dtype=np.float64)
    nearest = entropy * np.linalg.norm(points, axis=1)
    rows: IntArray = np.arange(len(points))
    if len(points) > CANDIDATES:
        drawn = random.choice(len(points), min(len(points), max(CANDIDATES, count)), replace=False)
        rows = np.union1d(drawn, nearest.argmax())
    entropy, nearest, vectors = entropy[rows], nearest[rows], entropy[rows, None] * points[rows]
    picks = np.empty(count, dtype=np.intp)
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
    return rows[picks]
