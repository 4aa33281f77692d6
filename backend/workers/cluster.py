"""Work on a Dask cluster: any number of workers on other machines, which share neither folder nor database with us.

Dask keeps the queue, moves inputs and results, and repeats what was lost with a worker.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from backend.errors import ClusterUnavailable, WorkersLost

log = logging.getLogger("scanqueue.cluster")

CONNECT = 10  # seconds to wait for the scheduler
POLL = 0.5  # seconds after which `each` yields though no part is done
AHEAD = 2  # parts sent for each thread of the cluster, so that none waits for its next input
LOSSES = 5  # times that a part is lost before the step ends
ALONE = 60.0  # seconds to wait for a first worker
GPU = "GPU"  # the resource of workers that have one
Client = Any  # of Dask's, which is imported when a cluster is used


def _dask() -> Any:
    """The library, which has no types; loaded when a cluster is used."""
    import distributed

    return distributed


class _Raised(Exception):
    """`function` raised `error`."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class Cluster:
    """The cluster of one Dask scheduler, connected on first use. For any thread.

    address  such as tcp://scheduler:8786
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._client: Client | None = None
        self._mutex = threading.Lock()

    @property
    def dashboard(self) -> str:
        """The address of Dask's dashboard; "" before the first use."""
        return str(self._client.dashboard_link) if self._client is not None else ""

    def threads(self) -> int:
        """The number of threads that take work; 0 while the scheduler does not answer."""
        try:
            return self._size(self._connected())[0]
        except (ClusterUnavailable, OSError, TimeoutError, RuntimeError):
            return 0

    def each(
        self, function: Callable[..., Any], parts: Sequence[Any], shared: Any = None
    ) -> Generator[tuple[int, Any] | None]:
        """Call `function(part, shared)` on the cluster; yields (index of the part, result) as the results come.

        Yields None after POLL seconds without one. Closing the iterator cancels what has not begun. What was lost with
        a worker is done again by another one. An error of `function` is raised here.

        shared  sent to each worker once

        Raises ClusterUnavailable when the scheduler does not answer, when it has no workers for ALONE seconds, or when
        workers die again and again doing the same part.
        """
        try:
            yield from self._each(self._connected(), function, parts, shared)
        except _Raised as raised:
            raise raised.error from None
        except (OSError, TimeoutError, RuntimeError) as error:  # distributed raises all of these
            self._forget()
            raise self._unavailable(f"does not answer ({type(error).__name__})") from error

    def _each(
        self, client: Client, function: Callable[..., Any], parts: Sequence[Any], shared: Any
    ) -> Generator[tuple[int, Any] | None]:
        sent = self._scattered(client, shared)
        waiting = list(enumerate(parts))[::-1]
        running: dict[Any, int] = {}
        lost: Counter[int] = Counter()
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        alone_since: float | None = None
        threads, gpus, asked = 0, 0.0, float("-inf")
        try:
            while waiting or running:
                if time.monotonic() - asked >= POLL:
                    (threads, gpus), asked = self._size(client), time.monotonic()
                if threads:
                    alone_since = None
                elif time.monotonic() - (alone_since := alone_since or time.monotonic()) > ALONE:
                    raise self._unavailable("has no workers. Start some with `dask worker`")
                while waiting and len(running) < AHEAD * max(1, threads):
                    index, part = waiting.pop()
                    resources = {GPU: 1} if gpus else None
                    future = client.submit(function, part, sent, resources=resources, pure=False)
                    running[future] = index
                    future.add_done_callback(ended.put)
                try:
                    future = ended.get(timeout=POLL)
                except queue.Empty:
                    yield None
                    continue
                index = running.pop(future)
                if future.status in ("cancelled", "lost"):  # `shared` was on a worker that died
                    lost[index] += 1
                    if lost[index] > LOSSES:
                        raise self._unavailable("loses a part of the work again and again")
                    if sent is not None and sent.status != "finished":
                        sent = self._scattered(client, shared)
                    waiting.append((index, parts[index]))
                    continue
                result = self._result(future, index)
                future.release()
                yield index, result
        finally:
            with suppress(Exception):  # the scheduler may be gone
                client.cancel(list(running), force=True)

    @staticmethod
    def _scattered(client: Client, shared: Any) -> Any:
        """What all parts share, sent to a worker; None for None."""
        return client.scatter([shared], hash=False)[0] if shared is not None else None

    def _size(self, client: Client) -> tuple[int, float]:
        """(threads, GPUs) of the workers that may take work: those with a GPU, if there are any.

        Raises ConnectionError while the scheduler does not answer.
        """
        found = client.scheduler_info(n_workers=-1)
        if "workers" not in found:  # Dask tells nothing while it has no connection
            raise ConnectionError
        workers = found["workers"].values()
        with_gpu = [one for one in workers if one.get("resources", {}).get(GPU)]
        threads = sum(one["nthreads"] for one in with_gpu or workers)
        return threads, sum(one["resources"][GPU] for one in with_gpu)

    def _result(self, future: Any, index: int) -> Any:
        try:
            return future.result()
        except _dask().KilledWorker:
            raise WorkersLost(
                str(
                    self._unavailable(
                        "lost several workers while they did the same part of the work. Give the workers more memory, "
                        "or fewer threads"
                    )
                ),
                index,
            ) from None
        except Exception as error:
            raise _Raised(error) from error

    @contextmanager
    def listening(self, name: str) -> Iterator[Callable[[], Any]]:
        """Yields a function that returns the latest value that a worker told under this name; None before the first.

        At the end, the worker is asked to stop, if it is still at work.
        """
        client, distributed = self._connected(), _dask()
        told = distributed.Variable(f"{name}-told", client=client)
        stop = distributed.Event(f"{name}-stop", client=client)

        def latest() -> Any:
            with suppress(TimeoutError, OSError):  # nothing yet, or no scheduler: `each` tells
                return told.get(timeout=POLL)
            return None

        try:
            yield latest
        finally:
            with suppress(Exception):  # the scheduler may be gone
                stop.set()
                told.delete()

    def _connected(self) -> Client:
        with self._mutex:
            if self._client is not None and self._client.status != "running":
                self._close()
            if self._client is None:
                try:
                    self._client = _dask().Client(self.address, timeout=CONNECT, set_as_default=False, name="scanqueue")
                except (OSError, TimeoutError) as error:
                    raise self._unavailable(f"does not answer ({type(error).__name__})") from error
                log.info("connected to the Dask scheduler at %s", self.address)
            return self._client

    def _forget(self) -> None:
        with self._mutex:
            self._close()

    def _close(self) -> None:
        if self._client is not None:
            with suppress(Exception):
                self._client.close(timeout=1)
            self._client = None

    def _unavailable(self, what: str) -> ClusterUnavailable:
        return ClusterUnavailable(
            f"The Dask scheduler at {self.address} {what}. Results so far are kept; the rest is tried again every "
            "minute."
        )


class Unwanted(Exception):
    """The driver no longer waits for the result."""


def tell(name: str, value: Any) -> None:
    """On a worker: give a value to the driver, see `Cluster.listening`. Raises Unwanted if it no longer waits."""
    distributed = _dask()
    client = distributed.get_client()
    if distributed.Event(f"{name}-stop", client=client).is_set():
        raise Unwanted
    distributed.Variable(f"{name}-told", client=client).set(value)
