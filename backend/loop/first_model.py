"""Whether the first model draws better than the quick model, which draws until then."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from backend.errors import UnreadableScan, WeightsMissing
from backend.facts import IMPORTED_MASKS
from backend.formats.pixels import restore
from backend.learning.evaluation import Scores
from backend.learning.quick_model import Terms
from backend.loop.context import LoopContext, Replan
from backend.loop.decide import MOST_QUICK_LABELS
from backend.loop.judging import QUICK_MODEL, Verdict, has_learnt, judge
from backend.loop.labelled_scans import LabelledScan, Split, evaluate, labelled_scans
from backend.loop.quick_masks import learn_alone
from backend.loop.steps import Done, Seen


def against_quick_model(
    context: LoopContext,
    project: int,
    seen: Seen,
    done: Done,
    split: Split,
    scores: Sequence[Scores],
    weights: str,
) -> Verdict | None:
    """The first model compared with the quick model; None if that draws nothing.

    Both have learnt from the same labels, the quick model from at most MOST_QUICK_LABELS of them. They draw the
    held-out scans and those that were labelled during the training.

    scores   of the first model on the held-out scans
    weights  its weights before it learnt from these
    """
    config = seen.config
    assert config is not None
    learnt = [one for i, one in enumerate(split.all) if i not in split.rows]
    if done.active or done.settings.quick_model == "off" or len(learnt) < 2:
        return None
    if IMPORTED_MASKS in context.studio.model_versions(project):
        return None  # tasks show these instead
    known = {mark for one in learnt for mark in (one.scan.task, one.scan.digest, one.scan.group)} - {""}
    tasks = {one.scan.task for one in split.all}
    there = {s.task: s for s in seen.scans if s.digest and not s.problem}
    later = [
        row["task"]
        for row in context.store.labels(project)
        if row["mask"] and not row["problem"] and row["config"] == config.reading_key(seen.renames)
        if row["task"] in there and row["task"] not in tasks and not has_learnt(known, there[row["task"]])
    ]
    labels = config.labels
    try:
        quick = learn_alone([_terms(context, one, len(labels)) for one in learnt[:MOST_QUICK_LABELS]])
    except (WeightsMissing, UnreadableScan):
        return None
    if quick.expected_dice is None or quick.expected_dice < done.settings.least_dice:
        return None  # its masks are hidden
    drawn = list(zip(split.held_out, scores, strict=True))
    for task in later[-MOST_QUICK_LABELS:]:
        with suppress(Replan, UnreadableScan):  # then it is left out
            scans = labelled_scans(context, project, seen, [task])
            drawn += zip(scans, evaluate(context, project, weights, labels, labels, scans), strict=True)
    pairs = []
    for one, ours in drawn:
        height, width = one.case.mask.shape
        with suppress(UnreadableScan):
            found = context.processor.features(one.scan)
            mask = restore(quick.probabilities(found, height, width), height, width)
            theirs = context.learner.compare(mask, one.case.mask, len(labels) + 1, one.scan.spacing, one.case.unknown)
            pairs.append((ours, theirs, one.scan.group))
    return judge(QUICK_MODEL, pairs, labels, first=True)


def _terms(context: LoopContext, one: LabelledScan, labels: int) -> Terms:
    features = context.processor.features(one.scan)
    return Terms.of(features, one.case.mask, labels, unknown=one.case.unknown, group=one.scan.group)
