"""The facts of one project, frozen, and `decide`: what is missing, and what to do first.

Nothing in here touches Label Studio, a disk or a clock. `decide` is called again after every
step that it asked for, so a step that was lost is simply asked for again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from backend.errors import NotSegmentable
from backend.settings import ProjectSettings

SAMPLING = "Uncertainty sampling"
VALIDATION_SHARE = 0.2
MOST_LABELS = 253  # of a segmenter: a mask is of bytes, and some of their values mean something else
ARM = 5  # labels of either kind below which choosing and chance are not compared
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
    wish     1: somebody wants it labelled next; -1: left out of the order
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
    wish: int = 0
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


@dataclass(frozen=True)
class Seen:
    """Label Studio's side of a project, as of the last look. `people`: how many annotate, as `annotators` counts."""

    project: int
    config: LabelConfig | None
    scans: tuple[Scan, ...]
    labels: tuple[Label, ...]
    live: Live
    blocked: str = ""
    people: int = 0


@dataclass(frozen=True)
class Done:
    """Our side: what has been computed and stored.

    settings  with the strategy written out as COLD+MODEL
    mapped    digests on the map, which is one of the settings' `unit`
    fitted    how many it was fitted on: images or volumes
    scored    digests of which the active model said all that the strategy wants to know
    compared  versions of models with which choosing and chance were compared
    served    tasks that were ever in an order, and whether as a control, in the last order that had them; empty
              while no comparison is due
    """

    settings: ProjectSettings
    embedder: str
    embedded: frozenset[str] = frozenset()
    mapped: frozenset[str] = frozenset()
    fitted: int = 0
    models: tuple[Model, ...] = ()
    active: str = ""
    scored: frozenset[str] = frozenset()
    rounds: tuple[Round, ...] = ()
    compared: frozenset[str] = frozenset()
    served: Mapping[int, bool] = field(default_factory=dict)
    asked: int = 0  # how many times a training was asked for and not yet done


@dataclass(frozen=True)
class Listen:
    """Have Label Studio tell us when something happens: the project's webhook, with our secret."""


@dataclass(frozen=True)
class ReadScans:
    """Fetch, decode and embed the images of these tasks."""

    tasks: tuple[int, ...]


@dataclass(frozen=True)
class ReadMasks:
    """Fetch and decode the annotations of these tasks."""

    tasks: tuple[int, ...]


@dataclass(frozen=True)
class FitMap:
    """Lay the whole pool out anew; `MapScans` only adds scans to the map there is."""


@dataclass(frozen=True)
class MapScans:
    tasks: tuple[int, ...]


@dataclass(frozen=True)
class OpenRound:
    """Rank the pool with `model` ("" for the cold start) and write the order down as round n."""

    n: int
    key: str
    model: str
    carried: tuple[int, ...] = ()


@dataclass(frozen=True)
class ExtendRound:
    """Append scans that arrived after the round was opened; what was published keeps its place."""

    tasks: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """Predict these scans with the active model and store how unsure it is of them."""

    tasks: tuple[int, ...]


@dataclass(frozen=True)
class Train:
    """Train version `version` on the labels of these tasks, and decide whether it becomes active."""

    version: str
    tasks: tuple[int, ...]


@dataclass(frozen=True)
class Publish:
    """Write to Label Studio what differs: `tasks` of the latest round first, then its settings."""

    tasks: tuple[int, ...] = ()
    settings: bool = False
    doubled: bool = False


@dataclass(frozen=True)
class CompareArms:
    """Train one model on labels of ours and one on as many controls, and judge both on the same scans.

    version     the model whose labels these are; nothing but its details is changed
    ours        tasks labelled first among those that were chosen
    control     as many tasks that were drawn at random
    validation  tasks that are held out of both
    """

    version: str
    ours: tuple[int, ...]
    control: tuple[int, ...]
    validation: tuple[int, ...]


Step = (
    Listen | ReadScans | ReadMasks | FitMap | MapScans | OpenRound | ExtendRound | Score | Train | Publish | CompareArms
)


