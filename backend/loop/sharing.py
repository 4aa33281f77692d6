"""Batch work in parts: here, or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

from backend.loop.batch import BatchProcessor
from backend.loop.context import LoopContext
from backend.loop.remote import Part, Write, apply, do_part, model_files

PART = 16  # tasks
LEAST = 4  # of a part on a cluster


def share(
    context: LoopContext,
    project: int,
    kind: str,
    requirements: str,
    tasks: Sequence[int],
    text: str,
    between: Callable[[int], None] | None = None,
    *,
    of: str = "models",
    take: Callable[[Sequence[Write]], None] | None = None,
) -> None:
    """Do batch work on these tasks, see `in_parts`; returns when all of it is done.

    text     the step, for progress reports
    between  called with the project after each part, where other projects may also have their turn
    """
    total, done = len(tasks), 0
    context.report(project, text, 0, total)
    with closing(in_parts(context.processor, project, kind, requirements, tasks, of=of, take=take)) as running:
        for finished in running:
            done += finished
            context.check(project)
            context.report(project, text, done, total)
            if between is not None and done < total:
                between(project)
                if finished:  # each turn gets something done, however slow a part is
                    context.give_way(project)


def in_parts(
    processor: BatchProcessor,
    project: int,
    kind: str,
    requirements: str,
    tasks: Sequence[int],
    *,
    of: str = "models",
    take: Callable[[Sequence[Write]], None] | None = None,
) -> Generator[int]:
    """Do batch work on these tasks, see `BatchProcessor.do`, here or on the cluster of the processor.

    Yields the number of tasks of each part that is done, and from a cluster 0 now and then meanwhile. Results are
    stored as they come, so that nothing is done twice after a kill.

    of    artefact kind of the model
    take  receives the results of a cluster instead of the records
    """
    parts = list(parts_of(tasks, processor.cluster.threads() if processor.cluster else 0))
    if processor.cluster is None:
        for some in parts:
            processor.do(kind, project, requirements, some)
            yield len(some)
        return
    model = requirements.partition("|")[0].partition("/")[0] if kind != "read" else ""
    work = [Part(kind, project, requirements, tuple(processor.scans(project, some))) for some in parts]
    files = model_files(processor.store.path(of, model)) if model else None
    with closing(processor.cluster.each(do_part, work, files)) as running:
        for found in running:
            if found is None:
                yield 0
            else:
                index, writes = found
                if take is None:
                    apply(processor.store, writes)
                else:
                    take(writes)
                yield len(parts[index])


def parts_of(tasks: Sequence[int], threads: int) -> Iterator[Sequence[int]]:
    """The tasks in parts of `PART`; smaller towards the end, if several threads share them, so that all end together.

    Source: Polychronopoulos & Kuck 1987 (guided self-scheduling).
    """
    start = 0
    while start < len(tasks):
        fair = (len(tasks) - start) // (2 * threads) if threads > 1 else PART
        size = min(PART, max(LEAST, fair))
        yield tasks[start : start + size]
        start += size
