"""Batch work in parts: here, or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

from backend.loop.context import LoopContext
from backend.loop.remote import Part, apply, do_part, model_files

PART = 16  # tasks


def share(
    context: LoopContext,
    project: int,
    kind: str,
    requirements: str,
    tasks: Sequence[int],
    text: str,
    between: Callable[[int], None] | None = None,
) -> None:
    """Do batch work on these tasks, see `BatchProcessor.do`; returns when all of it is done.

    Results are stored as they come, so that nothing is done twice after a kill.

    text     the step, for progress reports
    between  called with the project after each part, where other projects may also have their turn
    """
    total, done = len(tasks), 0
    parts = [tasks[start : start + PART] for start in range(0, total, PART)]
    context.report(project, text, 0, total)
    each = _here if context.cluster is None else _on_cluster
    with closing(each(context, project, kind, requirements, parts)) as running:
        for finished in running:
            done += finished
            context.check(project)
            context.report(project, text, done, total)
            if between is not None and done < total:
                between(project)
                if finished:  # each turn gets something done, however slow a part is
                    context.give_way(project)


def _here(
    context: LoopContext, project: int, kind: str, requirements: str, parts: Sequence[Sequence[int]]
) -> Generator[int]:
    """Do the parts in this process; yields the number of tasks of each."""
    for tasks in parts:
        context.processor.do(kind, project, requirements, tasks)
        yield len(tasks)


def _on_cluster(
    context: LoopContext, project: int, kind: str, requirements: str, parts: Sequence[Sequence[int]]
) -> Generator[int]:
    """Do the parts on the cluster; yields the number of tasks of each that is done, and 0 now and then meanwhile."""
    assert context.cluster is not None
    model = requirements.partition("|")[0].partition("/")[0] if kind != "read" else ""
    work = [Part(kind, project, requirements, tuple(context.processor.scans(project, tasks))) for tasks in parts]
    files = model_files(context.store.path("models", model)) if model else None
    with closing(context.cluster.each(do_part, work, files)) as running:
        for found in running:
            if found is None:
                yield 0
            else:
                index, writes = found
                apply(context.store, writes)
                yield len(parts[index])
