"""How much of a round is published: the same rule for the queue, the status and the page."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace

from backend.facts import SAMPLING, Counts, Round
from backend.loop.steps import Publish, Seen
from backend.settings import ProjectSettings

WINDOW = 256  # tasks of an order that are looked at first
SMALL_POOL = 512  # open scans; all of so few are read, or scored, before they are ordered
FIRST_SCANS = 128  # scans of a large pool that an order is made from at first, at least
FIRST_ROUNDS = 4  # and at least so many times the labels before the first model
QUICK_AHEAD = 2  # tasks that are redrawn in addition to one for each annotator


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


def depth_by_knowledge(settings: ProjectSettings, counts: Counts, people: int) -> ProjectSettings:
    """The settings with the depth of the queue that suits what the order is made from.

    While the order of a large pool has seen less than half of it, only the tasks are published that annotators need
    soon: what is published keeps its place, and the next extension may know better scans.
    """
    if all_at_once(settings, counts.open) or 2 * counts.ordered >= counts.open:
        return settings
    soon = quick_reach(people + 1)
    least = min(settings.round_size, people + 1)
    return replace(settings, queue_depth=min(settings.depth, max(soon, least)), round_size=least)


def first_scans(settings: ProjectSettings) -> int:
    """The number of scans of a large pool that the first order is made from."""
    return max(FIRST_SCANS, FIRST_ROUNDS * settings.cold_start_size)


def all_at_once(settings: ProjectSettings, count: int) -> bool:
    """Whether so many scans are all read, or scored, before they are ordered.

    Volumes that are chosen as a whole always are: no order can be made from some of their slices.
    """
    return count <= SMALL_POOL or settings.unit == "scan"


def quick_reach(held: int) -> int:
    """How many of the first tasks the quick model draws when annotators may hold `held`: these, the next, and a few."""
    return 2 * max(held, 2) + QUICK_AHEAD


def published_part(
    order: Sequence[int],
    carried: Sequence[int],
    waiting: Mapping[int, bool],
    settings: ProjectSettings,
    people: int,
    siblings: Callable[[int], Container[int]],
    reach: int = 0,
) -> tuple[int, list[int]]:
    """(length, tasks): the length of the published prefix, and the waiting tasks of it and of `carried`, in that order.

    carried  those that are in the order
    waiting  unlabelled tasks, and whether each was skipped. Skipped tasks are published, but not counted as open
    reach    the least length, as so many places were published before
    """
    open_tasks = {task for task, skipped in waiting.items() if not skipped}
    length = max(prefix_length(order, open_tasks, settings, people, siblings), min(reach, len(order)))
    ahead = set(order[:length])
    tasks = [t for t in order[:length] if t in waiting]
    return length, tasks + [t for t in carried if t in waiting and t not in ahead]


def part_of_round(latest: Round, seen: Seen, settings: ProjectSettings) -> tuple[int, list[int]]:
    """`published_part` of the latest round. Excluded scans are left out even before the next round opens."""
    open_ = (s for s in seen.scans if s.digest and not s.annotated and not s.problem and s.priority >= 0)

    def siblings(task: int) -> Container[int]:
        volume = next((s.volume for s in seen.scans if s.task == task), "")
        return {s.task for s in seen.scans if s.volume == volume} if volume else {task}

    waiting = {s.task: s.skipped for s in open_}
    settings = depth_by_knowledge(settings, seen.counts, seen.people)
    ordered = set(latest.order) if latest.carried else set()
    carried = [t for t in latest.carried if t in ordered]
    return published_part(latest.order, carried, waiting, settings, seen.people, siblings, _reach(latest, seen))


def _reach(latest: Round, seen: Seen) -> int:
    """The number of places that have been published, also if the records do not say so: after a kill, an upgrade."""
    published = seen.live.published.keys() - set(latest.carried)
    beginning = latest.order[: latest.reach + WINDOW + 2 * len(published)]
    return max((n for n, task in enumerate(beginning, start=1) if task in published), default=latest.reach)


def beginnings(order: Sequence[int], settings: ProjectSettings, reach: int) -> Iterator[Sequence[int]]:
    """Beginnings of an order, each twice as long as the one before; most queues end in the first."""
    size = max(WINDOW, 2 * settings.depth, 2 * reach)
    while size < len(order):
        yield order[:size]
        size *= 2
    yield order


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
