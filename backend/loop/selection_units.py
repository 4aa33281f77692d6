"""Volumes as selection units: grouped slices, mean embeddings, and places on the map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from backend.facts import Scan
from backend.records.maps import StoredMap, read_map
from backend.records.store import Store
from sampling import EmbeddingMap, fit_map

AT_ONCE = 4096  # embeddings in memory besides the means

Slices = list[Scan]


def group_by_place(scans: Sequence[Scan]) -> list[Slices]:
    """Group scans by their place on a map of whole scans (`Scan.whole`), in order of appearance; slices in order."""
    found: dict[str, Slices] = {}
    for scan in scans:
        found.setdefault(scan.whole, []).append(scan)
    return [in_order(slices) for slices in found.values()]


def units(scans: Sequence[Scan], unit: str) -> list[Slices]:
    """The selection units in order of appearance: volumes with "scan", single scans with "slice".

    Unlike on the map, scans without a volume are always single units, even if their pixels are equal.
    """
    if unit != "scan":
        return [[scan] for scan in scans]
    found: dict[str | int, Slices] = {}
    for scan in scans:
        found.setdefault(scan.volume or scan.task, []).append(scan)
    return [in_order(slices) for slices in found.values()]


def blocks_of(tasks: Iterable[int], by_task: Mapping[int, Scan], unit: str) -> list[list[int]]:
    """Group tasks into places: one task each, or with the unit "scan", consecutive tasks of one volume."""

    def volume(task: int) -> str | int:
        scan = by_task.get(task)
        return scan.volume or task if scan is not None and unit == "scan" else task

    return [list(group) for _, group in groupby(tasks, volume)]


def in_order(slices: Sequence[Scan]) -> Slices:
    return sorted(slices, key=lambda s: (s.slice, s.task))


def mean_embeddings(store: Store, embedder: str, volumes: Sequence[Slices], width: int = 0) -> NDArray[np.float32]:
    """(V, D), the mean embedding of the slices of each volume; V >= 1. `width`, errors: see `Store.embeddings`."""
    if all(len(slices) == 1 for slices in volumes):
        return store.embeddings(embedder, [slices[0].digest for slices in volumes], width)
    parts: list[NDArray[np.float32]] = []
    chunk: list[Slices] = []
    size = 0
    for at, slices in enumerate(volumes, start=1):
        chunk.append(slices)
        size += len(slices)
        if size >= AT_ONCE or at == len(volumes):
            vectors = store.embeddings(embedder, [s.digest for one in chunk for s in one], width).astype(np.float64)
            width = vectors.shape[1]
            lengths = np.array([len(one) for one in chunk])
            sums = np.add.reduceat(vectors, np.cumsum(lengths) - lengths, axis=0)
            parts.append((sums / lengths[:, None]).astype(np.float32))
            chunk, size = [], 0
    return np.concatenate(parts)


def stored_map(store: Store, project: int, embedder: str, unit: str) -> StoredMap | None:
    """The project's map, if one is stored that was fitted on this unit."""
    found = read_map(store, project, embedder)
    return found if found is not None and found.unit == unit else None


def lay_out(
    store: Store, embedder: str, scans: Sequence[Scan], unit: str, seed: int, most: int | None = None
) -> StoredMap:
    """A new map of embedded scans, at least one. With the unit "scan", slices share the place of their volume.

    most  number of places that are laid out, see `fit_map`
    """
    if unit != "scan":
        digests = list(dict.fromkeys(s.digest for s in scans))
        fitted = fit_map(store.embeddings(embedder, digests), seed=seed, most=most)
        return StoredMap(digests, fitted.xy, fitted.state(), "slice", {})
    volumes = group_by_place(scans)
    fitted = fit_map(mean_embeddings(store, embedder, volumes), seed=seed, most=most)
    bare = StoredMap([], np.zeros((0, 2)), fitted.state(), "scan", {})
    return _with(bare, volumes, fitted.xy)


def add(found: StoredMap, store: Store, embedder: str, scans: Sequence[Scan]) -> StoredMap:
    """The map with these scans added; existing places do not move.

    New slices of a mapped volume share its place; a new volume is placed by its mean embedding.
    """
    there = set(found.digests)
    width = found.state["mean"].size
    if found.unit != "scan":
        later = [d for d in dict.fromkeys(s.digest for s in scans) if d not in there]
        if not later:
            return found
        xy = EmbeddingMap.from_state(found.state).place(store.embeddings(embedder, later, width))
        return found._replace(digests=found.digests + later, xy=np.concatenate([found.xy, xy]))
    volumes = [slices for slices in group_by_place(scans) if any(s.digest not in there for s in slices)]
    new = [slices for slices in volumes if slices[0].whole not in found.volumes]
    if new:
        xy = EmbeddingMap.from_state(found.state).place(mean_embeddings(store, embedder, new, width))
        found = _with(found, new, xy)
    known = [slices for slices in volumes if slices[0].whole in found.volumes]
    return _with(found, known, np.array([found.volumes[slices[0].whole] for slices in known]).reshape(-1, 2))


def _with(found: StoredMap, volumes: Sequence[Slices], xy: NDArray[np.float64]) -> StoredMap:
    """The map with these volumes at these places (V, 2), and with their slices whose pixels are not yet on it."""
    there = set(found.digests)
    more: dict[str, NDArray[np.float64]] = {}
    for slices, place in zip(volumes, xy, strict=True):
        for scan in slices:
            if scan.digest not in there:
                more.setdefault(scan.digest, place)
    places = {slices[0].whole: place for slices, place in zip(volumes, xy, strict=True)}
    return found._replace(
        digests=found.digests + list(more),
        xy=np.concatenate([found.xy, np.array(list(more.values()), dtype=np.float64).reshape(-1, 2)]),
        volumes=found.volumes | places,
    )


def places(found: StoredMap, volumes: Sequence[Slices]) -> NDArray[np.float64]:
    """(V, 2), the place of each volume. All slices are on the map; on a map of the other unit it is approximate."""
    where = {digest: i for i, digest in enumerate(found.digests)}
    xy = np.zeros((len(volumes), 2))
    for at, slices in enumerate(volumes):
        known = found.volumes.get(slices[0].whole)
        if known is None and len(slices) == 1:
            known = found.xy[where[slices[0].digest]]
        elif known is None and found.unit == "scan":  # all its slices are on the map as slices of other volumes
            rows = Counter(tuple(found.xy[where[s.digest]].tolist()) for s in slices)
            known = np.array(rows.most_common(1)[0][0])
        elif known is None:
            known = found.xy[[where[s.digest] for s in slices]].mean(axis=0)
        xy[at] = known
    return xy
