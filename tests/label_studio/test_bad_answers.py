"""A Label Studio, or a proxy before it, that answers what was not asked: a sentence, soon."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from backend.errors import ProjectGone, StudioRefused, StudioUnavailable, UnreadableScan
from backend.label_studio.studio import Studio

SOON = 10.0  # seconds; a read is repeated twice
BUSY = "scanqueue retries every minute"
LOGIN = "/user/login/"
ANSWERS: dict[str, tuple[int, bytes, dict[str, str], type[Exception], str]] = {
    "a fault": (500, b'{"detail": "no luck"}', {}, StudioUnavailable, BUSY),
    "too many requests": (429, b"slow down", {"Retry-After": "3600"}, StudioUnavailable, BUSY),
    "a gateway": (502, b"<html>bad gateway", {}, StudioUnavailable, BUSY),
    "a page": (200, b"<html>log in", {}, StudioUnavailable, "not Label Studio"),
    "a login": (302, b"", {"Location": LOGIN}, StudioUnavailable, "not Label Studio"),
    "a revoked token": (401, b'{"detail": "Invalid token."}', {}, StudioRefused, "personal access token"),
    "a missing permission": (403, b'{"detail": "Forbidden."}', {}, StudioRefused, "403"),
    "half": (200, b'{"id": 1, "title": ', {}, StudioUnavailable, "not Label Studio"),
    "nothing": (200, b"", {}, StudioUnavailable, "not Label Studio"),
    "null": (200, b"null", {}, StudioUnavailable, "not Label Studio"),
    "a text": (200, b'"ok"', {}, StudioUnavailable, "not Label Studio"),
    "another object": (200, b'{"status": "ok"}', {}, StudioUnavailable, "not Label Studio"),
    "endless brackets": (200, b"[" * 100_000, {}, StudioUnavailable, "not Label Studio"),
    "not UTF-8": (200, b'{"id": 1, "title": "\xff"}', {}, StudioUnavailable, "not Label Studio"),
    "not compressed": (200, b"{}", {"Content-Encoding": "gzip"}, StudioUnavailable, BUSY),
}
READS: dict[str, Callable[[Studio], Any]] = {
    "project": lambda studio: studio.project(1),
    "tasks": lambda studio: list(studio.each_task(1)),
    "webhooks": lambda studio: studio.webhooks(1),
}


class Server:
    """Answers everything alike."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes, dict[str, str]] = (500, b"", {})
        self.knows_its_version = False
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body, headers = (200, b"<html>log in", {}) if self.path == LOGIN else outer.answer
                outer.asked += 1
                if outer.knows_its_version and self.path == "/api/version/":
                    status, body, headers = 200, b'{"release": "1.0"}', {}
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(body)),
                    **headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("what", ANSWERS)
def test_an_unexpected_answer_gives_a_sentence_soon(
    what: str, read: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    *answer, error, words = ANSWERS[what]
    server.answer = (answer[0], answer[1], answer[2])
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(error, match=words):
        READS[read](Studio(server.url, "0" * 40, timeout=5))
    assert sum(waited) < SOON


def test_a_project_that_is_deleted_meanwhile_is_gone(server: Server) -> None:
    server.answer = (404, b'{"detail": "Not found."}', {})
    with pytest.raises(ProjectGone, match="kept all its data"):
        Studio(server.url, "0" * 40).project(1)


def test_an_error_about_one_image_is_a_problem_of_its_scan_and_one_about_everything_is_none(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer = (500, b"<html>no luck", {})
    studio = Studio(server.url, "0" * 40)
    before = server.asked
    with pytest.raises(StudioUnavailable, match=rf"answered 500 to an image.*{BUSY}"):
        studio.image("/data/upload/1/scan.png")
    assert server.asked - before == 2
    monkeypatch.setattr(server, "knows_its_version", True)
    with pytest.raises(UnreadableScan, match="the server answered 500"):
        studio.image("/data/upload/1/scan.png")
