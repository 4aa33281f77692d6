"""The pure heart of the loop: compare what Label Studio holds with what is stored, and say what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from backend.facts import (
    Label,
    LabelConfig,
    Scan,
    round_of,
    validation_rows,
    version_name,
)
from backend.fingerprints import fingerprint
from backend.loop.publication import part_of_round, publication
from backend.loop.steps import (
    CompareWithControl,
    Done,
    ExtendRound,
    FitMap,
    Listen,
    MapScans,
    OpenRound,
    Plan,
    ReadMasks,
    ReadScans,
    Score,
    Seen,
    Step,
    Train,
)
from backend.settings import ProjectSettings

MIN_CONTROL_LABELS = 5  # labels of either kind below which choosing and chance are not compared


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
    pool = [s for s in mapped if not s.annotated and s.priority >= 0]

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
        ahead = latest.order[: part_of_round(latest, seen, done.settings)[0]]
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
        arms = _control_comparison(done, config, ready, known)
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


def _control_comparison(
    done: Done, config: LabelConfig, ready: Sequence[Scan], known: Mapping[int, Label]
) -> CompareWithControl | None:
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
    if not held or count < MIN_CONTROL_LABELS:
        return None
    validation = tuple(s.task for i, s in enumerate(used) if i in held)
    return CompareWithControl(last.version, tuple(ours[:count]), tuple(control[:count]), validation)


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
    if wishes := sorted(
        [s.task, s.priority] for s in scans if s.priority
    ):  # of labelled ones too: a label opens no round
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


def _phase(done: Done, scans: list[Scan], usable: tuple[int, ...], training: bool) -> tuple[str, str]:
    if training:
        return "training", f"Training on {len(usable)} labelled scans."
    if all(s.annotated for s in scans):
        return "done", "Every scan is labelled."
    if all(s.annotated or s.priority < 0 for s in scans):
        out = sum(1 for s in scans if not s.annotated)
        return "done", f"Every scan is labelled but the {out} that somebody left out of the order."
    if done.active:
        return "active", ""
    size = done.settings.cold_start_size
    if done.settings.retrain == "button":
        return "cold_start", 'The first model is trained when somebody presses "Start Training".'
    return "cold_start", f"{len(usable)} of {size} labels before the first model is trained."
