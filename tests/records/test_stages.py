"""How far scans have come: what the database says is what counting one by one says, for any state."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

from backend.facts import Counts, Stage
from backend.records.scans import scan_of
from backend.records.stages import Basis, Recent, random_place
from backend.records.store import Store
from backend.records.tables import scan_table

PROJECT, MOST = 1, 3
RECENT = Recent(after=100.0, until=200.0)
SCANS = st.lists(
    st.fixed_dictionaries(
        {
            "annotated": st.sampled_from([0, 0, 1, 2]),
            "skipped": st.sampled_from([0, 0, 1]),
            "priority": st.sampled_from([0, 0, 0, 1, -1]),
            "problem": st.sampled_from(["", "", "broken"]),
            "problem_at": st.sampled_from([50.0, 100.0, 150.0, 200.0, 250.0]),
            "volume": st.sampled_from(["", "A", "B"]),
            "patient": st.sampled_from(["", "P"]),
            "stratum": st.sampled_from(["", "site"]),
            "digest": st.sampled_from(["d1", "d2", "d3"]),
            "stage": st.sampled_from(list(map(int, Stage))),
            "draw": st.integers(0, 5),
        }
    ),
    max_size=12,
)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    url = ""
    if request.param == "postgresql":
        url = str(request.getfixturevalue("postgres").new_database(f"stages-{secrets.token_hex(6)}"))
    store = Store(tmp_path_factory.mktemp("stages"), url)
    store.add_project(PROJECT)
    return store


def put(store: Store, rows: list[dict[str, Any]]) -> None:
    with store.write() as connection:
        connection.execute(scan_table.delete())
        for task, row in enumerate(rows, start=1):
            connection.execute(scan_table.insert(), {"project": PROJECT, "task": task, **row})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@drawn(SCANS, st.sampled_from(["slice", "scan"]))
def test_scans_are_counted_as_one_by_one(store: Store, rows: list[dict[str, Any]], unit: str) -> None:
    for row in rows:  # as they are recorded: a scan with a problem is read again
        row["stage"] = 0 if row["problem"] else row["stage"]
    put(store, rows)
    scans = [scan_of(row) for row in store.scans(PROJECT)]
    problem_at = {row["task"]: row["problem_at"] for row in store.scans(PROJECT)}
    seen = [s if 100 < problem_at[s.task] <= 200 else replace(s, problem="") for s in scans]
    asked = ("volumes", "groups", "strata")
    assert store.count_scans(PROJECT, RECENT, unit, asked) == Counts.of(seen, unit)
    assert store.totals(PROJECT) == (len(rows), sum(r["annotated"] for r in rows), sum(r["skipped"] for r in rows))

    needed = {row["task"] for row in store.scans_in_need(PROJECT, RECENT, MOST)}
    assert needed >= {s.task for s in scans if s.annotated or s.priority}
    for stage in Stage:
        open_ = [s for s in seen if s.stage == stage and not s.annotated and not s.priority and not s.problem]
        found = [s for s in open_ if s.task in needed]
        assert len(found) == (0 if stage is Stage.ORDERED else min(len(open_), MOST))


def test_stages_follow_what_is_stored_and_fall_back_when_it_changes(store: Store) -> None:
    put(store, [{"digest": f"d{n}"} for n in range(1, 5)] + [{"digest": ""}, {"digest": "d1", "problem": "broken"}])

    def stages() -> list[int]:
        return [row["stage"] for row in store.scans(PROJECT)]

    basis = Basis("pixels", "slice", "", 4)
    store.set_basis(PROJECT, basis)
    store.put_embeddings("pixels", ["d1", "d2", "d3"], np.zeros((3, 2), np.float32))
    store.raise_stages(PROJECT, basis, Stage.MAPPED, frozenset())
    assert stages() == [1, 1, 1, 0, 0, 0]
    store.set_stage(PROJECT, [1, 2, 4], Stage.MAPPED)
    assert stages() == [2, 2, 1, 0, 0, 0]
    store.raise_stages(PROJECT, basis, Stage.MAPPED, frozenset({2}))  # in the order already
    assert stages() == [2, 4, 1, 0, 0, 0]

    trained = basis._replace(model="m|top")
    store.set_basis(PROJECT, trained)
    assert stages() == [2, 2, 1, 0, 0, 0]
    store.put_uncertainty("m", {"d1": {"image": 0.1}, "d2": {"image": 0.1, "top": 0.2}})
    store.raise_stages(PROJECT, trained, Stage.SCORED, frozenset({1, 2}))
    assert stages() == [2, 4, 1, 0, 0, 0]  # the first lacks a measure that the strategy needs

    store.set_basis(PROJECT, trained._replace(map="scan"))
    assert stages() == [1, 1, 1, 0, 0, 0]
    store.set_basis(PROJECT, trained._replace(embedder="other"))
    assert stages() == [0] * 6
    store.raise_stages(PROJECT, basis, Stage.MAPPED, frozenset())
    with store.write() as connection:
        connection.exec_driver_sql("DELETE FROM embedding WHERE digest = 'd2'")
    store.check_embeddings(PROJECT, "pixels")
    assert stages() == [1, 0, 1, 0, 0, 0]


def test_an_image_that_was_replaced_or_broke_is_at_the_first_stage_again(store: Store) -> None:
    put(store, [{"digest": "d1", "stage": 4}, {"digest": "d2", "stage": 4}, {"digest": "d3", "stage": 4}])
    store.set_scans(PROJECT, [{"task": 1, "digest": "d1", "problem": ""}, {"task": 2, "digest": "new", "problem": ""}])
    store.set_scans(PROJECT, [{"task": 3, "problem": "broken"}])
    assert [row["stage"] for row in store.scans(PROJECT)] == [4, 0, 0]


def test_every_beginning_of_the_random_order_has_slices_of_all_volumes() -> None:
    places = {(v, s): random_place(64 * v + s, f"V{v}", s) for v in range(20) for s in range(40)}
    first = sorted(places, key=lambda one: places[one])
    assert len({volume for volume, _ in first[:30]}) == 20
    assert max(sum(v == volume for v, _ in first[:100]) for volume in range(20)) <= 7
    single = [random_place(task, "", 0) for task in range(1, 1001)]
    assert abs(np.mean(single) / 2**32 - 0.5) < 0.05
    assert len(set(single)) == 1000
