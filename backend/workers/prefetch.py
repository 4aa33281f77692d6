"""Load the next while the last is computed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

NICE = 5  # whoever waits for the work is not to wait for a core too

T = TypeVar("T")
R = TypeVar("R")


def ahead(load: Callable[[T], R], items: Sequence[T], *, size: int, threads: int, first: int = 0) -> Iterator[list[R]]:
    """What `load` makes of the items, in order, `size` at a time; in threads, up to two batches ahead.

    size   items of a batch, 1 or more
    first  items of the first batch, so that whoever waits for it can begin early; 0: as many as in the others

    The threads step back behind the one that computes: what waits at the end of each parallel region of a network is
    not to be the core that was decoding.

    An exception of `load` is raised when its batch is due. Leaving the loop early waits only for the loads that have
    begun.
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
    """Give this thread a lower priority than the others of the process have, where the system can (Linux)."""
    me = threading.get_native_id()
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + NICE)
