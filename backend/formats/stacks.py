"""Which slices form a volume: grouping the files of a series, and the frames of a multi-frame file."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Protocol, TypeVar

import numpy as np

from backend.formats.dicom import OVERLAP_MARKS
from backend.formats.fields import normal
from backend.formats.source import UNNAMED, FileFacts, Source, is_content

ALIKE = 0.02  # maximum difference of direction cosines in one stack
APART = 0.01  # mm; slices closer than this are at one position
SAME_SIZE = 1e-3  # relative difference of pixel sizes in one stack
CLOSE = 0.75  # share of the slice thickness; slices of one acquisition are farther apart
LAYERS = (
    "several images are at one position and no field tells them apart, so they were divided by their InstanceNumber; "
    "check the pictures"
)


class Slice(Protocol):
    """The properties of FileFacts or a frame that determine where it belongs."""

    @property
    def orientation(self) -> tuple[float, ...]: ...
    @property
    def position(self) -> tuple[float, ...]: ...
    @property
    def spacing(self) -> tuple[float, ...]: ...
    @property
    def thickness(self) -> float: ...
    @property
    def marks(self) -> tuple[str, ...]: ...
    @property
    def stack(self) -> str: ...
    @property
    def number(self) -> int: ...


One = TypeVar("One", bound=Slice)


def stacks(facts: Iterable[FileFacts]) -> list[Source]:
    """Single-frame DICOM files as sources; see `backend.formats.group`."""
    sources, series = [], defaultdict(list)
    owners: dict[str, set[str]] = defaultdict(set)
    for fact in sorted(facts, key=lambda fact: (fact.number, fact.instance, str(fact.path))):
        unnamed = fact.series.startswith(UNNAMED)
        if not fact.stackable or not fact.series or not fact.instance or (unnamed and not fact.placed):
            sources.append(source_of([fact], "" if is_content(fact.instance) else fact.instance))
            continue
        size = fact.rows, fact.columns, fact.colour
        folder = str(fact.path.parent) if unnamed else ""
        series[fact.series, fact.owner, folder, size, fact.frame, fact.placed].append(fact)
        owners[fact.series].add(fact.owner)
    for (name, owner, _, *shape), files in series.items():
        for together in parallel(files):
            towards = [round(part * 20) for part in together[0].orientation]  # coarse, against noise
            found = volumes(together)
            for n, (mark, stack) in enumerate(found):
                key = shape, towards, mark, *([owner] if len(owners[name]) > 1 else [])
                stack_name = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
                source = source_of(stack, f"{name}/{stack_name}")
                if len(stack) == 1 and is_content(stack[0].instance):
                    source = replace(source, uid="", instances=("",))
                remarks = (*source.remarks, LAYERS) if mark.startswith("layer") else source.remarks
                sources.append(replace(source, turn=(n, len(found)), remarks=remarks))
    taken: dict[str, int] = defaultdict(int)
    for n, source in enumerate(sources):  # two stacks with one name are distinguished by their files
        taken[source.uid] += 1
        if source.uid and taken[source.uid] > 1:
            digest = hashlib.sha256(repr(sorted(source.instances)).encode()).hexdigest()[:12]
            sources[n] = replace(source, uid=f"{source.uid}/{digest}")
    return sources


def source_of(files: Sequence[FileFacts], uid: str) -> Source:
    values = {fact.burnt_in for fact in files}
    burnt_in = "YES" if "YES" in values else "NO" if values == {"NO"} else ""
    return Source(
        "dicom",
        tuple(fact.path for fact in files),
        uid,
        tuple(fact.instance if uid else "" for fact in files),
        burnt_in,
        remarks=tuple(dict.fromkeys(fact.remark for fact in files if fact.remark)),
    )


def parallel(slices: Sequence[One]) -> list[list[One]]:
    """Groups of slices with one direction (or none), one pixel size and one StackID."""
    parts: list[list[One]] = []
    for one in slices:
        for part in parts:
            if _close(part[0].orientation, one.orientation, 0, ALIKE) and _close(
                part[0].spacing, one.spacing, SAME_SIZE, 0
            ):
                part.append(one)
                break
        else:
            parts.append([one])
    found = []
    for part in parts:
        named = _by(part, lambda one: one.stack)
        found += list(named.values()) if len(named) <= len(part) / 2 else [part]
    return found


def _close(ours: tuple[float, ...], theirs: tuple[float, ...], relative: float, absolute: float) -> bool:
    if ours == theirs:
        return True
    return len(ours) == len(theirs) and bool(np.allclose(ours, theirs, rtol=relative, atol=absolute))


def _by(slices: Sequence[One], key: Callable[[One], str]) -> dict[str, list[One]]:
    parts: dict[str, list[One]] = defaultdict(list)
    for one in slices:
        parts[key(one)].append(one)
    return parts


def volumes(slices: Sequence[One]) -> list[tuple[str, list[One]]]:
    """The volumes of a stack: each in order of position, without two slices at one position, with its mark.

    Slices at one position differ in time, echo, b-value, ... (`marks`). The field that makes the fewest volumes divides
    them, else two or three fields; else their order at each position. Volumes are in order of that field, whatever the
    order of the slices. The mark is "" for a single volume.
    """
    if not all(one.position and one.orientation for one in slices):
        return [("", list(slices))]  # as numbered
    towards = normal(slices[0].orientation)
    place = {id(one): float(np.dot(towards, one.position)) for one in slices}
    ordered = sorted(slices, key=lambda one: place[id(one)])

    def distinct(stack: Sequence[One]) -> bool:
        return all(place[id(b)] - place[id(a)] > APART for a, b in pairwise(stack))

    if distinct(ordered):
        return _overlapping(ordered, place) or [("", ordered)]
    fields = _dividing_fields(ordered)
    best: dict[str, list[One]] = {}
    for count in (1, 2, 3):
        for chosen in combinations(fields, count):
            parts = _by(ordered, lambda one, chosen=chosen: _mark(one, chosen))  # type: ignore[misc]
            if (not best or len(parts) < len(best)) and all(map(distinct, parts.values())):
                best = parts
        if best and len(best) <= len(slices) / 2:
            return sorted(best.items(), key=_in_order)
    layers: dict[int, list[One]] = defaultdict(list)
    for at in _places(ordered, place):
        for n, one in enumerate(sorted(at, key=lambda one: one.number)):
            layers[n].append(one)
    return [(f"layer {n}", layer) for n, layer in sorted(layers.items())]


def _dividing_fields(slices: Sequence[Slice]) -> list[int]:
    """The numbers of the marks that may divide slices, the most specific first, one of those that divide alike."""
    found: dict[tuple[int, ...], int] = {}
    for n in range(min(len(one.marks) for one in slices)):
        numbers: dict[str, int] = {}
        division = tuple(numbers.setdefault(one.marks[n], len(numbers)) for one in slices)
        if 1 < len(numbers) <= len(slices) / 2:
            found.setdefault(division, n)
    return list(found.values())


def _mark(one: Slice, fields: Sequence[int]) -> str:
    return "; ".join(f"{n}={one.marks[n]}" for n in fields)


def _in_order(item: tuple[str, list[One]]) -> list[tuple[bool, float, str]]:
    return natural("\\".join(field.partition("=")[2] for field in item[0].split("; ")))


def natural(value: str) -> list[tuple[bool, float, str]]:
    """A sorting key for the values of a field: numbers as numbers."""
    found = []
    for part in value.split("\\"):
        try:
            found.append((False, float(part), ""))
        except ValueError:
            found.append((True, 0.0, part))
    return found


def _overlapping(ordered: Sequence[One], place: dict[int, float]) -> list[tuple[str, list[One]]]:
    """The acquisitions that interleave in a stack that is not one volume; [] if it is one.

    Interleaved packages of one acquisition make evenly spaced slices that do not overlap each other.
    """
    if len(ordered) < 4:
        return []
    gaps = np.diff([place[id(one)] for one in ordered])
    even = bool(np.abs(gaps - gaps.mean()).max() <= 0.02 * gaps.mean())
    if even and gaps.mean() >= CLOSE * ordered[0].thickness:
        return []
    for n in OVERLAP_MARKS:
        if n >= len(ordered[0].marks):
            continue
        parts = _by(ordered, lambda one, n=n: _mark(one, (n,)))  # type: ignore[misc]
        if not 1 < len(parts) <= len(ordered) / 2:
            continue
        ends = sorted((place[id(part[0])], place[id(part[-1])]) for part in parts.values())
        if any(following[0] < before[1] for before, following in pairwise(ends)):
            return sorted(parts.items(), key=_in_order)
    return []


def _places(ordered: Sequence[One], place: dict[int, float]) -> list[list[One]]:
    groups: list[list[One]] = []
    for one in ordered:
        if groups and place[id(one)] - place[id(groups[-1][0])] <= APART:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups
