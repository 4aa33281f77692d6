"""Attempts at steps that may need more memory than there is: after MOST_ATTEMPTS, the loop goes on without the step.

The system ends a process that needs too much memory without a word. So an attempt is recorded before the work, and
taken back when it ends; what is left over was cut off.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from backend.loop.context import LoopContext
from backend.loop.steps import (
    COMPARE,
    MAP,
    POOL_GROWTH,
    QUICK,
    TRAIN,
    CompareWithControl,
    Done,
    DrawQuickly,
    FitMap,
    Train,
    map_key,
)


def attempt(
    context: LoopContext,
    project: int,
    done: Done,
    step: Train | CompareWithControl | DrawQuickly | FitMap,
    places: int = 0,
) -> AbstractContextManager[None]:
    """Inside, the step is an attempt, see `AttemptLog.attempt`. `places`: of a map."""
    more = done.settings.round_size
    if isinstance(step, Train):
        work, key, size, before = TRAIN, context.learner.recipe(done.settings.seed), len(step.tasks), done.cut_off
    elif isinstance(step, CompareWithControl):
        work, key, size, before = COMPARE, step.version, len(step.ours), done.trials_cut_off
    elif isinstance(step, DrawQuickly):
        work, key, size, before = QUICK, QUICK, len(step.lessons), done.quick_cut_off
    else:
        work, key, size, before = MAP, map_key(done.embedder, done.settings.unit), places, done.map_cut_off
        more = (POOL_GROWTH - 1) * before.size if before else 0
    return context.attempts.attempt(project, work, key, size=size, first=before is None or size >= before.size + more)
