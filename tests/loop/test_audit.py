"""Changes on the page: they take effect at the next reconciliation, are recorded, and can be undone."""

from __future__ import annotations

import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import PostgresServer
from world import COLD, DEPTH, PROJECT, ROUND, Ready, World

from backend.errors import BadSetting
from backend.loop import audit
from backend.loop.project_settings import row_settings
from backend.loop.publication import publication
from backend.loop.stored import stored
from backend.records.store import Store

pytestmark = pytest.mark.usefixtures("miniature")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return Ready(tmp_path / "data")


def queue(world: World) -> list[int]:
    return list(world.status()["queue"])


def test_prioritized_scans_are_served_next_and_the_priority_can_be_undone(world: World) -> None:
    before = queue(world.cold_started())
    prioritized = [before[-1], next(t for t in world.order() if t not in before)]
    number = audit.set_priorities(world.store, PROJECT, "anna", prioritized, "next")
    world.run()
    assert set(queue(world)[:2]) == set(prioritized)
    assert world.studio.next_task() in prioritized
    assert {p.reason for p in world.picks()[:2]} == {"wished"}
    audit.undo(world.store, PROJECT, "ben", number)
    world.run()
    assert world.order()[:DEPTH] == before[:DEPTH]


def test_excluded_scans_are_not_published_until_they_are_restored(world: World) -> None:
    before = queue(world.cold_started())
    audit.set_priorities(world.store, PROJECT, "anna", before[:2], "out")
    world.run()
    assert not set(before[:2]) & (set(world.order()) | set(world.published()))
    assert len(queue(world)) >= DEPTH
    assert world.studio.next_task() == queue(world)[0]
    assert world.status()["left_out"] == 2
    audit.set_priorities(world.store, PROJECT, "anna", before[:2], "none")
    world.run()
    assert queue(world)[:DEPTH] == before[:DEPTH]


def test_scans_excluded_while_a_training_is_due_are_not_published_again_meanwhile(world: World) -> None:
    world.cold_started()
    first = queue(world)[0]
    world.studio.predictions = [
        p for p in world.studio.predictions if p["task"] != first
    ]  # somebody removed it in Label Studio
    audit.set_priorities(world.store, PROJECT, "anna", [first], "out")
    reconciler = world.reconciler()
    seen = reconciler.observer.observe(PROJECT)
    latest = stored(reconciler.context, PROJECT, seen).rounds[-1]
    assert first in latest.order
    found = publication(latest, seen, row_settings(dict(world.store.project(PROJECT) or {})))
    assert found is None or first not in found.tasks
    assert first not in queue(world)


def test_the_priority_of_a_broken_scan_opens_no_round_not_even_once_it_is_fixed(world: World) -> None:
    world.cold_started()
    task = queue(world)[-1]
    audit.set_priorities(world.store, PROJECT, "anna", [task], "next")
    world.run()
    rounds = len(world.store.rounds(PROJECT))
    world.store.set_scans(PROJECT, [{"task": task, "problem": "gone"}])
    world.run()
    world.store.retry(PROJECT, task)
    world.run()
    assert len(world.store.rounds(PROJECT)) == rounds


def test_alpha_opens_a_round_only_if_the_strategy_uses_it(world: World) -> None:
    version = world.in_round_1().studio.model_version
    audit.set_overrides(world.store, PROJECT, "anna", {"alpha": 0.9})
    world.run()
    assert world.studio.model_version == version


def test_a_cold_start_may_be_larger_than_this_pool_but_not_than_any_pool(world: World) -> None:
    with pytest.raises(BadSetting, match="it must be at most 1000000"):
        audit.set_overrides(world.store, PROJECT, "anna", {"cold_start_size": 10**30})
    audit.set_overrides(world.store, PROJECT, "anna", {"cold_start_size": 1_000_000, "control_share": 0.5})
    world.cold_started()
    assert sorted(world.order()) == sorted(s["task"] for s in world.store.scans(PROJECT))


