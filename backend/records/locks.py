"""Locks on projects, across processes and machines.

A file lock in the shared data folder, which the system releases when its holder dies, and, with Redis, also a lease,
for file systems that do not share locks between machines. Each of them alone excludes a second holder, so an emptied
Redis or a network folder without locks does no harm.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import redis
from filelock import FileLock, Timeout
from redis.exceptions import LockError, RedisError
from redis.lock import Lock

from backend.errors import StorageFull, StoreUnavailable, is_disk_full
from backend.records.private import make_folder

log = logging.getLogger("scanqueue.locks")

LEASE = 30.0  # seconds until Redis releases the lock of a dead holder
RENEW = 5.0
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)  # errors of file systems without locks


class LockHandle:
    """The result of taking a lock: true if it is ours; `lost()` is true once another process holds it anyway."""

    def __init__(self, mine: bool) -> None:
        self._mine = mine
        self._lost = threading.Event()

    def __bool__(self) -> bool:
        return self._mine

    def lost(self) -> bool:
        """True once the lock is no longer ours: stop as soon as possible, and write nothing more."""
        return self._lost.is_set()


class Locks:
    """Named locks in `folder`, and also in the Redis at `redis_url`."""

    def __init__(self, folder: Path, redis_url: str = "") -> None:
        self._folder = folder
        self._redis = (
            redis.Redis.from_url(redis_url, socket_timeout=10, socket_connect_timeout=5) if redis_url else None
        )

    @contextmanager
    def held(self, name: str) -> Iterator[LockHandle]:
        """Try to take the lock, without waiting."""
        with ExitStack() as stack:
            if not stack.enter_context(self._file(name)):
                yield LockHandle(False)
                return
            if self._redis is None:
                yield LockHandle(True)
                return
            yield stack.enter_context(self._leased(self._redis, name))

    @contextmanager
    def _file(self, name: str) -> Iterator[bool]:
        make_folder(self._folder.parent)
        # a soft lock is a plain file and would outlive its holder
        lock = FileLock(self._folder / f"{name}.lock", timeout=0, fallback_to_soft=False)
        try:
            self._folder.mkdir(exist_ok=True)
            lock.acquire()
        except Timeout:
            yield False
            return
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and is_disk_full(error):
                raise StorageFull(
                    f"No space for a lock in {self._folder}: {error.strerror}. Free disk space; nothing was lost."
                ) from error
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise StoreUnavailable(
                    f"No lock can be made in {self._folder}: {error.strerror}. Make the folder writable for the user "
                    "who runs scanqueue."
                ) from error
            if self._redis is None:
                raise StoreUnavailable(
                    f"The file system of {self._folder} does not support locks ({error}). Move SCANQUEUE_DATA_DIR to "
                    "one that does, such as a local disk, or set SCANQUEUE_REDIS_URL."
                ) from error
            log.debug("%s does not support file locks (%s); Redis alone decides", self._folder, error)
            yield True
            return
        try:
            yield True
        finally:
            lock.release()

    @contextmanager
    def _leased(self, client: redis.Redis, name: str) -> Iterator[LockHandle]:
        lock = client.lock(f"scanqueue:lock:{name}", timeout=LEASE, blocking=False, thread_local=False)
        try:
            mine = bool(lock.acquire())
        except RedisError as error:
            log.warning("no lock on %s: Redis does not answer (%s); will retry", name, type(error).__name__)
            mine = False
        hold = LockHandle(mine)
        if not mine:
            yield hold
            return
        over = threading.Event()
        keeper = threading.Thread(target=_renew, args=(lock, name, hold, over), daemon=True)
        keeper.start()
        try:
            yield hold
        finally:
            over.set()
            keeper.join()
            with suppress(LockError, RedisError):
                lock.release()


def _renew(lock: Lock, name: str, hold: LockHandle, over: threading.Event) -> None:
    while not over.wait(RENEW):
        try:
            lock.reacquire()
        except LockError:
            # Redis was emptied, or its clock jumped; take the lock again unless another process was faster.
            try:
                if lock.acquire():
                    continue
            except RedisError:
                continue
            log.warning("the lock on %s was lost to another worker; the work under it stops", name)
            hold._lost.set()
            return
        except RedisError:
            continue  # while Redis is unavailable, no other process gets the lock