@dataclass(frozen=True)
class Plan:
    """`phase` and `reason` for people; `steps`: what is missing, most urgent first."""

    phase: str
    reason: str = ""
    steps: tuple[Step, ...] = ()


def decide(seen: Seen, done: Done) -> Plan:
    """Compare what Label Studio holds with what is stored, and say what is missing.

    Only one step is meant to be run before asking again: the first, except that annotations need not be
    read twice in a row when something else waits (`next_step`). The answer depends on nothing but the arguments.
    """
    if seen.blocked or seen.config is None:
        return Plan("blocked", seen.blocked)
    plan = _decide(seen, seen.config, done)
    return plan if seen.live.webhook else replace(plan, steps=(Listen(), *plan.steps))


def next_step(plan: Plan, last: Step | None, refused: frozenset[type[Step]] = frozenset()) -> Step | None:
    """The step of a plan to run, after `last`; None when there is none besides those of a `refused` kind.

    Annotations come in as fast as they are read when many people label: having read some, we go on to what
    waits for them, or the training would be kept away for as long as anybody labels.
    """
    steps = [s for s in plan.steps if type(s) not in refused]
    if isinstance(last, ReadMasks) and steps and isinstance(steps[0], ReadMasks):
        steps = steps[1:] + steps[:1]
    return steps[0] if steps else None


def _decide(seen: Seen, config: LabelConfig, done: Done) -> Plan:
    if not seen.scans:
        return Plan("empty", "No scans yet. Import images into the project in Label Studio.")
    scans = [s for s in seen.scans if not s.problem]
    if not scans:
        return Plan("blocked", f"None of the {len(seen.scans)} scans can be read; see the list of problems.")

    steps: list[Step] = []
    unread = tuple(s.task for s in scans if not s.digest or s.digest not in done.embedded)
    if unread:
        steps.append(ReadScans(unread))
        if not done.rounds:
            return Plan("embedding", steps=tuple(steps))
    known = {label.task: label for label in seen.labels}
    ready = [s for s in scans if s.digest and s.digest in done.embedded]
    unread_masks = tuple(s.task for s in ready if s.annotated and s.task not in known)
    if unread_masks:
        steps.append(ReadMasks(unread_masks))
    unmapped = tuple(s.task for s in ready if s.digest not in done.mapped)
    if unmapped:
        size = len({s.whole for s in ready}) if done.settings.unit == "scan" else len(ready)
        most = 1.25 if not done.models and not known else 4  # a map of the few that somebody tried shows nothing
        steps.append(FitMap() if size > most * done.fitted else MapScans(unmapped))
        if not done.rounds:
            return Plan("embedding", steps=tuple(steps))

    latest = done.rounds[-1] if done.rounds else None
    usable = tuple(s.task for s in ready if s.annotated and s.task in known and not known[s.task].problem)
    train = _training(done, config, known, usable)
    if latest is not None and done.models and (round_of(done.models[-1].version) or 0) > latest.n:
        train = None  # the round of the last model comes first: labels that arrive meanwhile must not keep it away
    key = round_key(done, config, seen.scans)
    mapped = [s for s in ready if s.digest in done.mapped]
    pool = [s for s in mapped if not s.annotated and s.wish >= 0]

    if latest is None:
        steps.append(OpenRound(0, key, ""))
        return Plan("embedding", steps=tuple(steps))
    publish = publication(latest, seen, done.settings)
    if publish is not None:
        steps.insert(0, publish)
    stale = latest.key != key or latest.embedder not in ("", done.embedder)
    if train is None and stale:
        if done.active:
            steps += _scoring(pool, done)
        waiting = {s.task for s in pool}
        ahead = latest.order[: published_length(latest, seen, done.settings)]
        carried = tuple(t for t in ahead if t in waiting and t in seen.live.published)
        steps.append(OpenRound(next_round(done), key, done.active, carried))
    elif not stale:
        ordered = set(latest.order)
        late = [s for s in pool if s.task not in ordered]
        if late:
            if latest.model:
                steps += _scoring(pool, done)
            steps.append(ExtendRound(tuple(s.task for s in late)))
    if train is not None:
        steps.append(train)
    if not steps:  # nobody waits for it
        arms = _arms(done, config, ready, known)
        steps += [arms] if arms else []
    training = train is not None and not any(isinstance(s, OpenRound) for s in steps)
    return Plan(*_phase(done, scans, usable, training), steps=tuple(steps))


