"""Guessing passwords is slow, and nobody who has the right one is locked out. For nginx, see `test_proxy`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from backend.records.store import Store
from backend.settings import Settings
from backend.web import api, guesses
from backend.web.guesses import ADDRESSES, FREE, KEPT, LONGEST, Guesses, TooManyGuesses, network_of

RIGHT = ("lab", "reading-room")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Door:
    """Guesses with a clock that the test sets; counts the comparisons."""

    def __init__(self) -> None:
        self.clock, self.compared = Clock(), 0
        self.guesses = Guesses(self.clock)

    def knock(self, password: str, address: str = "10.0.0.1") -> int:
        """0: wrong, 1: right, else minus the seconds to wait."""

        def compare() -> bool:
            self.compared += 1
            return password == "right"

        try:
            return int(self.guesses.right(address, password, compare))
        except TooManyGuesses as error:
            return -error.seconds


def test_each_wrong_password_after_the_tenth_doubles_the_wait() -> None:
    door = Door()
    assert [door.knock(f"guess-{n}") for n in range(FREE)] == [0] * FREE
    waits = []
    for n in range(10):
        wait = -door.knock(f"more-{n}")
        waits.append(wait)
        door.clock.now += wait
        assert door.knock(f"then-{n}") == 0
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_a_day_of_guessing_at_full_speed_compares_few_passwords() -> None:
    door, n = Door(), 0
    until = door.clock.now + 86400
    while door.clock.now < until:
        n += 1
        door.knock(f"guess-{n}")
        door.clock.now += 0.5
    assert n > 170_000
    assert door.compared < 1500


def test_while_an_address_waits_the_right_password_is_answered_like_any_other() -> None:
    door = Door()
    for n in range(FREE):
        door.knock(f"guess-{n}")
    before = door.compared
    assert (door.knock("right"), door.knock("wrong")) == (-1, -1)
    assert door.compared == before
    assert door.knock("right", "10.0.0.2") == 1  # another address does not wait
    assert door.knock("right") == -1  # not even after that
    door.clock.now += 1
    assert door.knock("right") == 1


def test_what_was_right_before_never_waits_and_does_not_help_who_guesses() -> None:
    """Label Studio, and somebody who guesses, at one address."""
    door = Door()
    assert door.knock("right") == 1
    for n in range(300):
        door.knock(f"guess-{n}")
        assert door.knock("right") == 1
        door.clock.now += 0.1
    assert door.compared < FREE + 10


def test_an_old_password_that_is_sent_again_and_again_does_not_count() -> None:
    door = Door()
    assert {door.knock("old password") for _ in range(1000)} == {0}
    assert door.compared == 1
    assert door.knock("right") == 1  # corrected in Settings > Model


def test_an_address_starts_afresh_after_an_hour_and_trying_early_does_not_prolong_the_wait() -> None:
    door = Door()
    for n in range(FREE + 1):
        door.knock(f"guess-{n}")
        door.clock.now += 0.2
    wait = -door.knock("x")
    for _ in range(50):
        door.knock("y")
    assert -door.knock("z") == wait
    door.clock.now += guesses.FORGOTTEN + 1
    assert [door.knock(f"again-{n}") for n in range(FREE)] == [0] * FREE


def test_memory_is_bounded() -> None:
    door = Door()
    for n in range(ADDRESSES + 500):
        door.knock("wrong", f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
    for n in range(500):
        door.knock(f"{'x' * 10_000}{n}", "10.9.9.9")
        door.clock.now += LONGEST
    assert len(door.guesses._addresses) == ADDRESSES
    assert all(len(a.wrong) <= KEPT and len(a.right) <= KEPT for a in door.guesses._addresses.values())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("testclient", "testclient", True),
    ],
)
def test_senders_are_told_apart_by_what_they_cannot_choose(one: str, other: str, same: bool) -> None:
    assert (network_of(one) == network_of(other)) is same


@given(st.text(max_size=100))
def test_any_text_is_an_address(text: str) -> None:
    assert len(network_of(text)) <= 64


# -- the server ----------------------------------------------------------------------------------


def make_app(folder: Path) -> Any:
    store = Store(folder)
    store.add_project(4)
    settings = Settings(data_dir=folder, user=RIGHT[0], password=RIGHT[1])
    return api.create_api(settings, store, lambda *_: None, lambda *_: []), store


def test_the_server_answers_429_with_the_seconds_to_wait(tmp_path: Path) -> None:
    app, store = make_app(tmp_path)
    studio = TestClient(app, client=("10.0.0.7", 1))
    other = TestClient(app, client=("10.0.0.8", 1))
    assert studio.get("/versions", auth=RIGHT).status_code == 200
    assert [studio.get("/versions", auth=("lab", f"{n}")).status_code for n in range(FREE)] == [401] * FREE
    answer = other.get("/versions", auth=("lab", "first"))
    assert answer.status_code == 401
    answer = studio.get("/versions", auth=("lab", "next"))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert "Try again in 1 s" in answer.json()["error"]
    assert "content-security-policy" in answer.headers
    assert studio.get("/versions", auth=RIGHT).status_code == 200
    assert studio.get("/health").status_code == 200
    assert studio.get("/versions").status_code == 401  # a browser that has not asked for a password yet
    secret = {"X-Scanqueue-Secret": store.secrets()[4]}
    hook = {"action": "ANNOTATION_CREATED", "project": {"id": 4}}
    for auth in (None, ("lab", "old password")):
        assert studio.post("/webhook", json=hook, headers=secret, auth=auth).status_code == 201


def test_guesses_sent_at_once_are_no_faster(tmp_path: Path) -> None:
    app, _ = make_app(tmp_path)

    async def all_at_once() -> list[int]:
        transport = httpx.ASGITransport(app, client=("10.0.0.9", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            asked = [client.get("/versions", auth=("lab", f"guess-{n}")) for n in range(200)]
            asked.append(client.get("/versions", auth=RIGHT))
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    codes = asyncio.run(all_at_once())
    assert codes.count(401) <= FREE + 1
    assert codes[-1] == 429
    assert set(codes) == {401, 429}
