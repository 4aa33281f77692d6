"""Problems of scans grouped by their cause, so that one cause is read once, however many scans it affects. Pure."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

FEW = 5  # tasks that a group names
SPELLED = 3  # maximum number of different sentences that are groups of their own: such as one for each of two hosts
_NAME = re.compile(r"(?<!\w)b?(?:'[^']*'|\"[^\"]*\")")
_NUMBER = re.compile(r"\d[\d.,]*")


def cause(what: str) -> str:
    """What is the same in the sentences of one cause: everything but quoted names and numbers.

    >>> cause("its image 'a.png' is not available: the server answered 404.")
    "its image '' is not available: the server answered 0"
    """
    return _NUMBER.sub("0", _NAME.sub("''", what))


def grouped(problems: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The largest group first: {what, same, count, tasks}.

    what   the sentence of the first task
    same   whether it is that of all its tasks, in every name and number
    count  number of tasks
    tasks  all of them, ascending
    """
    causes = {what: cause(what) for what in {str(problem["what"]) for problem in problems}}
    sentences = Counter(causes.values())
    tasks: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for problem in problems:
        what = str(problem["what"])
        shared = causes[what]
        tasks[what if sentences[shared] <= SPELLED else shared].append((int(problem["task"]), what))
    found = []
    for of_group in tasks.values():
        of_group.sort()
        numbers = sorted({task for task, _ in of_group})
        same = len({what for _, what in of_group}) == 1
        found.append({"what": of_group[0][1], "same": same, "count": len(numbers), "tasks": numbers})
    return sorted(found, key=lambda group: (-group["count"], group["tasks"][0]))
