"""Real servers for tests, on the loopback address: Redis, PostgreSQL and S3."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psycopg
import pytest
import redis

from backend.demo.child import Child, free_port
from backend.demo.label_studio import default_executable


def program(name: str) -> str:
    """The path of a server's executable; if it is not installed, the test is skipped, but never in CI."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[4]))
    found = shutil.which(name) or (str(installed[-1]) if installed else None)
    if found is None:
        reason = f"{name} is not installed; on Debian: apt-get install redis-server postgresql bubblewrap"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class _Server:
    port: int
    child: Child

    def kill(self) -> None:
        """SIGKILL to the server and all of its processes."""
        os.killpg(self.child.pid, signal.SIGKILL)
        self.child.stop()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside the context, the server and all of its processes are stopped; connections stay open."""
        os.kill(self.child.pid, signal.SIGSTOP)  # first, so that it starts no others
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.child.pid)], capture_output=True, text=True)
        others = [int(pid) for pid in found.stdout.split()]  # those of PostgreSQL, each in a separate process group
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in [*others, self.child.pid]:
                os.kill(pid, signal.SIGCONT)

    def stop(self) -> None:
        self.child.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class RedisServer(_Server):
    """redis-server with an append-only file in `folder`, so that a restart keeps its data."""

    def __init__(self, folder: Path, *, password: str = "") -> None:
        self.folder, self.password, self.port = folder, password, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        secret = f":{password}@" if password else ""
        self.url = f"redis://{secret}127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        command = [program("redis-server"), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        command += ["--appendonly", "yes", "--save", "", "--daemonize", "no"]
        if self.password:
            command += ["--requirepass", self.password]
        self.child = Child("Redis", command, env=dict(os.environ), log=self.folder / "redis.log")
        client = redis.Redis.from_url(self.url)
        _wait(lambda: client.ping(), redis.RedisError, self.child)


class S3Server(_Server):
    """moto's S3 server, which keeps its buckets in memory. It accepts any key, and requests without one."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"
        program = default_executable().with_name("moto_server")
        command = [str(program), "-H", "127.0.0.1", "-p", str(self.port)]
        self.child = Child("S3", command, env=dict(os.environ), log=folder / "s3.log")
        self.child.wait_healthy(f"{self.url}/moto-api/", timeout=120)

    def put(self, bucket: str, files: Mapping[str, bytes]) -> None:
        """Store files; creates the bucket."""
        with httpx.Client(base_url=self.url, trust_env=False) as http:
            http.put(f"/{bucket}").raise_for_status()
            for key, content in files.items():
                http.put(f"/{bucket}/{key}", content=content).raise_for_status()

    def delete(self, bucket: str, key: str) -> None:
        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/s3/aws4_request, Signature=0"}
        httpx.delete(f"{self.url}/{bucket}/{key}", headers=signed, trust_env=False).raise_for_status()


class PostgresServer(_Server):
    """A separate PostgreSQL cluster; connections by TCP and password only."""

    def __init__(
        self, *, user: str = "scanqueue", password: str = "only-for-tests", folder: Path | None = None
    ) -> None:
        """folder: an empty folder that every user can reach; default: a new one."""
        self.user, self.password, self.port = user, password, free_port()
        # the server refuses to run as root, and its user must be able to reach the folder
        self.folder = folder or Path(tempfile.mkdtemp(prefix="scanqueue-postgres-"))
        self._as: list[str] = []
        if os.getuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        secret = self.folder / "password"
        secret.write_text(password)
        secret.chmod(0o644)
        initdb = [program("initdb"), "-D", str(self.folder / "data"), "-U", user, "--pwfile", str(secret)]
        initdb += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
        subprocess.run([*self._as, *initdb], check=True, stdout=subprocess.DEVNULL, cwd=self.folder)
        self.start()

    def start(self) -> None:
        command = [program("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), "-h", "127.0.0.1"]
        command += ["-c", "unix_socket_directories="]
        self.child = Child(
            "PostgreSQL", [*self._as, *command], env=dict(os.environ) | {"LC_ALL": "C"}, log=self.folder / "log"
        )
        _wait(lambda: psycopg.connect(self.url("postgres")).close(), psycopg.OperationalError, self.child)

    def url(self, database: str) -> str:
        return f"postgresql://{self.user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def new_database(self, name: str) -> str:
        """Create a database and return its address."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
        return self.url(name)

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _wait(answers: object, error: type[Exception], child: Child) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            answers()  # type: ignore[operator]
            return
        except error:
            if not child.running or time.monotonic() > until:
                raise AssertionError(f"{child.name} did not start:\n{child.tail()}") from None
            time.sleep(0.05)


class DaskCluster:
    """A Dask scheduler and workers, each in a process group and a mount namespace of its own.

    environment  of the workers: settings of scanqueue
    hidden       a folder that is empty for all of them, as on another machine
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], *, hidden: Path, workers: int = 2) -> None:
        self.folder, self.environment, self.hidden, self.port = folder, environment, hidden, free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.workers: list[Child] = []
        self.start_scheduler()
        for _ in range(workers):
            self.start_worker()

    def start_scheduler(self) -> None:
        """Returns when it accepts connections."""
        arguments = ["--host", "127.0.0.1", "--port", str(self.port), "--dashboard-address", "127.0.0.1:0"]
        self.scheduler = self._start("scheduler", arguments)
        until = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert time.monotonic() < until, self.scheduler.tail()
            time.sleep(0.1)

    def start_worker(self) -> None:
        folder = self.folder / f"worker-{len(self.workers)}"
        folder.mkdir(parents=True)
        options = {"--host": "127.0.0.1", "--nthreads": "1", "--local-directory": str(folder), "--death-timeout": "60"}
        arguments = [self.address, "--no-dashboard", *(word for pair in options.items() for word in pair)]
        self.workers.append(self._start("worker", arguments))

    def _start(self, kind: str, arguments: Sequence[str]) -> Child:
        self.folder.mkdir(parents=True, exist_ok=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SCANQUEUE_")}
        environment = clean | {"OMP_NUM_THREADS": "1"} | dict(self.environment)
        apart = [program("bwrap"), "--dev-bind", "/", "/", "--tmpfs", str(self.hidden), "--die-with-parent"]
        command = [*apart, sys.executable, "-m", "dask", kind, *arguments]
        return Child(f"dask {kind}", command, env=environment, log=self.folder / f"{kind}.log")

    def kill(self, child: Child) -> None:
        """SIGKILL to a scheduler or worker and its processes."""
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in (*self.workers, self.scheduler):
            self.kill(child)
