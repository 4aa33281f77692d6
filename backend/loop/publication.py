"""How much of a round is published: the same rule for the queue, the status and the page."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

from backend.facts import SAMPLING, Round
from backend.loop.steps import Publish, Seen
from backend.settings import ProjectSettings


def prefix_length(
    order: Sequence[int],
    open_tasks: Container[int],
    settings: ProjectSettings,
    people: int = 0,
    siblings: Callable[[int], Container[int]] | None = None,
) -> int:
    """How much of an order must be published so that annotators do not run out of tasks.

    The first `depth` tasks. Another block follows whenever fewer published tasks are open than `round_size`, or than
    two per annotator: each annotator has one open, and Label Studio reports "no more tasks" if all others are taken.
    Depends only on the labels, not on time, so that a restart publishes the same tasks as an undisturbed run.

    siblings  returns the tasks of a task's volume. With the unit "scan" the prefix never ends inside a volume
    """
    length = _blocks_length(order, open_tasks, settings, people)
    if siblings is None or settings.unit != "scan" or not 0 < length < len(order):
        return length
    same = siblings(order[length - 1])
    while length < len(order) and order[length] in same:
        length += 1
    return length


def _blocks_length(order: Sequence[int], open_tasks: Container[int], settings: ProjectSettings, people: int) -> int:
    enough = max(settings.round_size, 2 * people)
    block = max(settings.depth - settings.round_size, settings.round_size)
    length, left, place = settings.depth, 0, 0
    for place, task in enumerate(order, start=1):
        if place > length:
            if left >= enough:
                return length
            length += block
        left += task in open_tasks
    return place


def published_part(
    order: Sequence[int],
    carried: Sequence[int],
    waiting: Mapping[int, bool],
    settings: ProjectSettings,
    people: int,
    siblings: Callable[[int], Container[int]],
) -> tuple[int, list[int]]:
    """(length, tasks): the length of the published prefix, and the waiting tasks of it and of `carried`, in that order.

    waiting  unlabelled tasks, and whether each was skipped. Skipped tasks are published, but not counted as open
    """
    open_tasks = {task for task, skipped in waiting.items() if not skipped}
    length = prefix_length(order, open_tasks, settings, people, siblings)
    behind = set(order[length:]) if carried else set()
    tasks = [t for t in order[:length] if t in waiting]
    return length, tasks + [t for t in carried if t in waiting and t in behind]


def part_of_round(latest: Round, seen: Seen, settings: ProjectSettings) -> tuple[int, list[int]]:
    """`published_part` of the latest round. Excluded scans are left out even before the next round opens."""
    open_ = (s for s in seen.scans if s.digest and not s.annotated and not s.problem and s.priority >= 0)

    def siblings(task: int) -> Container[int]:
        volume = next((s.volume for s in seen.scans if s.task == task), "")
        return {s.task for s in seen.scans if s.volume == volume} if volume else {task}

    waiting = {s.task: s.skipped for s in open_}
    return published_part(latest.order, latest.carried, waiting, settings, seen.people, siblings)


def publication(latest: Round, seen: Seen, settings: ProjectSettings) -> Publish | None:
    """The part of the latest round that Label Studio lacks; None when nothing is missing."""
    live = seen.live
    tasks = tuple(t for t in part_of_round(latest, seen, settings)[1] if not live.published.get(t))
    shown = bool(tasks) or bool(live.published)
    differs = shown and (
        live.model_version != latest.version or live.sampling != SAMPLING or not live.show_predictions or not live.view
    )
    doubled = any(count > 1 for count in live.published.values())
    if tasks or differs or doubled:
        return Publish(tasks, differs, doubled)
    return None
