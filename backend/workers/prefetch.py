"""Loads the next batches while the current one is computed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

NICE = 5  # lower priority, so that the thread that uses the results gets a core first

T = TypeVar("T")
R = TypeVar("R")


def ahead(load: Callable[[T], R], items: Sequence[T], *, size: int, threads: int, first: int = 0) -> Iterator[list[R]]:
    """Batches of `load(item)`, in order; threads load up to two batches ahead.

    size   items per batch, 1 or more
    first  items in the first batch, so that the caller can start early; 0: `size`

    The threads have a lower priority than the computing one: a parallel region of a network ends with its slowest core,
    which must not be one that is also decoding.

    An exception of `load` is raised when its batch is due. Leaving the loop early waits only for loads that have
    started.
    """
    pool = ThreadPoolExecutor(threads, initializer=_step_back)
    todo = iter(items)
    under_way: deque[Future[R]] = deque(pool.submit(load, item) for item in islice(todo, 2 * size))
    try:
        count = first or size
        while under_way:
            batch = [under_way.popleft().result() for _ in range(min(count, len(under_way)))]
            under_way.extend(pool.submit(load, item) for item in islice(todo, len(batch)))
            yield batch
            count = size
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _step_back() -> None:
    """Lower the priority of this thread within the process, where the system supports it (Linux)."""
    me = threading.get_native_id()
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + NICE)
