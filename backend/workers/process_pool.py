"""Worker processes that start fast, stay only a little ahead, and survive each other's crashes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as Waiting
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import Self, TypeVar

from backend.workers.prefetch import NICE

Item = TypeVar("Item")
Sent = TypeVar("Sent")
Result = TypeVar("Result")

LOOK = 0.2  # seconds between checks whether to stop


class Crashed(Exception):
    """The process that worked on an item died twice, the second time with this item alone."""


class Workers:
    """`jobs` processes. After `stop()`, nothing more is started or returned. Several threads may use them.

    preload  a module that the processes import before they start, with the imports of the work, but without torch
    """

    def __init__(self, jobs: int, preload: str = "backend.intake.slicing") -> None:
        self.jobs = jobs
        self._preload = preload
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([preload])
        self._pool: ProcessPoolExecutor | None = None

    def each(
        self, work: Callable[[Sent], Result], items: Iterable[Item], send: Callable[[Item], Sent], *, ahead: int
    ) -> Iterator[tuple[Item, Result | Crashed]]:
        """(item, result of `work`) in order; at most `ahead` items are taken before one is returned.

        send  the part of an item that goes to the worker process

        An item whose process dies twice, the second time with this item alone, yields Crashed instead of a result.
        """
        source = iter(items)
        waiting: deque[tuple[Item, Future[Result], ProcessPoolExecutor]] = deque()
        more = True
        while not self._stopping.is_set():
            while more and len(waiting) < ahead and not self._stopping.is_set():
                try:
                    waiting.append(self._begin(work, next(source), send))
                except StopIteration:
                    more = False
            if not waiting:
                return
            item, future, pool = waiting[0]
            try:
                result: Result | Crashed = future.result(LOOK)
            except Waiting:
                continue
            except BrokenProcessPool:
                waiting.popleft()
                self._renew(pool)
                yield item, self._alone(work, send(item))
                # the pool may have dropped the other items
                waiting = deque(
                    self._begin(work, i, send) if p is pool and _failed(f) else (i, f, p) for i, f, p in waiting
                )
                continue
            waiting.popleft()
            yield item, result

    def each_lot(
        self,
        work: Callable[[list[Sent]], list[Result]],
        lots: Iterable[Sequence[Item]],
        send: Callable[[Item], Sent],
        *,
        ahead: int,
    ) -> Iterator[tuple[Sequence[Item], Sequence[Result | Crashed]]]:
        """Like `each`, with several items at a time; when the process of a lot dies, each of its items runs alone."""
        for lot, found in self.each(work, lots, lambda lot: [send(item) for item in lot], ahead=ahead):
            if isinstance(found, Crashed):
                singly = [self._alone(work, [send(item)]) for item in lot]
                yield lot, [one if isinstance(one, Crashed) else one[0] for one in singly]
            else:
                yield lot, found

    def _alone(self, work: Callable[[Sent], Result], sent: Sent) -> Result | Crashed:
        """Run `work` in a separate process."""
        alone = Workers(1, self._preload)
        try:
            return alone._begin(work, sent, lambda same: same)[1].result()
        except BrokenProcessPool:
            return Crashed()
        finally:
            alone.close()

    def _begin(
        self, work: Callable[[Sent], Result], item: Item, send: Callable[[Item], Sent]
    ) -> tuple[Item, Future[Result], ProcessPoolExecutor]:
        while True:
            with self._lock:
                if self._pool is None:
                    self._pool = ProcessPoolExecutor(self.jobs, mp_context=self._context, initializer=_initialize)
                pool = self._pool
                try:
                    with _no_main():
                        return item, pool.submit(work, send(item)), pool
                except BrokenProcessPool:
                    pass
            self._renew(pool)

    def _renew(self, broken: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._pool is broken:
                broken.shutdown(wait=False, cancel_futures=True)
                self._pool = None

    def stop(self) -> None:
        self._stopping.set()

    @property
    def stopped(self) -> bool:
        return self._stopping.is_set()

    def close(self) -> None:
        """End the processes; running work is finished, waiting work is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _failed(future: Future[Result]) -> bool:
    """Whether a future has no result because its pool has died."""
    try:
        return isinstance(future.exception(LOOK), BrokenProcessPool)
    except Waiting:
        return True
    except BaseException:
        return True  # cancelled


@contextmanager
def _no_main() -> Iterator[None]:
    """Processes started inside do not import the program that starts them (the whole command line)."""
    held = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = held


def _initialize() -> None:
    """Set up a new worker process: silent, low priority, ends with its parent, leaves Ctrl-C to it.

    Silent because libraries that read scans write header values to warnings, logs and, bypassing Python, to stderr.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    os.nice(NICE)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
