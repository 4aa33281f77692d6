"""Whether the first model draws better than the quick model, which draws until then."""

from __future__ import annotations

from backend.errors import UnreadableScan, WeightsMissing
from backend.formats.pixels import restore
from backend.learning.quick_model import Terms, learn
from backend.loop.context import LoopContext
from backend.loop.decide import MOST_QUICK_LABELS
from backend.loop.judging import Verdict, has_learnt, judge
from backend.loop.labelled_scans import LabelledScan, Split, evaluate, labelled_scans
from backend.loop.steps import Done, Seen


def against_quick_model(
    context: LoopContext, project: int, seen: Seen, done: Done, split: Split, weights: str
) -> Verdict | None:
    """The first model compared with the quick model; None if that draws nothing.

    Both have learnt from the same labels. They draw the held-out scans and those that were labelled during the
    training.

    weights  of the first model, before it learnt from the held-out scans
    """
    config = seen.config
    assert config is not None
    learnt = [one for i, one in enumerate(split.all) if i not in split.rows]
    if done.active or done.settings.quick_model == "off" or len(learnt) < 2:
        return None
    known = {mark for one in learnt for mark in (one.scan.task, one.scan.digest, one.scan.group)} - {""}
    tasks = {one.scan.task for one in split.all}
    there = {s.task: s for s in seen.scans if s.digest and not s.problem}
    later = [
        row["task"]
        for row in context.store.labels(project)
        if row["mask"] and not row["problem"] and row["config"] == config.reading_key(seen.renames)
        if row["task"] in there and row["task"] not in tasks and not has_learnt(known, there[row["task"]])
    ]
    scans = [*split.held_out, *labelled_scans(context, project, seen, later[-MOST_QUICK_LABELS:])]
    labels, processor = config.labels, context.processor
    try:
        quick = learn([_terms(context, one, len(labels)) for one in learnt[:MOST_QUICK_LABELS]])
        features = [processor.features(one.scan) for one in scans]
    except (WeightsMissing, UnreadableScan):
        return None
    if quick.expected_dice is None or quick.expected_dice < done.settings.least_dice:
        return None  # its masks are hidden
    ours = evaluate(context, weights, labels, labels, scans)
    pairs = []
    for one, found, score in zip(scans, features, ours, strict=True):
        height, width = one.case.mask.shape
        mask = restore(quick.probabilities(found, height, width), height, width)
        theirs = context.learner.compare(mask, one.case.mask, len(labels) + 1, one.scan.spacing, one.case.unknown)
        pairs.append((score, theirs, one.scan.group))
    return judge("quick model", pairs, labels, first=True)


def _terms(context: LoopContext, one: LabelledScan, labels: int) -> Terms:
    features = context.processor.features(one.scan)
    return Terms.of(features, one.case.mask, labels, unknown=one.case.unknown, group=one.scan.group)
