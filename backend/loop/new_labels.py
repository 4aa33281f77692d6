"""Prefer scans that could show a label that was added to the label config later.

A label is sought while it is unknown in most annotations, and some scans show it but fewer than ENOUGH. Then a quarter
of the places go to the scans that look most like those (`sampling.alike`); all others keep the order of the strategy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from backend.facts import Scan
from backend.formats.pixels import classes_in
from backend.label_config import LabelConfig, unknown_classes
from backend.loop.selection_units import blocks_of
from backend.records.rounds import Pick
from backend.records.store import Store
from sampling import alike, with_controls

ENOUGH = 10  # scans that show a label, from which on it is not sought
SHARE = 0.25  # of the places
AHEAD = 2000  # slices at the front of the order that may be preferred
READ = 500  # newest annotations that are searched for a label
COULD_SHOW = "could show "  # reason of a preferred scan, followed by the label


@dataclass(frozen=True)
class Sought:
    """A label, and the digests of labelled scans that show it and of those that do not."""

    label: str
    there: list[str]
    absent: list[str]


def with_new_labels(
    store: Store, project: int, embedder: str, picks: Sequence[Pick], scans: Mapping[int, Scan], unit: str, start: int
) -> list[Pick]:
    """An order from place `start` on, with scans that could show a sought label in some of its places.

    scans  by task, labelled ones included; all with an embedding
    unit   with "scan", the consecutive slices of a volume have one place, and one of them suffices to prefer it
    """
    sought = _sought(store, project, scans) if picks else []
    if not sought:
        return list(picks)
    pick_of = {p.task: p for p in picks}
    blocks = blocks_of(pick_of, scans, unit)
    preferred = _preferred(store, embedder, sought, blocks, scans)
    first = [*preferred, *(row for row in range(len(blocks)) if row not in preferred)]
    rows, chosen = with_controls(np.arange(len(blocks)), np.array(first, np.intp), SHARE, start=start)
    return [
        replace(pick_of[task], reason=COULD_SHOW + preferred[row], score=None, distance=None)
        if here and row in preferred
        else pick_of[task]
        for row, here in zip(rows.tolist(), chosen.tolist(), strict=True)
        for task in blocks[row]
    ]


def _preferred(
    store: Store, embedder: str, sought: Sequence[Sought], blocks: Sequence[Sequence[int]], scans: Mapping[int, Scan]
) -> dict[int, str]:
    """Numbers of blocks and the label that each could show, most alike first; several labels take turns."""

    def vectors(digests: Iterable[str]) -> NDArray[np.float32]:
        return store.embeddings(embedder, list(digests))

    at = [(row, task) for row, block in enumerate(blocks[:AHEAD]) for task in block][:AHEAD]
    candidates = vectors(scans[task].digest for _, task in at)
    queues = []
    for one in sought:
        absent = vectors(one.absent) if one.absent else candidates[:0]
        queues.append(dict.fromkeys(at[i][0] for i in alike(candidates, vectors(one.there), absent).tolist()))
    found: dict[int, str] = {}
    for turn in zip_longest(*queues):
        for one, row in zip(sought, turn, strict=True):
            if row is not None:
                found.setdefault(row, one.label)
    return found


def _sought(store: Store, project: int, scans: Mapping[int, Scan]) -> list[Sought]:
    row = store.project(project)
    config = LabelConfig.from_json(row["config"]) if row is not None else None
    if config is None:
        return []
    renames = store.renames(project)
    key = config.reading_key(renames)
    read = [r for r in store.labels(project) if r["config"] == key and not r["problem"] and r["task"] in scans]
    read.sort(key=lambda r: -r["annotation"])

    @cache
    def unknown(known: str) -> frozenset[int]:
        return unknown_classes(known, config.labels, renames)

    @cache
    def drawn(mask: str) -> list[int]:
        return classes_in(store.arrays("labels", mask)["mask"])

    found = []
    for number, label in enumerate(config.labels, start=1):
        known = [r for r in read if number not in unknown(r["known"])]
        if not known or 2 * len(known) >= len(read):
            continue
        there, absent = list[str](), list[str]()
        for r in known[:READ]:
            if store.has("labels", r["mask"]):  # a lost one is read again before the next training
                (there if number in drawn(r["mask"]) else absent).append(scans[r["task"]].digest)
            if len(there) == ENOUGH:
                break
        if 0 < len(there) < ENOUGH:
            found.append(Sought(label, there, absent))
    return found
