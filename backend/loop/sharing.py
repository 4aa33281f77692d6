"""Batch work in parts: here, or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

from backend.errors import WorkersLost
from backend.loop.batch import BatchProcessor
from backend.loop.context import LoopContext
from backend.loop.remote import Part, Write, apply, do_part, model_files
from backend.loop.suspects import Suspects, parts_of
from backend.workers.cluster import Cluster


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
    processor = context.processor
    # `take` is of work that its step counts
    suspects = Suspects(processor, context.attempts, project, kind) if take is None else None
    work = in_parts(processor, project, kind, requirements, tasks, of=of, take=take, suspects=suspects)
    with closing(work) as running:
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
    suspects: Suspects | None = None,
) -> Generator[int]:
    """Do batch work on these tasks, see `BatchProcessor.do`, here or on the cluster of the processor.

    Yields the number of tasks of each part that is done, and from a cluster 0 now and then meanwhile. Results are
    stored as they come, so that nothing is done twice after a kill.

    of        artefact kind of the model
    take      receives the results of a cluster instead of the records
    suspects  count the attempts at each scan; None: nobody does
    """
    threads = processor.cluster.threads() if processor.cluster else 1
    if suspects is None:
        parts, alone, left_out = list(parts_of(tasks, threads)), list[Sequence[int]](), 0
    else:
        parts, alone, left_out = suspects.parts(tasks, threads)
    if left_out:
        yield left_out
    if processor.cluster is None:
        for some in (*parts, *alone):
            if suspects is not None:
                suspects.do(requirements, some)
            else:
                processor.do(kind, project, requirements, some)
            yield len(some)
        return
    for some_parts in (parts, *([one] for one in alone)):  # whatever waits on a worker that dies is blamed with it
        yield from _on_cluster(
            processor, processor.cluster, project, kind, requirements, some_parts, of, take, suspects
        )


def _on_cluster(
    processor: BatchProcessor,
    cluster: Cluster,
    project: int,
    kind: str,
    requirements: str,
    parts: Sequence[Sequence[int]],
    of: str,
    take: Callable[[Sequence[Write]], None] | None,
    suspects: Suspects | None,
) -> Generator[int]:
    model = requirements.partition("|")[0].partition("/")[0] if kind != "read" else ""
    work = [Part(kind, project, requirements, tuple(processor.scans(project, some))) for some in parts]
    files = model_files(processor.store.path(of, model)) if model else None
    with closing(cluster.each(do_part, work, files)) as running:
        try:
            for found in running:
                if found is None:
                    yield 0
                    continue
                index, writes = found
                if take is None:
                    apply(processor.store, writes)
                else:
                    take(writes)
                if suspects is not None:
                    suspects.done(parts[index])
                yield len(parts[index])
        except WorkersLost as error:
            if suspects is not None and error.part is not None:
                suspects.lost(parts[error.part])
            raise
