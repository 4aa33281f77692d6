"""The facts of one project, frozen: scans, labels, models and rounds. Nothing here uses the disk or the clock."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

SAMPLING = "Uncertainty sampling"
VALIDATION_SHARE = 0.2
MOST_HELD_OUT = 200  # the more are judged, the longer each round takes; these tell the mean Dice to 0.03 or better
RECENT = 100  # number of newest annotations whose authors count as current annotators
SECRET_HEADER = "X-Scanqueue-Secret"  # webhook header that Label Studio sends and we require
DISCONNECTED, DELETED = "disconnected", "deleted"  # phases in which nothing is done for a project
PENDING = "scanqueue-pending"  # version of predictions outside any round, which never count as published


IMPORTED_MASKS = "imported-masks"  # model version of the masks that `scanqueue import --as predictions` brought


def version_name(n: int) -> str:
    """The version string of round n, as Label Studio stores it with every prediction."""
    return f"scanqueue-r{n}"


def round_of(version: str) -> int | None:
    """The round of a version string; None when the version is not one of ours."""
    tail = version.removeprefix("scanqueue-r")
    return int(tail) if tail != version and tail.isascii() and tail.isdigit() else None


def origin_of(version: str, model: str) -> str:
    """What a predicted mask comes from: the round of that version, and the fingerprint of the model that drew it."""
    return f"{version}:{model}"


class Stage(IntEnum):
    """How far a scan has come; each stage includes the ones before it.

    UNREAD    its image must be fetched, decoded and embedded
    EMBEDDED  its embedding is stored
    MAPPED    it is on the map
    SCORED    the uncertainties of the active model that the strategy needs are stored
    ORDERED   the latest round has considered it
    """

    UNREAD = 0
    EMBEDDED = 1
    MAPPED = 2
    SCORED = 3
    ORDERED = 4


@dataclass(frozen=True, slots=True)
class Scan:
    """One task. `digest` identifies its image once it is read; `problem` says why it could not be read.

    stratum  the value of the key `stratify_by` in its data
    priority 1: label next; -1: excluded from the order
    volume   the volume it is a slice of; "": a single image
    slice    its number along the slicing axis of the volume
    patient  "": unknown
    spacing  millimetres between rows and between columns; None: unknown
    blank    all pixels are equal, so there is nothing to see
    stage    how far it has come
    draw     its place in a random order that never changes
    """

    task: int
    image: str
    digest: str = ""
    annotated: bool = False
    skipped: bool = False
    problem: str = ""
    stratum: str = ""
    priority: int = 0
    volume: str = ""
    slice: int = 0
    patient: str = ""
    spacing: tuple[float, float] | None = None
    blank: bool = False
    stage: Stage = Stage.UNREAD
    draw: int = 0

    @property
    def group(self) -> str:
        """The group, which is never split between training and validation; "" if unknown."""
        return self.patient or self.volume

    @property
    def whole(self) -> str:
        """Scans with the same value share a place on a map of whole scans: same volume, or same file."""
        return self.volume or self.digest


@dataclass(frozen=True)
class Counts:
    """Numbers of a project's scans. Readable ones have no problem, open ones are readable and not labelled.

    unmapped  those at the stage EMBEDDED
    mapped, scored, ordered  open ones at these stages, without those left out
    left_out  open ones that are excluded from the order
    skipped   open ones that annotators skipped, without those left out
    places    embedded ones; with the unit "scan", different volumes and files among them (`Scan.whole`)
    volumes, groups, strata  whether any scan belongs to a volume, to a patient or volume, has a stratum
    """

    scans: int = 0
    unreadable: int = 0
    unread: int = 0
    unmapped: int = 0
    mapped: int = 0
    scored: int = 0
    ordered: int = 0
    open: int = 0
    left_out: int = 0
    skipped: int = 0
    places: int = 0
    volumes: bool = False
    groups: bool = False
    strata: bool = False

    @property
    def embedded(self) -> int:
        """Readable ones with an embedding."""
        return self.scans - self.unreadable - self.unread

    @classmethod
    def of(cls, scans: Collection[Scan], unit: str = "slice") -> Counts:
        """The same numbers, counted one by one."""
        readable = [s for s in scans if not s.problem]
        embedded = [s for s in readable if s.stage >= Stage.EMBEDDED]
        open_ = [s for s in readable if not s.annotated]
        return cls(
            scans=len(scans),
            unreadable=len(scans) - len(readable),
            unread=len(readable) - len(embedded),
            unmapped=sum(s.stage == Stage.EMBEDDED for s in readable),
            mapped=sum(s.stage == Stage.MAPPED for s in open_ if s.priority >= 0),
            scored=sum(s.stage == Stage.SCORED for s in open_ if s.priority >= 0),
            ordered=sum(s.stage == Stage.ORDERED for s in open_ if s.priority >= 0),
            open=len(open_),
            left_out=sum(s.priority < 0 for s in open_),
            skipped=sum(s.skipped and s.priority >= 0 for s in open_),
            places=len({s.whole for s in embedded}) if unit == "scan" else len(embedded),
            volumes=any(s.volume for s in scans),
            groups=any(s.group for s in scans),
            strata=any(s.stratum for s in scans),
        )


@dataclass(frozen=True)
class Label:
    """The annotation that counts for a task. `key` changes with every edit; newer annotations have higher numbers.

    mask     the name of its mask, which depends on the mask's pixels alone
    unknown  class numbers of the labels that its annotator could not draw, ascending
    """

    task: int
    key: str
    problem: str = ""
    annotation: int = 0
    mask: str = ""
    unknown: tuple[int, ...] = ()


class Lesson(NamedTuple):
    """One labelled scan as a model was given it: which task, pixels, mask, patient or volume, and unknown labels."""

    task: int
    digest: str
    mask: str
    group: str = ""
    unknown: tuple[int, ...] = ()

    @classmethod
    def of(cls, scan: Scan, mask: str, unknown: Iterable[int] = ()) -> Lesson:
        return cls(scan.task, scan.digest, mask, scan.group, tuple(sorted(unknown)))

    @classmethod
    def recorded(cls, entry: str | list[Any]) -> Lesson | str:
        """As it was recorded: older versions recorded no unknown labels, still older ones the key of the annotation."""
        if isinstance(entry, str):
            return entry
        task, digest, mask, group, *more = entry
        return cls(task, digest, mask, group, tuple(more[0]) if more else ())


@dataclass(frozen=True)
class Model:
    """One trained model; its version is that of the round it was trained for.

    trained_on  what it was given, held-out scans included
    held_out    tasks of the held-out scans
    recipe      fingerprint of the training settings and the seed; "": not recorded
    """

    version: str
    labels: tuple[str, ...]
    trained_on: frozenset[Lesson | str]
    fingerprint: str
    accepted: bool
    held_out: frozenset[int] = frozenset()
    recipe: str = ""

    def had(self, lesson: Lesson, key: str) -> bool:
        """Whether the model was given this labelled scan, whose annotation has this key."""
        return lesson in self.trained_on or key in self.trained_on


@dataclass(frozen=True)
class Round:
    """One published order.

    carried   tasks of the previous round that annotators may still have open
    reach     number of places that have been published at least
    embedder  the embedder of the map it was ranked on; "": not recorded
    """

    n: int
    key: str
    model: str
    order: tuple[int, ...]
    carried: tuple[int, ...] = ()
    embedder: str = ""
    reach: int = 0

    @property
    def version(self) -> str:
        return version_name(self.n)


@dataclass(frozen=True)
class Live:
    """What Label Studio shows annotators now.

    published        number of the latest round's predictions per task
    ignores_skipped  a skipped task is served to nobody again
    """

    model_version: str = ""
    sampling: str = ""
    show_predictions: bool = False
    published: Mapping[int, int] = field(default_factory=dict)
    webhook: bool = False
    view: bool = False
    ignores_skipped: bool = False


def annotators(labels: Iterable[tuple[int, int | None]]) -> int:
    """The number of current annotators: the authors of the newest annotations, given as (number, author)."""
    newest = sorted(labels, key=lambda label: -label[0])[:RECENT]
    return len({author for _, author in newest if author is not None})


def control_draw(scan: Scan, seed: int, unit: str = "slice") -> tuple[str, int]:
    """The sort key for drawing scans at random: stable, and dependent on nothing but the scan and the seed.

    unit  with "scan", all slices of a volume have the same draw
    """
    name = scan.whole if unit == "scan" else scan.digest
    return hashlib.sha256(f"control|{seed}|{name}".encode()).hexdigest(), scan.task


def validation_rows(
    digests: Sequence[str],
    groups: Sequence[str] | None = None,
    shown: Sequence[Collection[int]] | None = None,
    learnt: Collection[int] = (),
) -> set[int]:
    """Rows to hold out for validation: round(0.2 n) of n, at most MOST_HELD_OUT, or as near as whole units allow, drawn
    by a hash.

    groups  per row, the group that must not be split, such as the patient; "": a single row. None: all single rows
    shown   per row, the labels that its mask has
    learnt  rows that the active model has learnt from; they are drawn last, so that it can be judged on the others

    A unit is a group, or all single rows of one digest. Rows of the same digest in different groups (an empty slice
    looks the same in everybody) each follow their own group. Units are drawn in the order of the hash of their name.
    First, each label that at least two units have gets a held-out one, rare labels first; then the quota is filled. A
    unit is passed over if it overshoots the quota by more than it fell short, or if no other is left to learn one of
    its labels from.

    Fewer than five rows: none is held out. Otherwise at least one unit is, if there is one of at most half of the rows
    that is not needed for learning.
    """
    n = len(digests)
    if n < 5:
        return set()
    names = groups if groups is not None else [""] * n
    units: dict[tuple[bool, str], list[int]] = {}  # (whether it is a group, what it is)
    for i, (digest, name) in enumerate(zip(digests, names, strict=True)):
        units.setdefault((bool(name), name or digest), []).append(i)
    has = {one: {label for i in rows for label in shown[i]} if shown else {0} for one, rows in units.items()}
    last = {one for one, rows in units.items() if not set(rows).isdisjoint(learnt)}
    ranked = sorted(units, key=lambda one: (one in last, _share(one[1]), one))
    left = Counter(label for one in units for label in has[one])  # number of units to learn each label from
    quota, held, covered = min(round(VALIDATION_SHARE * n), MOST_HELD_OUT), set[int](), set[int]()

    def draw(limit: float, label: int | None = None) -> None:
        for one in ranked:
            if label in covered or len(held) >= quota:
                return
            rows, labels = units[one], has[one]
            fits = len(held) + len(rows) / 2 <= limit and all(left[other] > 1 for other in labels)
            if fits and held.isdisjoint(rows) and (label is None or label in labels):
                held.update(rows)
                covered.update(labels)
                left.subtract(labels)

    for label in sorted(left, key=lambda label: (left[label], label)) if shown else ():
        draw(quota, label)
    draw(quota)
    if not held:  # all units are large: the first one of at most half
        draw(n / 4)
    return held


def _share(name: str) -> float:
    """A pseudo-random number in 0..1 that depends on the name only."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


def score_of(place: int, size: int) -> float:
    """The score that Label Studio sorts by, ascending: place / (size + 1), in 0..1.

    place  from 1; scans that arrived after the round was opened have places behind `size`
    """
    if place <= size:
        return place / (size + 1)
    late = place - size
    return (size + late / (late + 1)) / (size + 1)
