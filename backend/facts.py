"""The facts of one project, frozen: scans, labels, models and rounds. Nothing here touches a disk or a clock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backend.errors import NotSegmentable
from backend.fingerprints import fingerprint

SAMPLING = "Uncertainty sampling"
VALIDATION_SHARE = 0.2
MOST_LABELS = 253  # of a segmenter: a mask is of bytes, and some of their values mean something else
RECENT = 100  # newest annotations whose authors count as annotators of today
DRAWING_TAGS = {"BrushLabels": "brush", "PolygonLabels": "polygon"}


SECRET_HEADER = "X-Scanqueue-Secret"  # of the webhook: Label Studio sends it, we ask for it
PENDING = "scanqueue-pending"  # of an answer that is no round's: stored by Label Studio, never taken for published


def version_name(n: int) -> str:
    """The version string of round n, as Label Studio stores it with every prediction."""
    return f"scanqueue-r{n}"


def round_of(version: str) -> int | None:
    """The round that a version string belongs to; None when the string is not one of ours."""
    tail = version.removeprefix("scanqueue-r")
    return int(tail) if tail != version and tail.isascii() and tail.isdigit() else None


@dataclass(frozen=True)
class Tag:
    """One control tag that draws masks: `<BrushLabels name= toName=>` or `<PolygonLabels ...>`."""

    name: str
    kind: str  # "brush" or "polygon"
    to_name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class LabelConfig:
    """What masks are drawn on (`image_key` of the task's data) and with (`tags`)."""

    image_key: str
    tags: tuple[Tag, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label once, in the order of the config; class i + 1 of a mask is labels[i]."""
        return tuple(dict.fromkeys(label for tag in self.tags for label in tag.labels))

    def tag_of(self, label: str) -> Tag:
        """The tag our own masks of `label` are drawn with: a brush if there is one."""
        return next(tag for tag in self.tags if label in tag.labels)

    @property
    def key(self) -> str:
        """Changes whenever anything changes that a mask or its encoding depends on."""
        return fingerprint(self.to_json())

    def to_json(self) -> str:
        return json.dumps([self.image_key, [[t.name, t.kind, t.to_name, t.labels] for t in self.tags]])

    @classmethod
    def from_json(cls, text: str) -> LabelConfig | None:
        """What `to_json` wrote; None for the empty text."""
        if not text:
            return None
        image_key, tags = json.loads(text)
        return cls(image_key, tuple(Tag(n, kind, to, tuple(labels)) for n, kind, to, labels in tags))

    @classmethod
    def from_parsed(cls, parsed: Mapping[str, Any], project: int) -> LabelConfig:
        """Read Label Studio's own `parsed_label_config`.

        Raises NotSegmentable, saying what to add where, when no mask can be drawn on an image.
        """
        where = "in Settings > Labeling Interface > Code"
        found: list[tuple[str, Tag]] = []
        for name, tag in parsed.items():
            kind = DRAWING_TAGS.get(tag.get("type", ""))
            if kind is None:
                continue
            images = [i for i in tag.get("inputs", ()) if i.get("type") == "Image" and i.get("value")]
            labels = tuple(tag.get("labels") or ())
            if images and labels:
                found.append((images[0]["value"], Tag(name, kind, tag["to_name"][0], labels)))
        if not found:
            drawing = [name for name, tag in parsed.items() if tag.get("type") in DRAWING_TAGS]
            if drawing:
                raise NotSegmentable(
                    f"project {project}: {drawing[0]!r} of the label config has no labels or does not point "
                    f'at an image. Give it at least one <Label value="..."/> and the toName of an '
                    f'<Image name="image" value="$image"/> {where}.'
                )
            raise NotSegmentable(
                f"project {project}: the label config has no BrushLabels or PolygonLabels; segmentation "
                f'needs one. Add <BrushLabels name="tag" toName="image"><Label value="Lung"/></BrushLabels> '
                f'beside <Image name="image" value="$image"/> {where}.'
            )
        image_key, first = found[0]
        tags = [tag for key, tag in found if key == image_key and tag.to_name == first.to_name]
        tags.sort(key=lambda tag: tag.kind != "brush")  # stable: brushes first
        config = cls(image_key, tuple(tags))
        if len(config.labels) > MOST_LABELS:
            raise NotSegmentable(
                f"project {project}: the label config has {len(config.labels)} labels for masks; a model can learn "
                f"{MOST_LABELS} at most. Take some out {where}."
            )
        return config


@dataclass(frozen=True)
class Scan:
    """One task. `digest` names its pixels once they were read; `problem` says why they were not.

    stratum  what its data says under the key `stratify_by`
    priority 1: to be labelled next; -1: left out of the order
    volume   of what it is a slice; "": it stands for itself
    slice    its number along the cut of the volume
    patient  whose it is; "": not known
    spacing  millimetres between its rows and between its columns; None: not known
    blank    all of its pixels are alike, so there is nothing to see on it
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
        """What is never split between training and validation; "" when nothing is known that it shares with others."""
        return self.patient or self.volume

    @property
    def whole(self) -> str:
        """What it shares a place with on a map of whole scans: its volume, or whatever has the very same pixels."""
        return self.volume or self.digest


@dataclass(frozen=True)
class Label:
    """The annotation that counts for one task. `key` changes when it is edited; `annotation` grows with time."""

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
    """One published order. `carried`: tasks of the round before that somebody may still hold.

    embedder  whose map it was drawn from; empty: nobody wrote it down
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
    """What Label Studio shows annotators now. `published` counts predictions of the latest round per task."""

    model_version: str = ""
    sampling: str = ""
    show_predictions: bool = False
    published: Mapping[int, int] = field(default_factory=dict)
    webhook: bool = False
    view: bool = False


def annotators(labels: Iterable[tuple[int, int | None]]) -> int:
    """How many people annotate: authors of the newest annotations, given as (number, author)."""
    newest = sorted(labels, key=lambda label: -label[0])[:RECENT]
    return len({author for _, author in newest if author is not None})


def control_draw(scan: Scan, seed: int, unit: str = "slice") -> tuple[str, int]:
    """What scans are sorted by to be drawn at random: independent of everything but the seed, and stable.

    unit  "scan": all slices of a volume have the same draw
    """
    name = scan.whole if unit == "scan" else scan.digest
    return hashlib.sha256(f"control|{seed}|{name}".encode()).hexdigest(), scan.task


def validation_rows(digests: Sequence[str], groups: Sequence[str] | None = None) -> set[int]:
    """Rows that are held out: about a fifth, by a hash, so that a row is always held out or never.

    groups  of every row what it may not be parted from, such as the patient; "": it stands for itself. None: all do

    A row that stands for itself is drawn by the hash of its digest, with all that have the same; all rows of a group by
    that of the group's name. Below five rows none is held out; from five on at least one, that with the lowest hash. It
    is never more than half of the rows: what is of the highest hash goes back, groups before single rows, and when that
    leaves nothing, or nothing is drawn, what has the lowest hash and is not too large is held out. Nothing is when all
    rows are of one group, or of one picture. Rows with the same digest in different groups (an empty slice looks alike
    in everybody) follow each its own.
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
    """A number in 0..1 that looks random and is always the same for a name."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


def score_of(place: int, size: int) -> float:
    """What Label Studio sorts by, ascending: place / (size + 1), in 0..1.

    place  1 for the first; scans that came after the round was opened stand behind `size`
    """
    if place <= size:
        return place / (size + 1)
    late = place - size
    return (size + late / (late + 1)) / (size + 1)
