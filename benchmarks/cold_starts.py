"""A cold start by our functions and by scikit-learn alone, for `benchmarks.scale`, and how good each of them is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import rounded
from benchmarks.pools import covering_radius, embeddings, unit
from sampling import Clustering, Order, choose_clusters, cold_start_order, fit_map, projection
from sampling.clustering import _numbered

PICKS = 100  # number of picks whose covering radius is compared


@dataclass(frozen=True)
class ColdStart:
    """A cold start and the duration of its steps, in seconds."""

    xy: NDArray[np.float64]
    clustering: Clustering
    order: Order
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def ours(rows: NDArray[np.float32], seed: int) -> ColdStart:
    clock = Clock()
    xy = fit_map(rows, seed=seed).xy
    clock.stop("map")
    clustering = choose_clusters(xy, seed=seed)
    clock.stop("clusters")
    order = cold_start_order(xy, clustering)
    clock.stop("order")
    return ColdStart(xy, clustering, order, clock.seconds)


def straightforward(rows: NDArray[np.float32], seed: int) -> ColdStart:
    """The same with scikit-learn's own tools, used as in its documentation."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score
    from sklearn.preprocessing import normalize

    clock = Clock()
    reduced = PCA(50, random_state=seed).fit_transform(normalize(rows))
    xy = TSNE(2, perplexity=30, init="pca", random_state=seed).fit_transform(reduced).astype(np.float64)
    clock.stop("map")
    labels = {k: KMeans(k, n_init=10, random_state=seed).fit_predict(xy) for k in range(2, 21)}
    silhouette = {k: float(silhouette_score(xy, found)) for k, found in labels.items()}
    clustering = _numbered(xy, labels[max(silhouette, key=silhouette.__getitem__)], silhouette, len(xy))
    clock.stop("clusters")
    order = cold_start_order(xy, clustering)
    clock.stop("order")
    return ColdStart(xy, clustering, order, clock.seconds)


QUALITIES = (
    "silhouette on each method's own map",
    "silhouette on their map",
    "silhouette among the embeddings",
    "silhouette, half placed, on each method's own map",
    "silhouette, half placed, among the embeddings",
    f"radius of {PICKS} picks",
    f"radius of {PICKS} picks, half placed",
)


def qualities(n: int, seed: int, us: ColdStart, them: ColdStart) -> dict[str, tuple[float, float]]:
    """Our value and theirs of each of QUALITIES, for one pool."""
    pool = embeddings(n, seed=seed)
    with laying_out(n // 2):
        half = ours(pool, seed)
    same = choose_clusters(them.xy, seed=seed)

    def radius(order: Order) -> float:
        return covering_radius(pool, order.rows[:PICKS].tolist())

    base, base_as_embeddings = _silhouette(them.xy, them.clustering), _silhouette(unit(pool), them.clustering)
    found = (
        (_silhouette(us.xy, us.clustering), base),
        (_silhouette(them.xy, same), base),
        (_silhouette(unit(pool), us.clustering), base_as_embeddings),
        (_silhouette(half.xy, half.clustering), base),
        (_silhouette(unit(pool), half.clustering), base_as_embeddings),
        (radius(us.order), radius(them.order)),
        (radius(half.order), radius(them.order)),
    )
    return {name: (rounded(a), rounded(b)) for name, (a, b) in zip(QUALITIES, found, strict=True)}


def _silhouette(rows: NDArray[np.floating[Any]], clustering: Clustering) -> float:
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(rows, clustering.labels))


class Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def stop(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step], self._began = now - self._began, now


@contextmanager
def laying_out(scans: int) -> Iterator[None]:
    """Limit t-SNE to this number of scans, with exact neighbours."""
    names = ("LARGEST_FIT", "LARGEST_EXACT_NEIGHBOURS")
    before = {name: getattr(projection, name) for name in names}
    try:
        for name in names:
            setattr(projection, name, scans)
        yield
    finally:
        for name, value in before.items():
            setattr(projection, name, value)
