"""A limit on the time of a whole request, whatever arrives meanwhile.

The timeouts of httpx apply to each piece that arrives, so an answer that comes byte by byte would never end.
"""

from __future__ import annotations

import ssl
import time
from typing import Any

import httpcore
import httpx

PATIENCE = 60.0  # seconds for any request, or more where its timeout is longer
RATE = 1024  # bytes that a request has to move for each further second
LONGEST = 600.0  # seconds of any request; the supervisor takes a worker for hung after 900
PIECE = 16_384  # bytes that are sent at once


class TooSlow(httpcore.ReadTimeout):
    """A request was given up, as too little moved for its time; httpx raises it as `ReadTimeout`."""


def too_slow(error: BaseException) -> str:
    """How slowly the answer came, if that is why httpx raised this error; else ""."""
    return str(error) if isinstance(error.__cause__, TooSlow) else ""


def limited(client: httpx.Client) -> httpx.Client:
    """The client, whose requests from now on end after a time that depends on what they move."""
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):  # httpx has no other way in that keeps proxies
            pool = transport._pool
            pool._network_backend = _Backend(pool._network_backend)
    return client


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(self, *given: Any, **how: Any) -> httpcore.NetworkStream:
        return _Stream(self._inner.connect_tcp(*given, **how))

    def connect_unix_socket(self, *given: Any, **how: Any) -> httpcore.NetworkStream:
        return _Stream(self._inner.connect_unix_socket(*given, **how))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    """A connection that measures each of its requests, from the first byte that is sent."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner
        self._began = time.monotonic()
        self._moved = 0
        self._answered = True

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        left = self._left(timeout)
        try:
            data = self._inner.read(max_bytes, left if timeout is None else min(timeout, left))
        except httpcore.ReadTimeout:
            self._left(timeout)
            raise
        self._answered = True
        self._moved += len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._answered:  # a new request
            self._began, self._moved, self._answered = time.monotonic(), 0, False
        for start in range(0, len(buffer), PIECE):
            self._left(timeout)
            piece = buffer[start : start + PIECE]
            self._inner.write(piece, timeout)
            self._moved += len(piece)

    def _left(self, timeout: float | None) -> float:
        """Seconds until the request has to end, as far as is known. Raises TooSlow when none are left."""
        spent = time.monotonic() - self._began
        left = min(max(PATIENCE, timeout or 0.0) + self._moved / RATE, LONGEST) - spent
        if left <= 0:
            raise TooSlow(f"{self._moved} bytes in {spent:.0f} seconds")
        return left

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