def _training(done: Done, config: LabelConfig, known: Mapping[int, Label], usable: tuple[int, ...]) -> Train | None:
    """The training that is due, if any."""
    if not usable:
        return None
    keys = {known[task].key for task in usable}
    last = done.models[-1] if done.models else None
    due = done.asked > 0
    if done.settings.retrain == "auto":
        if last is None:
            due = due or len(usable) >= done.settings.cold_start_size
        else:
            changed = len(keys - last.trained_on)
            new_labels = last.labels != config.labels and len(usable) >= done.settings.cold_start_size
            due = due or changed >= done.settings.round_size or new_labels
    if last is not None and last.trained_on == keys and last.labels == config.labels:
        return None  # the very same labels: training again would give the very same model
    return Train(version_name(next_round(done)), usable) if due else None


def _arms(done: Done, config: LabelConfig, ready: Sequence[Scan], known: Mapping[int, Label]) -> CompareArms | None:
    """The comparison of our order with chance that is due for the newest model, if any."""
    if not done.settings.control_share or not done.models:
        return None
    last = done.models[-1]
    if last.version in done.compared or last.labels != config.labels:
        return None
    used = [s for s in ready if s.annotated and s.task in known and known[s.task].key in last.trained_on]
    used = sorted((s for s in used if not known[s.task].problem), key=lambda s: (known[s.task].annotation, s.task))
    held = validation_rows([s.digest for s in used], [s.group for s in used])
    learn = [s.task for i, s in enumerate(used) if i not in held]
    ours = [task for task in learn if done.served.get(task) is False]
    control = [task for task in learn if done.served.get(task)]
    count = min(len(ours), len(control))
    if not held or count < ARM:
        return None
    validation = tuple(s.task for i, s in enumerate(used) if i in held)
    return CompareArms(last.version, tuple(ours[:count]), tuple(control[:count]), validation)


def _scoring(scans: list[Scan], done: Done) -> list[Step]:
    unscored = tuple(s.task for s in scans if s.digest not in done.scored)
    return [Score(unscored)] if unscored else []


def next_round(done: Done) -> int:
    """The number of the round that would be opened next.

    A model carries the number of the round it was trained for; until that round is open, it is next.
    """
    opened = done.rounds[-1].n + 1 if done.rounds else 0
    trained = (round_of(done.models[-1].version) or 0) if done.models else 0
    return max(opened, trained, 1)


def round_key(done: Done, config: LabelConfig, scans: Sequence[Scan] = ()) -> str:
    """A round is opened whenever this changes: another model, another training, other settings, other wishes.

    Only what the order at hand depends on is in it, and what is at its default is left out, so that neither a
    setting of the other moment nor one that a newer version brings opens a round.
    """
    settings = done.settings
    cold, ranked = settings.moments
    more: dict[str, Any] = {"control_share": settings.control_share} if settings.control_share else {}
    if settings.unit != "slice" and any(s.volume for s in scans):  # else every scan is a whole one
        more["unit"] = settings.unit
    if wishes := sorted([s.task, s.wish] for s in scans if s.wish):  # of labelled ones too: a label opens no round
        more["wishes"] = wishes
    if not done.models:
        if cold == "stratified":
            more["stratify_by"] = settings.stratify_by
        return fingerprint(cold, *([more] if more else []))
    if settings.uncertainty != "image":
        more["uncertainty"] = settings.uncertainty
    trained = done.models[-1].version
    alpha = settings.alpha if ranked == "paper" else ProjectSettings.alpha  # the others do not ask for it
    return fingerprint(done.active, trained, config.key, alpha, ranked, *([more] if more else []))


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


