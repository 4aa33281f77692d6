"""Share batch work with all idle workers, and wait until it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from backend.errors import StorageFull, StoreUnavailable
from backend.loop.context import Busy, LoopContext
from backend.workers.shards import SHARD

POLL = 0.2  # seconds between checks of shards that other workers have taken


def share(
    context: LoopContext,
    project: int,
    kind: str,
    requirements: str,
    tasks: Sequence[int],
    text: str,
    between: Callable[[int], None] | None = None,
) -> None:
    """Do batch work on these tasks together with idle workers; returns when all of it is done.

    A shard that failed on another worker is repeated here, so that its error is raised here.

    text     the step, for progress reports
    between  called with the project after each shard, where other projects may also have their turn
    """
    total = len(tasks)
    context.report(project, text, 0, total)
    if total <= SHARD:
        context.processor.do(kind, project, requirements, tasks)
        context.report(project, text, total, total)
        return
    shards = context.shards
    run = shards.cut(project, kind, requirements, tasks)
    try:
        while True:
            context.check(project)
            shard = shards.take(run)
            if shard is not None:
                context.processor.do(kind, project, requirements, shard.tasks)
                if not shards.finish(shard):
                    raise Busy  # another driver has split the work again
            open_shards, left = shards.left(run)
            context.report(project, text, total - left, total)
            if not open_shards:
                return
            if between is not None:
                between(project)
                context.give_way(project)
            if shard is None:
                time.sleep(POLL)
    finally:
        with suppress(StoreUnavailable, StorageFull):
            shards.forget(project, run)
