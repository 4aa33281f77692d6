"""The facts of one project, frozen: scans, labels, models and rounds. Nothing here uses the disk or the clock."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

SAMPLING = "Uncertainty sampling"
VALIDATION_SHARE = 0.2
RECENT = 100  # number of newest annotations whose authors count as current annotators
SECRET_HEADER = "X-Scanqueue-Secret"  # webhook header that Label Studio sends and we require
DISCONNECTED, DELETED = "disconnected", "deleted"  # phases in which nothing is done for a project
PENDING = "scanqueue-pending"  # version of predictions outside any round, which never count as published


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


@dataclass(frozen=True)
class Scan:
    """One task. `digest` identifies its image once it is read; `problem` says why it could not be read.

    stratum  the value of the key `stratify_by` in its data
    priority 1: label next; -1: excluded from the order
    volume   the volume it is a slice of; "": a single image
    slice    its number along the slicing axis of the volume
    patient  "": unknown
    spacing  millimetres between rows and between columns; None: unknown
    blank    all pixels are equal, so there is nothing to see
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

    @property
    def group(self) -> str:
        """The group, which is never split between training and validation; "" if unknown."""
        return self.patient or self.volume

    @property
    def whole(self) -> str:
        """Scans with the same value share a place on a map of whole scans: same volume, or same file."""
        return self.volume or self.digest


@dataclass(frozen=True)
class Label:
    """The annotation that counts for a task. `key` changes with every edit; newer annotations have higher numbers."""

    task: int
    key: str
    problem: str = ""
    annotation: int = 0


@dataclass(frozen=True)
class Model:
    """One trained model; its version is that of the round it was trained for."""

    version: str
    labels: tuple[str, ...]
    trained_on: frozenset[str]
    fingerprint: str
    accepted: bool


@dataclass(frozen=True)
class Round:
    """One published order.

    carried   tasks of the previous round that annotators may still have open
    embedder  the embedder of the map it was ranked on; "": not recorded
    """

    n: int
    key: str
    model: str
    order: tuple[int, ...]
    carried: tuple[int, ...] = ()
    embedder: str = ""

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


def validation_rows(digests: Sequence[str], groups: Sequence[str] | None = None) -> set[int]:
    """Rows to hold out for validation: about a fifth, chosen by a hash, so that a row is always held out or never.

    groups  per row, the group that must not be split, such as the patient; "": a single row. None: all single rows

    Single rows are drawn by the hash of their digest, together with all rows of the same digest; the rows of a group by
    the hash of its name. Rows of the same digest in different groups (an empty slice looks the same in everybody) each
    follow their own group.

    Fewer than five rows: none is held out. Otherwise at least one is, unless all rows belong to one group or share one
    digest, and never more than half: the units with the highest hashes are returned, groups before single rows. If
    nothing is left or nothing was drawn, the unit with the lowest hash that is not too large is held out.
    """
    if len(digests) < 5:
        return set()
    names = groups if groups is not None else [""] * len(digests)
    units: dict[tuple[bool, str], list[int]] = {}  # (whether it is a group, what it is)
    for i, (digest, name) in enumerate(zip(digests, names, strict=True)):
        units.setdefault((bool(name), name or digest), []).append(i)
    if len(units) == 1:
        return set()
    draw = {one: _share(one[1]) for one in units}
    ranked = sorted(units, key=lambda one: (one[0], draw[one], one[1]))  # groups last, highest last
    held = [one for one in ranked if draw[one] < VALIDATION_SHARE]
    while 2 * sum(len(units[one]) for one in held) > len(digests):
        held.pop()
    if not held:
        small = [one for one in ranked if 2 * len(units[one]) <= len(digests)]
        held = [min(small, key=lambda one: (draw[one], one[0]))]
    return {i for one in held for i in units[one]}


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