def prefix_length(
    order: Sequence[int],
    open_tasks: frozenset[int],
    settings: ProjectSettings,
    people: int = 0,
    siblings: Callable[[int], Container[int]] | None = None,
) -> int:
    """How much of an order must be published so that annotators do not run out of it.

    The first `depth` tasks; then, whenever fewer than `round_size` of what was published, or
    than two for each of the `people` who annotate, are still open, the next block: everybody
    holds one, and Label Studio says "no more tasks" when all others are held. A function of
    what is labelled alone, not of when we looked, so that a restart publishes what an
    undisturbed run would have.

    siblings  the tasks of the volume that a task is of. Where whole scans are chosen, the end
              moves on to that of the volume it would lie in
    """
    length = _blocks_length(order, open_tasks, settings, people)
    if siblings is None or settings.unit != "scan" or not 0 < length < len(order):
        return length
    same = siblings(order[length - 1])
    while length < len(order) and order[length] in same:
        length += 1
    return length


def _blocks_length(order: Sequence[int], open_tasks: frozenset[int], settings: ProjectSettings, people: int) -> int:
    enough = max(settings.round_size, 2 * people)
    block = max(settings.depth - settings.round_size, settings.round_size)
    length, left, at = settings.depth, 0, 0
    for at, task in enumerate(order, start=1):
        if at > length:
            if left >= enough:
                return length
            length += block
        left += task in open_tasks
    return at


def score_of(place: int, size: int) -> float:
    """What Label Studio sorts by, ascending: place / (size + 1), in 0..1.

    place  1 for the first; scans that came after the round was opened stand behind `size`
    """
    if place <= size:
        return place / (size + 1)
    late = place - size
    return (size + late / (late + 1)) / (size + 1)


def published_length(latest: Round, seen: Seen, settings: ProjectSettings) -> int:
    """`prefix_length` of a round as things stand: skipped scans are not counted as still open."""
    open_ = (s for s in seen.scans if s.digest and not s.annotated and not s.problem and s.wish >= 0)
    waiting = (s.task for s in open_ if not s.skipped)

    def siblings(task: int) -> Container[int]:
        volume = next((s.volume for s in seen.scans if s.task == task), "")
        return {s.task for s in seen.scans if s.volume == volume} if volume else {task}

    return prefix_length(latest.order, frozenset(waiting), settings, seen.people, siblings)


def publication(latest: Round, seen: Seen, settings: ProjectSettings) -> Publish | None:
    """What Label Studio lacks of the latest round; None when it shows just that."""
    live = seen.live
    open_ = (s for s in seen.scans if s.digest and not s.annotated and not s.problem)
    unlabelled = {s.task for s in open_ if s.wish >= 0}  # left out while a training keeps the next round away
    length = published_length(latest, seen, settings)
    wanted = [t for t in latest.order[:length] if t in unlabelled]
    behind = set(latest.order[length:])
    wanted += [t for t in latest.carried if t in unlabelled and t in behind]
    tasks = tuple(t for t in wanted if not live.published.get(t))
    shown = bool(tasks) or bool(live.published)
    differs = shown and (
        live.model_version != latest.version or live.sampling != SAMPLING or not live.show_predictions or not live.view
    )
    doubled = any(count > 1 for count in live.published.values())
    if tasks or differs or doubled:
        return Publish(tasks, differs, doubled)
    return None


def _phase(done: Done, scans: list[Scan], usable: tuple[int, ...], training: bool) -> tuple[str, str]:
    if training:
        return "training", f"Training on {len(usable)} labelled scans."
    if all(s.annotated for s in scans):
        return "done", "Every scan is labelled."
    if all(s.annotated or s.wish < 0 for s in scans):
        out = sum(1 for s in scans if not s.annotated)
        return "done", f"Every scan is labelled but the {out} that somebody left out of the order."
    if done.active:
        return "active", ""
    size = done.settings.cold_start_size
    if done.settings.retrain == "button":
        return "cold_start", 'The first model is trained when somebody presses "Start Training".'
    return "cold_start", f"{len(usable)} of {size} labels before the first model is trained."


def fingerprint(*parts: Any) -> str:
    """A short name for `parts` (JSON values): equal parts, equal name, on every machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
