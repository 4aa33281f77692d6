"""A child process that ends with its parent, writes a log, and is stopped through its own process group only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from backend.errors import ScanqueueError

# Holds the read end of a pipe. When the parent dies for any reason, the pipe closes and the group is killed.
_WATCHER = """
import os, signal, sys, time
sys.stdin.buffer.read()
for sig in (signal.SIGTERM, signal.SIGKILL):
    try:
        os.killpg(int(sys.argv[1]), sig)
    except ProcessLookupError:
        break
    time.sleep(5)
"""


def free_port() -> int:
    """A loopback TCP port on which nothing listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server can listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class Child:
    """One command in its own process group.

    Ctrl-C in the terminal does not reach it, so its parent can end several children in order.
    """

    def __init__(self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path) -> None:
        """Start `command`; its output is appended to `log`."""
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCHER, str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def tail(self, lines: int = 15) -> str:
        """The last lines of the log."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 64_000))
            text = log.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def wait_healthy(self, url: str, *, timeout: float) -> float:
        """Wait until `url` answers 200 and return how many seconds this took.

        Raises ScanqueueError with the end of the log if the process exits first or `timeout` passes.
        """
        began = time.monotonic()
        with httpx.Client(trust_env=False, timeout=2) as client:
            while True:
                if not self.running:
                    code = self._process.returncode
                    raise ScanqueueError(
                        f"{self.name} ended with exit code {code} before it answered on {url}.\n"
                        f"The end of {self.log}:\n{self.tail()}"
                    )
                with contextlib.suppress(httpx.TransportError):
                    if client.get(url).status_code == 200:
                        return time.monotonic() - began
                if time.monotonic() - began > timeout:
                    raise ScanqueueError(
                        f"{self.name} did not answer on {url} within {timeout:.0f} s.\n"
                        f"The end of {self.log}:\n{self.tail()}"
                    )
                time.sleep(0.1)

    def stop(self, *, grace: float = 10.0) -> None:
        """Terminate the process; kill it after `grace` seconds. Stopping twice is harmless."""
        if self.running:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(grace)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                self._process.wait()
        if self._watcher.poll() is None:
            # kill processes that it started and left running, while the watcher prevents reuse of the pid
            self._signal(signal.SIGKILL)
            self._watcher.kill()
            self._watcher.wait()
        if self._watcher.stdin is not None:
            self._watcher.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
