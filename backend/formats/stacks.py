"""Grouping the files of a series into stacks, which become volumes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from backend.formats.dicom import normal
from backend.formats.source import FileFacts, Source

ALIKE = 0.02  # maximum difference of direction cosines in one stack
APART = 0.01  # mm; slices closer than this are at one position


def stacks(facts: Iterable[FileFacts]) -> list[Source]:
    """DICOM files as sources; see `backend.formats.group`."""
    ordered = sorted(facts, key=lambda fact: (fact.number, fact.instance, str(fact.path)))
    first: dict[str, FileFacts] = {}
    for fact in sorted(ordered, key=lambda fact: (-fact.size, str(fact.path))):  # a shorter copy may be truncated
        first.setdefault(fact.instance or str(fact.path), fact)
    kept = [fact for fact in ordered if first[fact.instance or str(fact.path)] is fact]

    sources, series = [], defaultdict(list)
    for fact in kept:
        if fact.frames > 1 or not fact.stackable or not fact.series or not fact.instance:
            sources.append(_source([fact], fact.instance))
        else:
            size = fact.rows, fact.columns, fact.colour
            series[fact.series, size, fact.frame, fact.placed].append(fact)
    for (name, *shape), files in series.items():
        for parallel in _parallel(files):
            towards = [round(part * 20) for part in parallel[0].orientation]  # coarse, against noise
            for mark, stack in _at_one_place_once(parallel):
                stack_name = hashlib.sha256(repr((shape, towards, mark)).encode()).hexdigest()[:12]
                sources.append(_source(stack, f"{name}/{stack_name}"))
    taken: dict[str, int] = defaultdict(int)
    for n, source in enumerate(sources):  # two stacks with one name are distinguished by their files
        taken[source.uid] += 1
        if source.uid and taken[source.uid] > 1:
            digest = hashlib.sha256(repr(sorted(source.instances)).encode()).hexdigest()[:12]
            sources[n] = replace(source, uid=f"{source.uid}/{digest}")
    return sources


def _source(files: Sequence[FileFacts], uid: str) -> Source:
    values = {fact.burnt_in for fact in files}
    burnt_in = "YES" if "YES" in values else "NO" if values == {"NO"} else ""
    return Source(
        "dicom",
        tuple(fact.path for fact in files),
        uid,
        tuple(fact.instance for fact in files),
        burnt_in,
        remarks=tuple(dict.fromkeys(fact.remark for fact in files if fact.remark)),
    )


def _parallel(files: Sequence[FileFacts]) -> list[list[FileFacts]]:
    """Groups of slices that are parallel, or have no orientation."""
    parts: list[list[FileFacts]] = []
    for fact in files:
        for part in parts:
            ours, theirs = part[0].orientation, fact.orientation
            if ours == theirs or (len(ours) == len(theirs) and np.allclose(ours, theirs, rtol=0, atol=ALIKE)):
                part.append(fact)
                break
        else:
            parts.append([fact])
    return parts


def _at_one_place_once(files: Sequence[FileFacts]) -> list[tuple[str, list[FileFacts]]]:
    """Stacks in order of position without two slices at one position, each with its mark ("" for a single stack)."""
    if not files[0].placed:
        return [("", list(files))]  # in order of InstanceNumber
    towards = normal(files[0].orientation)
    place = {fact.instance: float(np.dot(towards, fact.position)) for fact in files}
    ordered = sorted(files, key=lambda fact: place[fact.instance])

    def distinct(stack: Sequence[FileFacts]) -> bool:
        return all(place[b.instance] - place[a.instance] > APART for a, b in pairwise(stack))

    if distinct(ordered):
        return [("", ordered)]
    best: dict[str, list[FileFacts]] = {}
    for n in range(len(files[0].marks)):
        parts = defaultdict(list)
        for fact in ordered:
            parts[fact.marks[n]].append(fact)
        if all(map(distinct, parts.values())) and (not best or len(parts) < len(best)):
            best = {f"{n}={mark}": part for mark, part in parts.items()}
    if best and len(best) <= len(files) / 2:
        return sorted(best.items())
    # Only their order distinguishes them: a stack of the n-th image at every position.
    layers: dict[int, list[FileFacts]] = defaultdict(list)
    for at in _places(ordered, place):
        for n, fact in enumerate(sorted(at, key=lambda fact: (fact.number, fact.instance))):
            layers[n].append(fact)
    return [(f"layer {n}", layer) for n, layer in sorted(layers.items())]


def _places(ordered: Sequence[FileFacts], place: dict[str, float]) -> list[list[FileFacts]]:
    groups: list[list[FileFacts]] = []
    for fact in ordered:
        if groups and place[fact.instance] - place[groups[-1][0].instance] <= APART:
            groups[-1].append(fact)
        else:
            groups.append([fact])
    return groups
