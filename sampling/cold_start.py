"""The first scans to label, before any label exists: central ones first, then the farthest from those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from sampling.arrays import FloatArray, IntArray, finite_matrix
from sampling.clustering import Clustering
from sampling.farthest import farthest_first

Reason: TypeAlias = Literal[
    "medoid", "farthest", "random", "stratum", "representative", "typical", "covering", "central"
]


@dataclass(frozen=True, eq=False)
class Order:
    """Scans in the order in which to label them; the annotator may stop anywhere.

    rows     (K,), distinct rows; `cold_start_order` returns all N
    reasons  why each row was picked: "medoid", "farthest", or a word of another strategy
    cluster  (K,), cluster[i] is the cluster of rows[i]
    """

    rows: IntArray
    reasons: tuple[Reason, ...]
    cluster: IntArray


def cold_start_order(xy: FloatArray, clustering: Clustering) -> Order:
    """Order all scans so that every prefix covers the map in proportion to its clusters.

    The medoids come first, the largest cluster's before the others' (ties: the lower cluster). After them,
    each pick comes from the cluster with the largest size / (2 * taken + 1), ties to the larger, then the
    lower cluster; within it, it is the member farthest from those already taken there, ties to the lower row.

    xy          (N, 2), finite, the map that was clustered; not modified
    clustering  clustering of these N rows

    Time about O(N log N), memory O(N).
    Raises ValueError on bad shape, NaN (with its row) and a clustering that belongs to another map.
    Sources: Webster's apportionment (Balinski & Young 1982); Gonzalez 1985.

    >>> import numpy as np
    >>> xy = np.array([[0.0, 0], [0, 1], [0, 2], [9, 0], [9, 1]])
    >>> two = Clustering(np.array([0, 0, 0, 1, 1]), np.array([1, 3]), {}, 0)
    >>> order = cold_start_order(xy, two)
    >>> order.rows, order.reasons
    (array([1, 3, 0, 4, 2]), ('medoid', 'medoid', 'farthest', 'farthest', 'farthest'))
    """
    xy = finite_matrix("xy", xy, columns=2)
    queues = []
    for cluster, first in enumerate(_medoids_checked(xy, clustering)):
        members = np.flatnonzero(clustering.labels == cluster)
        start = int(np.searchsorted(members, first))
        queues.append(members[farthest_first(xy[members], len(members), start)])

    cluster_of_pick = _apportioned(np.array([len(queue) for queue in queues]))
    rows = np.empty(len(xy), dtype=np.intp)
    for cluster, queue in enumerate(queues):
        rows[cluster_of_pick == cluster] = queue
    return Order(rows, medoids_then_farthest(len(queues), len(xy)), cluster_of_pick)


def medoids_then_farthest(medoids: int, n: int) -> tuple[Reason, ...]:
    reasons: list[Reason] = ["farthest"] * n
    reasons[:medoids] = ["medoid"] * medoids
    return tuple(reasons)


def _apportioned(sizes: IntArray) -> IntArray:
    """(N,) the cluster of every pick, for clusters of these sizes, all >= 1: one each, then by quotients.

    A cluster's quotients size / (2 * taken + 1) fall with every pick, so sorting the quotients of all clusters
    gives the picking order. Equal quotients are equal floats, as division rounds correctly, and different ones
    differ by far more than rounding.
    """
    by_size = np.argsort(-sizes, kind="stable")  # the winner of a tie first
    place = np.repeat(np.arange(len(sizes)), sizes[by_size] - 1)
    taken = np.concatenate([np.arange(1, size) for size in sizes[by_size]])
    quotients = sizes[by_size][place] / (2 * taken + 1)
    order: IntArray = by_size[np.concatenate([np.arange(len(sizes)), place[np.lexsort((place, -quotients))]])]
    return order


def _medoids_checked(xy: FloatArray, clustering: Clustering) -> list[int]:
    """The medoids as ints. Raises ValueError unless the clustering belongs to these rows."""
    labels, medoids = clustering.labels, clustering.medoids
    if len(labels) != len(xy):
        raise ValueError(f"clustering: made for {len(labels)} rows, but xy has {len(xy)}. Cluster this map again")
    if not np.array_equal(labels[medoids], np.arange(len(medoids))) or labels.max() >= len(medoids):
        raise ValueError("clustering: every cluster needs its own medoid, with labels 0..k-1. Use choose_clusters")
    return [int(row) for row in medoids]
