"""The pure heart of the loop: compare what Label Studio contains with what is stored, and plan the next steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from backend.facts import DISCONNECTED, Counts, Label, Lesson, Round, Scan, Stage, round_of, version_name
from backend.fingerprints import fingerprint
from backend.label_config import LabelConfig
from backend.loop.publication import FIRST_SCANS, all_at_once, first_scans, part_of_round, publication, quick_reach
from backend.loop.steps import (
    POOL_GROWTH,
    CompareWithControl,
    Done,
    DrawQuickly,
    ExtendRound,
    FitMap,
    Listen,
    ListTasks,
    MapScans,
    OpenRound,
    Plan,
    Publish,
    ReadMasks,
    ReadScans,
    Score,
    Seen,
    Step,
    Train,
)
from backend.settings import ProjectSettings
from sampling import GROUPED, evenly_spread

MIN_CONTROL_LABELS = 5  # minimum number of labels in each arm for a comparison with the control
MOST_QUICK_LABELS = 64  # maximum number of labels that the quick model learns from
NO_SCANS = Counts()
FIRST_GROWTH = 1.25  # the same before the first label: a map fitted on a few test scans shows nothing


def decide(seen: Seen, done: Done) -> Plan:
    """Compare what Label Studio contains with what is stored, and return the missing steps.

    Callers do one step (see `next_step`), then observe and decide again. The result depends only on the arguments.
    """
    if seen.disconnected:
        return Plan(DISCONNECTED, seen.disconnected)
    if seen.blocked or seen.config is None:
        return Plan("blocked", seen.blocked)
    plan = waiting_for_labels(seen, seen.config) or _decide(seen, seen.config, done)
    return plan if seen.live.webhook else replace(plan, steps=(Listen(), *plan.steps))


def waiting_for_labels(seen: Seen, config: LabelConfig) -> Plan | None:
    """While annotations have labels that are gone from the config, or may have, and nobody has said why, only
    annotations are read."""
    gone = [name for name in seen.renames.seen if name not in config.labels and name not in seen.renames.now]
    known = {label.task for label in seen.labels}
    unread = tuple(s.task for s in seen.scans if s.annotated and s.digest and not s.problem and s.task not in known)
    if not gone or not (seen.lost or seen.outdated.intersection(unread)):
        return None
    names = ", ".join(f"{label!r} ({count} annotations)" for label, count in seen.lost.items())
    reason = (
        f"The label config no longer has {names}. Nothing is trained or published until somebody says whether a label "
        "was renamed or is no longer used: on the page, or with scanqueue labels. Or add the label again."
        if names
        else "The label config has changed, and the annotations are read again."
    )
    return Plan("blocked", reason, (*((ReadMasks(unread),) if unread else ()), *_listing(seen)))


def _listing(seen: Seen) -> list[ListTasks]:
    return [] if seen.listed_to is None else [ListTasks(seen.listed_to)]


def next_step(plan: Plan, last: Step | None, refused: frozenset[type[Step]] = frozenset()) -> Step | None:
    """The step of a plan to do after `last`; None when only steps of the `refused` kinds are left.

    Annotations are not read twice in a row while another step waits, and neither annotations nor the quick model come
    directly after the quick model: with many annotators, labels arrive as fast as they are read, and training would
    never start. Of the listing of all tasks, a part comes before each training.
    """
    steps = [s for s in plan.steps if type(s) not in refused]
    listing = (ListTasks,) if any(isinstance(s, Train) for s in steps) else ()
    eager: Any = {ReadMasks: (ReadMasks,), DrawQuickly: (ReadMasks, DrawQuickly), ListTasks: listing}
    patient = [s for s in steps if not isinstance(s, eager.get(type(last), ()))]
    return next(iter(patient or steps), None)


def _decide(seen: Seen, config: LabelConfig, done: Done) -> Plan:
    counts = seen.counts
    if not counts.scans:
        return Plan(
            "empty", "No scans yet. Import images into the project in Label Studio.", steps=tuple(_listing(seen))
        )
    if counts.scans == counts.unreadable:
        reason = f"None of the {counts.scans} scans can be read; see the list of problems."
        return Plan("blocked", reason, steps=tuple(_listing(seen)))
    known = {label.task: label for label in seen.labels}
    ready = _ready(seen)
    unread = [s for s in seen.scans if s.stage < Stage.EMBEDDED and not s.problem]
    latest = done.rounds[-1] if done.rounds else None
    started = latest is not None and not _of_another_embedder(latest, done)
    missing = 0 if started else _missing(done.settings, counts.embedded, counts.unread, first_scans(done.settings))
    steps: list[Step] = [ReadScans(_next(unread)[:missing])] if missing else _reading(seen, ready, known, done)
    if latest is None:
        if not any(isinstance(s, ReadScans | FitMap | MapScans) for s in steps):
            steps.append(OpenRound(done.first_round, round_key(done, config, seen.scans, counts), ""))
        return Plan("embedding", steps=tuple(steps))

    lessons = _lessons(ready, known)
    train = _training(done, config, lessons)
    if seen.unlisted_labels or any(s.annotated for s in unread):
        train = None  # it would learn from a part of the labels
    if done.models and (round_of(done.models[-1].version) or 0) > latest.n:
        train = None  # the round of the newest model comes first; new labels must not delay it
    given_up = done.no_training(len(lessons)) if train is not None else ""
    train = None if given_up else train
    steps += _ranking(seen, config, done, ready, train)
    first = not (done.active or latest.model)
    quick = _redrawing(seen, config, done, lessons, training=train is not None) if first else None
    if quick is not None:  # an annotator waits for it
        steps.insert(next((i for i, s in enumerate(steps) if not isinstance(s, ReadMasks)), len(steps)), quick)
    publish = publication(latest, seen, done.settings)
    if publish is not None:
        steps.insert(0, publish)
    steps += _listing(seen)  # a part of it before each training
    if train is not None:
        steps.append(train)
    wished = [s for s in unread if s.priority > 0 and not s.annotated]
    if wished:
        steps.insert(0, ReadScans(_next(wished)))
    elif unread and not missing:  # nobody waits for these, but a training for those with a label
        most = _goal(counts.embedded - counts.unmapped) - counts.embedded
        if all_at_once(done.settings, counts.embedded + counts.unread):
            most = len(unread)
        next_ones = _next([s for s in unread if s.annotated]) or _next(unread)[: max(0, most)]
        steps += [ReadScans(next_ones)] if next_ones else []
    if latest.model == done.active and not any(isinstance(s, Score) for s in steps):
        open_ = [s for s in ready if s.stage == Stage.MAPPED and not s.annotated and s.priority >= 0]
        most = max(0, _goal(counts.ordered) - counts.ordered - counts.scored)
        steps += _scoring(_next(open_)[:most]) if latest.model else []
    if not steps and (comparison := _control_comparison(done, config, lessons)):  # least urgent: nobody waits
        steps.append(comparison)
    training = train is not None and not any(isinstance(s, OpenRound) for s in steps)
    phase = _phase(seen, done, len(lessons), training)
    remarks = (done.no_quick_masks(len(lessons)) if first else "", done.small_map())
    return Plan(*phase, steps=tuple(steps), given_up=given_up, remarks=tuple(filter(None, remarks)))


def meanwhile(seen: Seen, done: Done) -> list[Publish | ReadMasks | DrawQuickly]:
    """The steps that cannot wait for the end of a long one, most urgent first.

    They are what the queue lacks and, before the first model, new annotations and the masks drawn from them.
    """
    config = seen.config
    if seen.blocked or config is None or not done.rounds:
        return []
    latest = done.rounds[-1]
    if done.first_round > latest.n or waiting_for_labels(seen, config):
        return []  # `decide` has something else to do first
    steps: list[Publish | ReadMasks | DrawQuickly] = []
    publish = publication(latest, seen, done.settings)
    if publish is not None and publish.tasks:
        steps.append(publish)
    if latest.model or done.settings.quick_model == "off":  # while a first model scores the pool, nothing else draws
        return steps
    ready = _ready(seen)
    known = {label.task: label for label in seen.labels}
    unread = tuple(s.task for s in ready if s.annotated and s.task not in known)
    if unread:
        steps.append(ReadMasks(unread))
    quick = _redrawing(seen, config, done, _lessons(ready, known), training=False)
    return steps if quick is None else [*steps, quick]


def _of_another_embedder(latest: Round, done: Done) -> bool:
    return latest.embedder not in ("", done.embedder)


def _next(scans: Sequence[Scan]) -> tuple[int, ...]:
    """Their tasks: those with priority, then the others in random order, so that any beginning represents the pool."""
    return tuple(s.task for s in sorted(scans, key=lambda s: (-s.priority, s.draw, s.task)))


def _goal(known: int) -> int:
    """The number of scans at which an order that knows so many is made anew, while there are more.

    It does not depend on when a look happens, so that the orders are the same after a kill.
    """
    goal = FIRST_SCANS
    while goal <= known:
        goal *= 2
    return goal


def _missing(settings: ProjectSettings, done: int, left: int, least: int) -> int:
    """The number of scans to work on before an order is made: all that are `left` of a small pool, else up to `least`.

    The first order of a large pool is made from a part of it, and is extended while the rest is worked on.
    """
    return left if all_at_once(settings, done + left) else min(left, max(0, least - done))


def _ready(seen: Seen) -> list[Scan]:
    """The embedded ones of the scans that are looked at."""
    return [s for s in seen.scans if s.stage >= Stage.EMBEDDED and not s.problem]


def _lessons(ready: Sequence[Scan], known: Mapping[int, Label]) -> dict[Lesson, Label]:
    """All that can be learnt from, with the annotation of each."""
    read = [(s, known[s.task]) for s in ready if s.annotated and s.task in known and not known[s.task].problem]
    return {Lesson.of(scan, label.mask, label.unknown): label for scan, label in read}


def _reading(seen: Seen, ready: Sequence[Scan], known: Mapping[int, Label], done: Done) -> list[Step]:
    """Annotations to read, and embedded scans to add to the map."""
    steps: list[Step] = []
    unread = tuple(s.task for s in ready if s.annotated and s.task not in known)
    if unread:
        steps.append(ReadMasks(unread))
    unmapped = tuple(s.task for s in ready if s.stage < Stage.MAPPED)
    counts = seen.counts
    mapped = counts.embedded - counts.unmapped
    first = not mapped or not done.rounds or _of_another_embedder(done.rounds[-1], done)
    wished = any(s.priority > 0 and s.stage < Stage.MAPPED for s in ready)
    enough = counts.embedded >= _goal(mapped) and not all_at_once(done.settings, counts.embedded + counts.unread)
    if unmapped and (first or wished or enough or not counts.unread):
        growth = POOL_GROWTH if done.models or known or counts.unread else FIRST_GROWTH
        steps.append(FitMap() if seen.counts.places > growth * done.fitted else MapScans(unmapped))
    return steps


def _ranking(seen: Seen, config: LabelConfig, done: Done, ready: Sequence[Scan], train: Train | None) -> list[Step]:
    """Open the next round when the latest is outdated and no training is due first, or extend the latest."""
    latest = done.rounds[-1]
    pool = [s for s in ready if s.stage >= Stage.MAPPED and not s.annotated and s.priority >= 0]
    unscored = _next([s for s in pool if s.stage < Stage.SCORED])
    key = round_key(done, config, seen.scans, seen.counts)
    foreign = done.first_round > latest.n  # Label Studio has another order than these records
    if foreign or latest.key != key or _of_another_embedder(latest, done):
        if train is not None:
            return []
        waiting = {s.task for s in pool}
        published = latest.order[: part_of_round(latest, seen, done.settings)[0]]
        carried = tuple(t for t in published if t in waiting and t in seen.live.published)
        scored = seen.counts.scored + seen.counts.ordered
        missing = _missing(done.settings, scored, len(unscored), FIRST_SCANS) if done.active else 0
        wished = {s.task for s in pool if s.priority > 0}
        held = {*carried, *wished}  # annotators may have these open, and somebody on the page waits for those
        first = [t for t in unscored if t in held] if done.active else []
        others = [t for t in unscored if t not in held][: max(0, missing - len(first))]
        return [*_scoring((*first, *others)), OpenRound(next_round(done), key, done.active, carried)]
    late = [s for s in pool if s.stage < Stage.ORDERED]
    if not late:
        return []
    many = bool(latest.model) and not all_at_once(done.settings, len(late))
    if many and unscored and seen.counts.scored + seen.counts.ordered < _goal(seen.counts.ordered):
        return []  # they are scored when there is nothing else to do
    scoring = _scoring(unscored) if latest.model and not many else []
    if scoring and seen.counts.mapped > len(unscored):
        return scoring  # there are more
    return [*scoring, ExtendRound(tuple(s.task for s in late if not many or s.stage >= Stage.SCORED))]


def _training(done: Done, config: LabelConfig, lessons: Mapping[Lesson, Label]) -> Train | None:
    """The due training, if any.

    lessons  all that can be learnt from, with the annotation of each
    """
    if not lessons:
        return None
    last = done.models[-1] if done.models else None
    due, auto = done.training_requests > 0, done.settings.retrain == "auto"
    enough = len(lessons) >= done.settings.cold_start_size
    if last is None:
        due = due or (auto and enough)
    else:
        kept = {lesson for lesson, label in lessons.items() if last.had(lesson, label.key)}
        tasks = {lesson.task for lesson in lessons}
        gone = sum(1 for one in last.trained_on if isinstance(one, Lesson) and one.task not in tasks)
        changed = len(lessons) - len(kept) + gone
        new_labels = last.labels != config.labels
        due = due or (auto and (changed >= done.settings.round_size or (new_labels and enough)))
        if len(kept) == len(lessons) == len(last.trained_on) and not new_labels and last.recipe == done.recipe:
            return None  # it would be the same model
    return Train(version_name(next_round(done)), tuple(one.task for one in lessons)) if due else None


def _redrawing(
    seen: Seen, config: LabelConfig, done: Done, lessons: Mapping[Lesson, Label], *, training: bool
) -> DrawQuickly | None:
    """The next tasks of the queue that do not yet show what the quick model has learnt from all labels, if any.

    Before the first label, its features of the first tasks are computed, so that its first masks do not wait for them.
    Each annotator holds one task, and somebody new may just have opened one: so many first tasks stay as they are.

    training  a training comes next, during which nothing is redrawn: before it, all published tasks get their first
              mask. None is redrawn, as with many annotators there would always be one, and training would never start
    """
    latest, settings = done.rounds[-1], done.settings
    if done.no_quick_masks(len(lessons)):
        return None
    if settings.quick_model == "off":
        chosen: list[Lesson] = []
        key = ""  # what is shown is taken back
    else:
        chosen = sorted(lessons, key=lambda one: (one.digest, one.task))[:MOST_QUICK_LABELS]
        learnt = [[one.digest, one.mask, one.group, list(one.unknown)] for one in chosen]
        key = fingerprint("quick", learnt, config.key, settings.least_dice)
    scans = {s.task: s for s in seen.scans}
    waiting = part_of_round(latest, seen, settings)[1]
    queue = [t for t in waiting if t in seen.live.published and not scans[t].skipped]
    held = max(1, seen.people) + 1
    if not chosen and not done.quick:  # nothing is drawn yet; what it will need is made ready
        held = 0
    queue = queue if (training and chosen) or not key else queue[: quick_reach(held)]
    wanted = {t: quick_key(key, scans[t].digest) for t in queue[held:]}
    missing = {t for t in wanted if t not in done.quick}
    if not key:
        missing = {t for t in wanted if done.quick.get(t)}
    elif not training:
        missing |= {t for t in wanted if done.quick.get(t) != wanted[t]}
    tasks = tuple(t for t in wanted if t in missing)
    return DrawQuickly(tasks, tuple(one.task for one in chosen), key, tuple(queue), held) if tasks else None


def quick_key(key: str, digest: str) -> str:
    """What a task shows that was redrawn for a key: it changes with the key and with its image; "" for nothing."""
    return fingerprint(key, digest) if key else ""


def _control_comparison(done: Done, config: LabelConfig, lessons: Mapping[Lesson, Label]) -> CompareWithControl | None:
    """The due comparison of the newest model with the control, if any."""
    if not done.settings.control_share or not done.models:
        return None
    last = done.models[-1]
    if last.version in done.compared or last.labels != config.labels:
        return None
    if done.trials_cut_off is not None and done.trials_cut_off.too_often:
        return None  # nobody waits for it
    used = [(label.annotation, one.task) for one, label in lessons.items() if last.had(one, label.key)]
    tasks = [task for _, task in sorted(used)]
    ours, control = (
        [task for task in tasks if task not in last.held_out and done.served.get(task) is drawn]
        for drawn in (False, True)
    )
    validation = tuple(task for task in tasks if task in last.held_out)
    count = min(len(ours), len(control))
    if not validation or count < MIN_CONTROL_LABELS:
        return None
    one, other = (tuple(arm[row] for row in evenly_spread(len(arm), count)) for arm in (ours, control))
    return CompareWithControl(last.version, one, other, validation, (len(ours), len(control)))


def _scoring(unscored: tuple[int, ...]) -> list[Step]:
    return [Score(unscored)] if unscored else []


def next_round(done: Done) -> int:
    """The number of the next round. A model is trained for a round, so until that round is open, it is the next."""
    opened = done.rounds[-1].n + 1 if done.rounds else 0
    trained = (round_of(done.models[-1].version) or 0) if done.models else 0
    return max(opened, trained, done.first_round, 1)


def round_key(done: Done, config: LabelConfig, scans: Sequence[Scan] = (), counts: Counts = NO_SCANS) -> str:
    """A key of the inputs of an order: model, training, settings and priorities. A new round opens when it changes.

    It contains only inputs used in the current phase, and no defaults, so that neither an unused setting nor one
    introduced by a newer version opens a round.

    scans   those with priority and those left out, among others
    counts  of all scans
    """
    settings = done.settings
    cold, ranked = settings.moments
    more: dict[str, Any] = {"control_share": settings.control_share} if settings.control_share else {}
    if settings.unit != "slice" and counts.volumes:  # without volumes, both units are the same
        more["unit"] = settings.unit
    grouped = (ranked if done.active else cold) in GROUPED and counts.groups
    if grouped and settings.one_per_patient == "off":
        more["one_per_patient"] = "off"
    priorities = sorted([s.task, s.priority] for s in scans if s.priority)  # of labelled ones too: labels open no round
    if priorities:
        more["wishes"] = priorities
    if not done.active:
        if cold == "stratified":
            more["stratify_by"] = settings.stratify_by
        refused = [done.models[-1].version] if done.models else []  # its number must not be that of a round
        return fingerprint(cold, *refused, *([more] if more else []))
    if settings.uncertainty != "image":
        more["uncertainty"] = settings.uncertainty
    trained = done.models[-1].version
    alpha = settings.alpha if ranked == "paper" else ProjectSettings.alpha  # the other strategies do not use it
    return fingerprint(done.active, trained, config.key, alpha, ranked, *([more] if more else []))


def _phase(seen: Seen, done: Done, usable: int, training: bool) -> tuple[str, str]:
    counts = seen.counts
    if training:
        return "training", f"Training on {usable} labelled scans."
    if not counts.open and not seen.unlisted:
        return "done", "Every scan is labelled."
    skipped, excluded = counts.skipped if seen.live.ignores_skipped else 0, counts.left_out
    if skipped + excluded == counts.open and not seen.unlisted:
        why = [f"{excluded} left out of the order"] if excluded else []
        why += [f"{skipped} that annotators skipped"] if skipped else []
        return "done", f"Every scan is labelled except {' and '.join(why)}."
    if done.active:
        return "active", ""
    size = done.settings.cold_start_size
    if done.settings.retrain == "button":
        which = "next" if done.models else "first"
        return "cold_start", f'The {which} model is trained when somebody presses "Start Training".'
    if done.models:
        return "cold_start", f"No model is active. The next one is trained after {done.settings.round_size} new labels."
    return "cold_start", f"{usable} of {size} labels needed for the first model."
