"""Prefetching the next batch while the current one is processed: order, limits, errors."""

from __future__ import annotations

import os
import threading
import time

import pytest

from backend.workers.prefetch import ahead


def test_all_items_come_in_order_in_batches_of_the_given_size() -> None:
    batches = list(ahead(lambda n: n * n, range(11), size=4, threads=3))
    assert batches == [[0, 1, 4, 9], [16, 25, 36, 49], [64, 81, 100]]
    assert list(ahead(abs, range(7), size=3, threads=2, first=1)) == [[0], [1, 2, 3], [4, 5, 6]]
    assert list(ahead(abs, [], size=3, threads=2)) == []


def test_at_most_two_batches_are_loaded_ahead() -> None:
    started: list[int] = []

    def load(n: int) -> int:
        started.append(n)
        return n

    batches = ahead(load, range(100), size=5, threads=2)
    next(batches)
    time.sleep(0.2)  # as long as the computation takes
    assert sorted(started) == list(range(15))  # the current batch and two more


def test_an_error_is_raised_with_its_batch_and_stops_the_loading() -> None:
    started: list[int] = []

    def load(n: int) -> int:
        started.append(n)
        if n == 5:
            raise OSError("gone")
        time.sleep(0.01)
        return n

    with pytest.raises(OSError, match="gone"):
        list(ahead(load, range(1000), size=4, threads=1))
    assert len(started) < 20


def test_only_the_loading_threads_have_lower_priority() -> None:
    def niceness(_: int) -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    mine = niceness(0)
    ((theirs,),) = ahead(niceness, [0], size=1, threads=1)
    assert theirs == min(mine + 5, 19)
    assert niceness(0) == mine
