"""The pure heart of the loop: compare what Label Studio holds with what is stored, and say what to do next."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from backend.facts import (
    SAMPLING,
    Label,
    LabelConfig,
    Live,
    Model,
    Round,
    Scan,
    round_of,
    validation_rows,
    version_name,
)
from backend.fingerprints import fingerprint
from backend.settings import ProjectSettings

ARM = 5  # labels of either kind below which choosing and chance are not compared


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
