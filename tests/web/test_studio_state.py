"""The notice about Label Studio above every view: it appears, disappears, and delays no page."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from page_lab import Lab, make_app
from test_page import HTML, VIEWS

from backend.errors import StudioUnavailable
from backend.web import studio_state
from backend.web.overview import Overview
from backend.web.studio_state import StudioState
from backend.web.texts import text

DOWN = "Label Studio at http://127.0.0.1:8080/ does not answer (ConnectError)."


class Asked:
    """A Label Studio that answers, fails, or keeps us waiting until `go` is set."""

    def __init__(self) -> None:
        self.times = 0
        self.error: Exception | None = None
        self.go = threading.Event()
        self.go.set()

    def __call__(self) -> None:
        self.times += 1
        self.go.wait(20)
        if self.error:
            raise self.error


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    monkeypatch.setattr(studio_state, "EVERY", 0.0)
    monkeypatch.setattr(studio_state, "SLOW", 0.3)
    monkeypatch.setattr(studio_state, "PATIENCE", 0.1)
    found = Asked()
    yield found
    found.go.set()


def soon(state: StudioState, words: str) -> None:
    until = time.monotonic() + 10
    while state.notice() != words:
        assert time.monotonic() < until, state.notice()
        time.sleep(0.02)


def test_an_outage_is_said_at_once_and_its_end_as_well(asked: Asked) -> None:
    state = StudioState(asked)
    assert state.notice() == ""
    asked.error = StudioUnavailable(DOWN)
    soon(state, DOWN)
    asked.error = None
    soon(state, "")


def test_a_label_studio_that_hangs_delays_no_view_and_is_reported(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StudioState(asked)
    asked.go.clear()
    began = time.monotonic()
    assert state.notice() == ""  # not slow yet
    assert time.monotonic() - began < 5
    while "has not answered for" not in (said := state.notice()):
        assert time.monotonic() - began < 60, said
        time.sleep(0.02)
    assert asked.times == 1  # one request, however many views were opened meanwhile
    monkeypatch.setattr(studio_state, "EVERY", 3600.0)  # else the next request, which is fast, may come first
    asked.go.set()
    slow = text("notice.slow", seconds=0).partition(":")[0]
    while not state.notice().startswith(slow):
        assert time.monotonic() - began < 60
    monkeypatch.setattr(studio_state, "EVERY", 0.0)
    soon(state, "")


def test_many_views_send_few_requests(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studio_state, "EVERY", 3600.0)
    state = StudioState(asked)
    threads = [threading.Thread(target=state.notice) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked.times == 1


def test_an_unexpected_failure_is_said_too(asked: Asked) -> None:
    asked.error = RuntimeError("?")
    assert "RuntimeError" in StudioState(asked).notice() + StudioState(asked).notice()


@pytest.mark.parametrize("address", [*VIEWS.values(), "/notice", "/nowhere", "/projects/9"])
def test_every_view_says_that_label_studio_does_not_answer(address: str) -> None:
    lab = Lab()
    http = TestClient(make_app(lab), raise_server_exceptions=False)
    assert DOWN not in http.get(address, headers=HTML).text
    lab.notice = DOWN
    answer = http.get(address, headers=HTML).text
    assert answer.count(DOWN) == 1
    assert text("notice.meaning") in answer


def test_now_does_not_say_the_same_twice() -> None:
    lab = Lab()
    lab.notice = lab.one["trouble"] = DOWN
    answer = TestClient(make_app(lab)).get(VIEWS["now"], headers=HTML).text
    assert answer.count(DOWN) == 1


def test_the_activity_view_asks_nothing_of_a_label_studio_that_does_not_answer() -> None:
    def never(*_: object) -> None:
        raise AssertionError("asked")

    store = SimpleNamespace(labels=lambda project: [])
    studio = SimpleNamespace(tasks_with_drafts=never, user_names=never)
    seen = Overview(store, studio, SimpleNamespace(), lambda _: [], lambda: DOWN)  # type: ignore[arg-type]
    assert seen.activity(4) == {"lately": [], "now": [], "note": DOWN}