def test_concurrent_changes_are_all_kept(world: World, postgres: PostgresServer) -> None:
    for store in (world.store, Store(world.folder, postgres.new_database(f"changes-{secrets.token_hex(6)}"))):
        store.add_project(PROJECT)
        names = ("alpha", "tolerance", "control_share", "seed")
        with ThreadPoolExecutor(4) as people:
            made = [
                people.submit(audit.set_overrides, store, PROJECT, n, {n: 0 if n == "seed" else 0.25}) for n in names
            ]
            made += [people.submit(audit.request_training, store, PROJECT, str(n)) for n in range(12)]
            numbers = [one.result() for one in made]
        assert sorted(numbers) == list(range(1, 17))
        row = store.project(PROJECT)
        assert row is not None
        assert set(json.loads(row["overrides"])) == set(names)


def test_labelling_prioritized_scans_opens_no_round(world: World) -> None:
    world.in_round_1()
    prioritized = world.order()[-1]
    audit.set_priorities(world.store, PROJECT, "anna", [prioritized], "next")
    world.run()
    version = world.studio.model_version
    assert queue(world)[0] == prioritized
    assert world.label(1) == [prioritized]
    world.run()
    assert world.studio.model_version == version
    assert world.status()["labelled"] == COLD + 1


def test_a_priority_overrides_a_skip(world: World) -> None:
    world.in_round_1()
    first = queue(world)[0]
    world.studio.skip(first)
    world.set(alpha=0.75, strategy="paper")  # another order, in which skipped scans come last
    assert world.order()[-1] == first
    audit.set_priorities(world.store, PROJECT, "anna", [first], "next")
    world.run()
    assert world.order()[0] == first


def test_with_all_others_labelled_the_project_is_done_and_reports_the_excluded_scans(world: World) -> None:
    world.in_round_1()
    out = world.order()[-2:]
    audit.set_priorities(world.store, PROJECT, "anna", out, "out")
    world.run()
    while left := [t for t in world.status()["queue"] if t not in out]:
        for task in left:
            world.submit(task)
        world.run()
    found = world.status()
    assert found["phase"] == "done"
    assert found["reason"] == "Every scan is labelled except 2 left out of the order."


def test_excluding_all_scans_before_any_label_empties_the_queue_and_can_be_undone(world: World) -> None:
    everything = world.cold_started().order()
    audit.set_priorities(world.store, PROJECT, "anna", everything, "out")
    world.run()
    assert (world.order(), world.status()["trouble"]) == ([], "")
    assert queue(world) == []
    audit.set_priorities(world.store, PROJECT, "anna", everything, "none")
    world.run()
    assert world.order() == everything


def test_new_scans_are_added_to_an_order_with_excluded_scans(world: World) -> None:
    out = queue(world.cold_started())[:1]
    audit.set_priorities(world.store, PROJECT, "anna", out, "out")
    world.run()
    late = world.add_scans(50, 2)
    world.run()
    assert set(late) <= set(world.order())
    assert not set(out) & set(world.order())


def test_a_setting_on_the_page_overrides_label_studio_and_can_be_undone(world: World) -> None:
    world.in_round_1()
    number = audit.set_overrides(world.store, PROJECT, "anna", {"round_size": 2, "strategy": "paper"})
    world.set(round_size=5)
    latest = world.store.latest_round(PROJECT)
    assert latest is not None
    used = json.loads(latest["settings"])
    assert (used["round_size"], used["strategy"]) == (2, "paper+paper")
    audit.undo(world.store, PROJECT, "anna", number)
    world.run()
    latest = world.store.latest_round(PROJECT)
    assert latest is not None
    assert json.loads(latest["settings"])["strategy"] == "medoids+power-entropy"


def test_null_resets_a_setting_to_the_value_in_label_studio(world: World) -> None:
    audit.set_overrides(world.store, PROJECT, "anna", {"round_size": 2, "alpha": 0.25})
    audit.set_overrides(world.store, PROJECT, "anna", {"round_size": None})
    row = world.store.project(PROJECT)
    assert row is not None
    assert json.loads(row["overrides"]) == {"alpha": 0.25}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"alpha": 2}, "alpha is 2; it must be from 0 to 1"),
        ({"alfa": 0.5}, "'alfa' is not a project setting"),
        ({"alfa": None}, "'alfa' is not a project setting"),
        ({"strategy": "luck"}, "wanted default, one of"),
        ({"strategy": "stratified"}, "set stratify_by"),
        ({}, "Nothing was changed"),
    ],
)
def test_an_invalid_setting_is_refused_and_changes_nothing(given: dict[str, object], words: str, world: World) -> None:
    with pytest.raises(BadSetting, match=words):
        audit.set_overrides(world.store, PROJECT, "anna", given)
    row = world.store.project(PROJECT)
    assert row is not None
    assert row["overrides"] == ""
    assert audit.listed(world.store, PROJECT) == []


