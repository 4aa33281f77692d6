"""Selection strategies by name: one dict before a model exists, one with a model.

The contract, which one test suite checks for every entry:

- It returns `count` distinct row numbers of the pool, or all remaining ones if fewer, and never one of `chosen`,
  which are labelled or picked already.
- The same input and seed give the same result; nothing else is random.
- Inputs are not modified. Invalid input raises ValueError, for NaN with the row number.
- Any N >= 1 works, also with duplicates or with all scans in one place.

A new strategy is one function and one line in a dict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sampling import noise, representative
from sampling.acquisition import ALPHA, Ranking, min_max, rank
from sampling.arrays import IntArray, whole_number
from sampling.cold_start import Order, Reason, cold_start_order
from sampling.farthest import distances_to, nearest_distances
from sampling.pool import Pool, Space

Rows = Sequence[int] | IntArray


class ColdStart(Protocol):
    """Picks `count` scans of a pool before any model exists."""

    def __call__(self, pool: Pool, count: int, *, chosen: Rows = (), seed: int = 0) -> Order: ...


class WithModel(Protocol):
    """Picks `count` unlabelled scans once a model has predicted them; only "paper" uses `alpha`."""

    def __call__(
        self, pool: Pool, count: int, *, chosen: Rows = (), alpha: float = ALPHA, seed: int = 0
    ) -> Ranking: ...


# -- before there is a model ------------------------------------------------------------------


def paper_cold_start(pool: Pool, count: int, *, chosen: Rows = (), seed: int = 0) -> Order:
    """Medoids, then farthest members in proportion to the clusters: `cold_start_order`."""
    taken, _, count = pool.split(chosen, count)
    order = cold_start_order(pool.xy, pool.clustering)
    kept = np.flatnonzero(~np.isin(order.rows, taken))[:count]
    return Order(order.rows[kept], tuple(order.reasons[i] for i in kept), order.cluster[kept])


def random_cold_start(pool: Pool, count: int, *, chosen: Rows = (), seed: int = 0) -> Order:
    """A uniformly random order, the baseline."""
    taken, _, count = pool.split(chosen, count)
    drawn = np.random.default_rng(whole_number("seed", seed, low=0)).permutation(len(pool))
    return _order(pool, drawn[~np.isin(drawn, taken)][:count], "random")


def stratified_cold_start(pool: Pool, count: int, *, chosen: Rows = (), seed: int = 0) -> Order:
    """Random, but every prefix is proportional to the strata (site, scanner, protocol): Webster apportionment.

    Raises ValueError when the pool has no strata. Source: Neyman 1934.
    """
    taken, rest, count = pool.split(chosen, count)
    if pool.strata is None:
        raise ValueError(
            "strata: the strategy 'stratified' needs the stratum of each scan. Name a field of the "
            "task data (site, scanner, protocol) that contains it"
        )
    names, stratum = np.unique(pool.strata, return_inverse=True)
    random = np.random.default_rng(whole_number("seed", seed, low=0))
    drawn = random.permutation(rest)
    queues = [drawn[stratum[drawn] == s] for s in range(len(names))]
    sizes = np.bincount(stratum, minlength=len(names))
    have = np.bincount(stratum[taken], minlength=len(names))
    # The k-th scan of a stratum has the quotient size / (2 k + 1); the highest quotients come first.
    quotient = np.concatenate([sizes[s] / (2 * (have[s] + np.arange(len(q))) + 1) for s, q in enumerate(queues)])
    rows = np.concatenate(queues)[np.argsort(-quotient, kind="stable")]
    return _order(pool, rows[:count], "stratum")


def _representative(
    pick: Callable[..., IntArray],
    reason: Reason,
    space: Space,
    seeded: bool,
    classes: bool = False,
    groups: bool = False,
) -> ColdStart:
    """A strategy from a function of `representative`, on the map or on the embeddings."""

    def strategy(pool: Pool, count: int, *, chosen: Rows = (), seed: int = 0) -> Order:
        taken, _, count = pool.split(chosen, count)
        more: dict[str, object] = {"seed": whole_number("seed", seed, low=0)} if seeded else {}
        more |= {"classes": pool.clustering.labels} if classes else {}
        more |= {"groups": pool.groups} if groups else {}
        return _order(pool, pick(pool.points(space), count, taken, **more), reason)

    strategy.__doc__ = pick.__doc__
    return strategy


def _order(pool: Pool, rows: IntArray, reason: Reason) -> Order:
    return Order(rows, (reason,) * len(rows), pool.clustering.labels[rows])


# -- with a model -----------------------------------------------------------------------------


def paper_with_model(pool: Pool, count: int, *, chosen: Rows = (), alpha: float = ALPHA, seed: int = 0) -> Ranking:
    """Uncertainty and spread, weighted by alpha: `rank`."""
    _, rest, _ = pool.split(chosen, count)
    entropy = np.full(len(pool), np.nan)
    entropy[rest] = pool.signal("entropy", rest)
    return rank(entropy, pool.xy, chosen, alpha=alpha, count=count)


def entropy_with_model(pool: Pool, count: int, *, chosen: Rows = (), alpha: float = ALPHA, seed: int = 0) -> Ranking:
    """The most uncertain scans, wherever they are. Source: Lewis & Gale 1994."""
    _, rest, count = pool.split(chosen, count)
    return _best(pool, chosen, pool.signal("entropy", rest), count)


def pairwise_dice_with_model(
    pool: Pool, count: int, *, chosen: Rows = (), alpha: float = ALPHA, seed: int = 0
) -> Ranking:
    """The scans whose masks change most when the scan is augmented: `disagreement`. Source: 2406.03323."""
    _, rest, count = pool.split(chosen, count)
    return _best(pool, chosen, pool.signal("disagreement", rest), count)


def random_with_model(pool: Pool, count: int, *, chosen: Rows = (), alpha: float = ALPHA, seed: int = 0) -> Ranking:
    """Uniformly random scans: the continuation of `random_cold_start` with the same seed."""
    order = random_cold_start(pool, count, chosen=chosen, seed=seed)
    return _ranked(pool, chosen, order.rows)


def power_entropy_with_model(
    pool: Pool, count: int, *, chosen: Rows = (), alpha: float = ALPHA, seed: int = 0
) -> Ranking:
    """Sampled with probability proportional to the entropy: `noisy`. Source: Kirsch et al. 2021."""
    _, rest, count = pool.split(chosen, count)
    random = np.random.default_rng(whole_number("seed", seed, low=0))
    return _best(pool, chosen, min_max(noise.noisy(pool.signal("entropy", rest), random)), count)


def kcenter_with_model(
    pool: Pool, count: int, *, chosen: Rows = (), alpha: float = ALPHA, seed: int = 0, space: Space
) -> Ranking:
    """The scans farthest from labelled ones and from each other, regardless of the model: `spread`."""
    taken, _, count = pool.split(chosen, count)
    return _ranked(pool, chosen, representative.spread(pool.points(space), count, taken))


def facility_with_model(
    pool: Pool, count: int, *, chosen: Rows = (), alpha: float = ALPHA, seed: int = 0, space: Space
) -> Ranking:
    """The scans that best represent those not yet covered, regardless of the model: `facility`."""
    taken, _, count = pool.split(chosen, count)
    seed = whole_number("seed", seed, low=0)
    picks = representative.facility(pool.points(space), count, taken, seed=seed, groups=pool.groups)
    return _ranked(pool, chosen, picks)


def clasp_with_model(pool: Pool, count: int, *, chosen: Rows = (), alpha: float = ALPHA, seed: int = 0) -> Ranking:
    """Cycles through the labels, with power noise: `class_stratified`."""
    _, rest, count = pool.split(chosen, count)
    random = np.random.default_rng(whole_number("seed", seed, low=0))
    classes = pool.signal("classes", rest)
    return _ranked(pool, chosen, rest[noise.class_stratified(pool.signal("entropy", rest), classes, count, random)])


def stochastic_batches_with_model(
    pool: Pool, count: int, *, chosen: Rows = (), alpha: float = ALPHA, seed: int = 0
) -> Ranking:
    """The random set with the highest mean entropy: `best_batch`."""
    _, rest, count = pool.split(chosen, count)
    random = np.random.default_rng(whole_number("seed", seed, low=0))
    return _ranked(pool, chosen, rest[noise.best_batch(pool.signal("entropy", rest), count, random)])


def badge_with_model(pool: Pool, count: int, *, chosen: Rows = (), alpha: float = ALPHA, seed: int = 0) -> Ranking:
    """Uncertain scans that differ from each other: `uncertain_and_apart`."""
    _, rest, count = pool.split(chosen, count)
    random = np.random.default_rng(whole_number("seed", seed, low=0))
    points = pool.points("embedding")[rest]
    return _ranked(pool, chosen, rest[noise.uncertain_and_apart(pool.signal("entropy", rest), points, count, random)])


def _best(pool: Pool, chosen: Rows, values: NDArray[np.float64], count: int) -> Ranking:
    """The unlabelled rows with the highest values, high to low, ties to the lower row.

    With `Pool.groups`, the best row of each group without a chosen one comes before all others.
    """
    taken, rest, count = pool.split(chosen, count)
    best = np.argsort(-values, kind="stable")
    if pool.groups is not None:
        group = pool.groups[rest[best]]
        first = np.zeros(len(best), dtype=bool)
        first[np.unique(group, return_index=True)[1]] = True
        first &= ~np.isin(group, pool.groups[taken])
        best = np.concatenate([best[first], best[~first]])
    best = best[:count]
    return _ranked(pool, chosen, rest[best], min_max(values)[best])


def _ranked(pool: Pool, chosen: Rows, rows: IntArray, score: NDArray[np.float64] | None = None) -> Ranking:
    """The picks with the terms of `rank`; without a score, the picking order gives it, 1 falling towards 0."""
    taken, rest, _ = pool.split(chosen, len(rows))
    known = np.asarray(pool.signals.get("entropy", np.zeros(len(pool))), dtype=np.float64)
    h = np.zeros(len(pool))
    h[rest] = min_max(np.nan_to_num(known[rest]))
    xy = np.asarray(pool.xy, dtype=np.float64)
    nearest = np.full(len(pool), np.inf)
    nearest[rest] = nearest_distances(np.asfortranarray(xy[rest]), xy[taken])
    left = np.zeros(len(pool), dtype=bool)
    left[rest] = True
    diversity = np.zeros(len(rows))
    for i, row in enumerate(rows):
        now = nearest[left]
        low, high = now.min(), now.max()
        diversity[i] = (nearest[row] - low) / (high - low) if high > low else 0.0
        left[row] = False
        np.minimum(nearest, distances_to(xy, xy[row]), out=nearest)
    place = 1.0 - np.arange(len(rows)) / max(1, len(rows))
    return Ranking(rows, place if score is None else score, h[rows], np.nan_to_num(diversity, posinf=0.0))


# -- by name ----------------------------------------------------------------------------------

COLD_START: dict[str, ColdStart] = {
    "paper": paper_cold_start,
    "random": random_cold_start,
    "stratified": stratified_cold_start,
    "facility": _representative(representative.facility, "representative", "embedding", seeded=True, groups=True),
    "facility-map": _representative(representative.facility, "representative", "map", seeded=True, groups=True),
    "medoids": _representative(representative.medoids, "representative", "embedding", seeded=True, groups=True),
    "medoids-map": _representative(representative.medoids, "representative", "map", seeded=True, groups=True),
    "kcenter": _representative(representative.spread, "farthest", "embedding", seeded=False),
    "kcenter-map": _representative(representative.spread, "farthest", "map", seeded=False),
    "typiclust": _representative(representative.typical, "typical", "embedding", seeded=True),
    "typiclust-map": _representative(representative.typical, "typical", "map", seeded=True),
    "probcover": _representative(representative.covering, "covering", "embedding", seeded=True, classes=True),
    "probcover-map": _representative(representative.covering, "covering", "map", seeded=True, classes=True),
    "alps": _representative(representative.central, "central", "embedding", seeded=True),
    "alps-map": _representative(representative.central, "central", "map", seeded=True),
}

WITH_MODEL: dict[str, WithModel] = {
    "paper": paper_with_model,
    "entropy": entropy_with_model,
    "random": random_with_model,
    "kcenter": partial(kcenter_with_model, space="embedding"),
    "kcenter-map": partial(kcenter_with_model, space="map"),
    "facility": partial(facility_with_model, space="embedding"),
    "facility-map": partial(facility_with_model, space="map"),
    "power-entropy": power_entropy_with_model,
    "clasp": clasp_with_model,
    "stochastic-batches": stochastic_batches_with_model,
    "badge": badge_with_model,
    "pairwise-dice": pairwise_dice_with_model,
}

# These choose a set as a whole, so `long_ranking` combines several sets.
SETS = frozenset({"stochastic-batches"})

# These use the embeddings; the others use at most the map.
EMBEDDED = frozenset({"facility", "medoids", "kcenter", "typiclust", "probcover", "alps", "badge"})

# These use no model, only what is labelled.
BLIND = frozenset({"random", "kcenter", "kcenter-map", "facility", "facility-map"})

# Model outputs needed besides the entropy; see `Pool.signals`.
EXTRA_SIGNALS: dict[str, str] = {"clasp": "classes", "pairwise-dice": "disagreement"}

# These give every patient or volume one pick before any gets a second one; see `Pool.groups`.
GROUPED = frozenset({"facility", "facility-map", "medoids", "medoids-map", "entropy", "power-entropy", "pairwise-dice"})

# A longer order of these begins with the shorter one.
PREFIXED = frozenset({"random", "facility", "facility-map", "medoids", "medoids-map", "kcenter", "kcenter-map"})
PREFIXED |= {"probcover", "probcover-map"}

FAR = 2_000  # maximum number of further picks by a strategy that may be slow on large pools

DEFAULT = "medoids+power-entropy"  # cold start + with a model; see benchmarks/screening.md

S = TypeVar("S")


def find_strategy(strategies: Mapping[str, S], name: str) -> S:
    """The strategy of this name. Raises ValueError that lists the valid names.

    >>> find_strategy({"paper": 1, "random": 2}, "luck")
    Traceback (most recent call last):
    ValueError: strategy: got 'luck', wanted one of paper, random
    """
    if name not in strategies:
        raise ValueError(f"strategy: got {name!r}, wanted one of {', '.join(strategies)}")
    return strategies[name]


def strategy_pair(name: str) -> tuple[str, str]:
    """(cold start, with a model) of "COLD+MODEL", of a name for both, or of "default".

    For a name in only one dict, the other half is the default. Raises ValueError that lists the names.

    >>> strategy_pair("typiclust+entropy"), strategy_pair("random"), strategy_pair("power-entropy")[1]
    (('typiclust', 'entropy'), ('random', 'random'), 'power-entropy')
    """
    usual = DEFAULT.split("+")
    if name == "default":
        return usual[0], usual[1]
    cold, plus, model = name.partition("+")
    if not plus:
        if name not in COLD_START and name not in WITH_MODEL:
            names = ", ".join(dict.fromkeys([*COLD_START, *WITH_MODEL]))
            raise ValueError(f"strategy: got {name!r}, wanted default, one of {names}, or two of them as COLD+MODEL")
        cold = name if name in COLD_START else usual[0]
        model = name if name in WITH_MODEL else usual[1]
    find_strategy(COLD_START, cold)
    find_strategy(WITH_MODEL, model)
    return cold, model


def whole_order(name: str, pool: Pool, first: int, *, chosen: Rows = (), seed: int = 0) -> Order:
    """All scans except the chosen ones, in the order of the cold start `name`.

    first  number of scans expected to be labelled before a model exists, as some strategies depend on it
    After the first and `FAR` more, the rest follows in the order of "paper": some strategies would take hours for
    a large pool.
    """
    strategy = find_strategy(COLD_START, name)
    if name == "paper":
        return strategy(pool, len(pool), chosen=chosen, seed=seed)
    parts: list[Order] = []
    taken = [int(row) for row in chosen]
    steps = [(first + FAR, strategy)] if name in PREFIXED else [(first, strategy), (FAR, strategy)]
    for count, pick in [*steps, (len(pool), paper_cold_start)]:
        parts.append(pick(pool, count, chosen=taken, seed=seed))
        taken += parts[-1].rows.tolist()
    reasons = tuple(reason for part in parts for reason in part.reasons)
    return Order(np.concatenate([p.rows for p in parts]), reasons, np.concatenate([p.cluster for p in parts]))


def long_ranking(
    name: str, pool: Pool, count: int, block: int, *, chosen: Rows = (), alpha: float = ALPHA, seed: int = 0
) -> Ranking:
    """`count` picks of the strategy `name`; those in `SETS` choose `block` scans at a time."""
    strategy = find_strategy(WITH_MODEL, name)
    step = block if name in SETS else max(count, 1)
    parts: list[Ranking] = []
    taken = [int(row) for row in chosen]
    while not parts or (count > 0 and len(parts[-1].rows)):
        found = strategy(pool, min(step, count), chosen=taken, alpha=alpha, seed=seed + len(parts))
        parts.append(found)
        taken += found.rows.tolist()
        count -= len(found.rows)
    return Ranking(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Ranking)))
