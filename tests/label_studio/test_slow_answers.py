"""A server that answers byte by byte: each request ends in time, with a sentence. A real server on loopback."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import PROJECT, World

from backend.errors import StudioUnavailable, UnreadableScan
from backend.label_studio import slow_answers
from backend.label_studio.studio import Studio

PATIENCE = 0.6  # seconds, instead of a minute
SOON = 3.0
PAGE = json.dumps({"id": 1, "title": "x" * 2000}).encode()


class Dripping:
    """Answers one byte every `pause` seconds, from the place that the path names; `/api/whole` at once.

    /headers  from the status line on
    /body     after the headers
    /deaf     reads no body and answers nothing
    """

    def __init__(self) -> None:
        self.pause, self.piece = 0.05, 1
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._closing = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                path = connection.recv(1024).split(b" ")[1]
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(PAGE)
                if b"deaf" in path:
                    self._closing.wait(20)
                    return
                slow = head + PAGE if b"headers" in path else PAGE
                if b"headers" not in path:
                    connection.sendall(head)
                for start in range(0, len(slow), self.piece):
                    connection.sendall(slow[start : start + self.piece])
                    if self._closing.wait(self.pause):
                        return
            except OSError:
                pass  # we closed the connection, as intended

    def close(self) -> None:
        self._closing.set()
        self._server.close()


@pytest.fixture
def dripping(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dripping]:
    monkeypatch.setattr(slow_answers, "PATIENCE", PATIENCE)
    server = Dripping()
    yield server
    server.close()


def ours(server: Dripping, *hosts: str) -> Studio:
    return Studio(server.url if not hosts else "http://label-studio.invalid", "0" * 40, image_hosts=hosts, timeout=0.5)


@pytest.mark.parametrize("place", ["headers", "body"])
def test_an_answer_that_drips_ends_with_a_sentence(place: str, dripping: Dripping) -> None:
    began = time.monotonic()
    with pytest.raises(StudioUnavailable) as told:
        ours(dripping)._read(f"/api/{place}", dict)
    assert PATIENCE <= time.monotonic() - began < SOON
    for words in (dripping.url, f"too slowly to /api/{place}", "bytes in 1 seconds", "retries every minute", "proxies"):
        assert words in str(told.value)


def test_a_server_that_reads_nothing_ends_with_a_sentence(dripping: Dripping) -> None:
    began = time.monotonic()
    with pytest.raises(StudioUnavailable, match=dripping.url):
        ours(dripping)._call("POST", "/api/deaf", content=bytes(2**24))
    assert time.monotonic() - began < SOON


def test_an_answer_on_a_slow_line_is_waited_for(dripping: Dripping, monkeypatch: pytest.MonkeyPatch) -> None:
    dripping.pause, dripping.piece = 0.1, 150  # 1.5 KB a second, and 1.4 seconds in all
    assert ours(dripping)._read("/api/body", dict) == json.loads(PAGE)
    monkeypatch.setattr(slow_answers, "LONGEST", 1.0)
    with pytest.raises(StudioUnavailable, match="too slowly"):
        ours(dripping)._read("/api/body", dict)


@pytest.mark.parametrize("place", ["headers", "body"])
@pytest.mark.parametrize("of", ["Label Studio", "another host"])
def test_a_scan_that_drips_is_a_problem_of_this_scan(place: str, of: str, dripping: Dripping) -> None:
    studio = ours(dripping) if of == "Label Studio" else ours(dripping, "127.0.0.1")
    began = time.monotonic()
    with pytest.raises(UnreadableScan) as told:
        studio.image(f"{dripping.url}/data/upload/1/{place}")
    assert time.monotonic() - began < SOON
    for words in (f"'{place}' arrived too slowly from 127.0.0.1:{dripping.port}", "proxies", "retries later"):
        assert words in str(told.value)


@pytest.mark.usefixtures("miniature")
def test_a_pool_goes_on_without_a_scan_that_drips(dripping: Dripping, tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    tasks = world.add_scans(0, 8)
    fetch, studio = world.studio.image, ours(dripping)

    def image(reference: str) -> bytes:
        if f"{tasks[3]:08x}" in reference:
            return studio.image(f"{dripping.url}/data/upload/1/headers")
        return fetch(reference)

    world.studio.image = image  # type: ignore[method-assign]
    world.run()
    ((task, text),) = world.store.problems(PROJECT)
    assert (task, "too slowly" in text) == (tasks[3], True)
    assert sorted(world.order()) == sorted({*tasks} - {tasks[3]})