def test_a_later_change_stays_when_an_earlier_one_is_undone(world: World) -> None:
    world.cold_started()
    one, two, three = queue(world)[:3]
    first = audit.set_priorities(world.store, PROJECT, "anna", [one, two], "next")
    audit.set_priorities(world.store, PROJECT, "ben", [two, three], "out")
    audit.undo(world.store, PROJECT, "anna", first)
    assert dict(world.store.columns(PROJECT, "task", "priority")) | {one: 0, two: -1, three: -1} == dict(
        world.store.columns(PROJECT, "task", "priority")
    )


def test_changes_show_their_author_and_whether_they_were_undone(world: World) -> None:
    world.cold_started()
    number = audit.set_priorities(world.store, PROJECT, "anna", queue(world)[:2], "next")
    audit.undo(world.store, PROJECT, "ben", number)
    undo, made = audit.listed(world.store, PROJECT)
    assert (made["user"], made["what"], made["undone"], made["undoable"]) == (
        "anna",
        "2 scans to be labelled next",
        True,
        False,
    )
    assert (undo["user"], undo["what"], undo["undone"]) == ("ben", "2 scans back in the usual order", False)
    with pytest.raises(BadSetting, match="is already undone"):
        audit.undo(world.store, PROJECT, "ben", number)


def test_an_activated_older_model_predicts_and_undo_restores_the_newer_one(world: World) -> None:
    world.set(tolerance=1.0)  # the newer one is accepted however good it is
    world.in_round_1().label(ROUND)
    world.run()
    newest = world.status()["model"]
    assert newest == "scanqueue-r2"
    number = audit.activate(world.store, PROJECT, "anna", "scanqueue-r1")
    world.run()
    assert world.status()["model"] == "scanqueue-r1"
    latest = world.store.latest_round(PROJECT)
    assert latest is not None
    assert latest["model"] == "scanqueue-r1"
    audit.undo(world.store, PROJECT, "anna", number)
    world.run()
    assert world.status()["model"] == newest


def test_a_broken_scan_is_read_again_at_once_on_request(world: World) -> None:
    world.cold_started()
    task = world.studio.add_scans([b"no image"])[0]
    world.run()
    assert [p["task"] for p in world.status()["problems"]] == [task]
    good = world.add_scans(70, 1)[0]
    world.studio.images[world.studio.reference(task)] = world.studio.images[world.studio.reference(good)]
    world.run()
    assert [p["task"] for p in world.status()["problems"]] == [task]  # it is retried only after ten minutes
    audit.retry(world.store, PROJECT, "anna", task)
    world.run()
    assert world.status()["problems"] == []
    assert task in world.order()


def test_an_unknown_task_or_priority_is_refused(world: World) -> None:
    world.cold_started()
    with pytest.raises(BadSetting, match="has no task 999"):
        audit.set_priorities(world.store, PROJECT, "anna", [999], "next")
    with pytest.raises(BadSetting, match="must be one of next, out, none"):
        audit.set_priorities(world.store, PROJECT, "anna", queue(world)[:1], "soon")
    with pytest.raises(BadSetting, match="has no change 7"):
        audit.undo(world.store, PROJECT, "anna", 7)


def test_undoing_a_change_that_was_changed_again_is_refused_with_the_reason(world: World) -> None:
    number = audit.set_overrides(world.store, PROJECT, "anna", {"alpha": 0.25})
    audit.set_overrides(world.store, PROJECT, "ben", {"alpha": 0.75})
    with pytest.raises(BadSetting, match=r"\(alpha: 0.25\) cannot be undone: its settings were changed again"):
        audit.undo(world.store, PROJECT, "anna", number)


def test_setting_the_current_value_is_no_change(world: World) -> None:
    world.in_round_1()
    with pytest.raises(BadSetting, match="scanqueue-r1 is already active"):
        audit.activate(world.store, PROJECT, "anna", "scanqueue-r1")
    with pytest.raises(BadSetting, match="no longer has a problem"):
        audit.retry(world.store, PROJECT, "anna", world.order()[0])
    assert audit.listed(world.store, PROJECT) == []
