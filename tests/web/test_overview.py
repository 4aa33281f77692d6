"""What the page shows of a project, compared with what the loop did."""

from __future__ import annotations

import gzip
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from world import COLD, PROJECT, ROUND, Ready, World

from backend.errors import BadSetting, Overloaded, StudioUnavailable
from backend.loop import audit
from backend.records.maps import read_map
from backend.records.rounds import Pick
from backend.records.store import Store
from backend.web import status
from backend.web.intervals import mean, median
from backend.web.learning_curve import curve
from backend.web.map_view import LABELLED, OPEN, PROBLEM, atlas
from backend.web.overview import SLOW, Overview
from backend.workers.roster import Roster

pytestmark = pytest.mark.usefixtures("miniature")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return Ready(tmp_path / "data")


def overview(world: World, studio: Any = None) -> Overview:
    return Overview(world.store, studio, SimpleNamespace(), lambda project: [])  # type: ignore[arg-type]


def column(found: dict[str, Any], name: str) -> dict[int, Any]:
    return dict(zip(found["task"], found[name], strict=True))


def test_the_map_has_the_position_and_the_rank_of_every_scan(world: World) -> None:
    world.in_round_1()
    found = atlas(world.store, PROJECT)
    row = world.store.project(PROJECT)
    assert row is not None
    placed = read_map(world.store, PROJECT, row["embedder"])
    assert placed is not None
    where = dict(zip(placed[0], placed[1].round(3).tolist(), strict=True))
    for scan in world.store.scans(PROJECT):
        i = found["task"].index(scan["task"])
        assert [found["x"][i], found["y"][i]] == where[scan["digest"]]
    assert {t: place for t, place in column(found, "rank").items() if place} == {
        t: place for place, t in enumerate(world.order(), start=1)
    }
    assert {t for t, now in column(found, "served").items() if now} == set(world.status()["queue"])
    first = world.picks()[0]
    i = found["task"].index(first.task)
    assert found["kinds"][found["kind"][i]] == first.reason == "power-entropy"
    assert found["distance"][i] == pytest.approx(first.distance, abs=1e-4)
    assert found["why"]["power-entropy"].startswith("Sampled, more likely")
    assert set(found["score"]) == {None}
    world.set(strategy="paper")
    found = atlas(world.store, PROJECT)
    first = world.picks()[0]
    assert found["score"][found["task"].index(first.task)] == pytest.approx(first.score, abs=1e-4)


def test_while_a_new_order_is_published_map_and_queue_show_the_one_before(world: World) -> None:
    world.in_round_1()
    served = world.order()
    new = {"n": 2, "key": "k", "model": "", "picks": [Pick(t, "random") for t in reversed(served)]}
    world.store.put_round(PROJECT, **new, carried=[], size=len(served), labels=0)
    waiting = [(pick["task"], pick["rank"]) for pick in status.queue(world.store, PROJECT)]
    assert waiting[0][0] == served[0]
    for places in (
        column(atlas(world.store, PROJECT), "rank"),
        {p["task"]: p["rank"] for p in status.map_points(world.store, PROJECT)},
    ):
        assert [(task, places[task]) for task, _ in waiting] == waiting


def test_the_map_marks_labelled_scans_with_their_round(world: World) -> None:
    published = set(world.cold_started().published())
    labelled = set(world.label(COLD))  # more than were published: the last were in no order
    world.run()
    found = atlas(world.store, PROJECT)
    assert {t for t, s in column(found, "state").items() if s == LABELLED} == labelled
    assert {t for t, n in column(found, "round").items() if n == 0} == published & labelled
    assert set(found["state"]) == {OPEN, LABELLED}
    assert all(e is not None for t, e in column(found, "entropy").items() if t not in labelled)


def test_a_scan_added_after_the_cold_start_belongs_to_the_cluster_of_its_nearest_neighbour(world: World) -> None:
    world.in_round_1()
    late = world.add_scans(40, 1)[0]
    world.run()
    found = atlas(world.store, PROJECT)
    xy = np.array([found["x"], found["y"]]).T
    i = found["task"].index(late)
    far = np.hypot(*(xy - xy[i]).T)
    far[i] = np.inf
    assert found["cluster"][i] == found["cluster"][int(far.argmin())] >= 0
    assert found["clusters"] == max(found["cluster"]) + 1


def test_a_scan_that_broke_later_is_a_problem_on_the_map(world: World) -> None:
    world.cold_started()
    task = world.order()[0]
    world.store.set_scans(PROJECT, [{"task": task, "problem": "gone"}])
    assert column(atlas(world.store, PROJECT), "state")[task] == PROBLEM


def test_the_packed_map_is_rebuilt_after_every_change(world: World) -> None:
    seen = overview(world.in_round_1())

    def unpacked() -> dict[str, Any]:
        return dict(json.loads(gzip.decompress(seen.packed_atlas(PROJECT))))

    first = seen.packed_atlas(PROJECT)
    assert unpacked() == atlas(world.store, PROJECT)
    assert seen.packed_atlas(PROJECT) is first
    task = world.order()[-1]
    for happens in (
        lambda: audit.set_priorities(world.store, PROJECT, "anna", [task], "next"),
        world.run,
        lambda: world.label(1),
        world.run,
        lambda: world.store.set_scans(PROJECT, [{"task": task, "problem": "gone"}]),
        lambda: world.add_scans(60, 1),
        world.run,
        lambda: world.set(alpha=0.75, strategy="paper"),
        lambda: world.studio.skip(world.order()[0]),
        world.run,
    ):
        happens()
        assert unpacked() == atlas(world.store, PROJECT)


def test_the_map_is_empty_before_any_scan_is_read(world: World) -> None:
    found = atlas(world.store, PROJECT)
    assert (found["task"], found["x"], found["kinds"], found["clusters"]) == ([], [], [], 0)


def test_the_learning_curve_has_models_held_out_scans_and_shown_masks(world: World) -> None:
    world.in_round_1().label(ROUND)
    world.run()
    found = curve(world.store, PROJECT)
    assert [m["labels"] for m in found["models"]] == [COLD, COLD + ROUND]
    for model, drawn in zip(world.store.models(PROJECT), found["models"], strict=True):
        held_out = model["details"]["held_out"]
        assert drawn["dice"] == pytest.approx(np.mean([h["dice"] for h in held_out]), abs=1e-6)
        assert drawn["n"] == len(held_out) == model["validation"]["n"]
        assert drawn["classes"]["Lung"]["dice"] == pytest.approx(drawn["dice"], abs=1e-5)
    (shown,) = found["shown"]
    assert (shown["round"], shown["labels"], shown["n"]) == (1, COLD, ROUND)
    assert shown["dice_low"] <= shown["dice"] <= shown["dice_high"]
    assert found["lead_time"] == {
        "with": {"median": 5.0, "low": 5.0, "high": 5.0, "n": ROUND},
        "without": {"median": 5.0, "low": 5.0, "high": 5.0, "n": COLD},
    }
    assert found["labels"] == ["Lung"]
    assert found["unit"] == "px"


def test_no_mean_mixes_pixels_and_millimetres_and_every_round_has_its_unit(world: World) -> None:
    numbers = {"label": "k", "dice": 0.5, "hd": 2.0, "hd95": 1.0}
    for task, version, unit in ((1, "r1", "px"), (2, "r1", "px"), (3, "r2", "px"), (4, "r2", "mm"), (5, "r3", "mm")):
        world.store.put_shown(PROJECT, {"task": task, "version": f"scanqueue-{version}", "unit": unit} | numbers)
    found = curve(world.store, PROJECT)
    assert found["unit"] == "mixed"
    assert [(row["unit"], row["hd95"]) for row in found["shown"]] == [("px", 1.0), ("mixed", None), ("mm", 1.0)]
    summaries = [status.shown_summary(world.store, PROJECT, f"scanqueue-r{n}") for n in (1, 2, 3)]
    assert [(s["unit"], s["hd95"], s["dice"]) for s in summaries] == [
        ("px", 1.0, 0.5),
        ("mixed", None, 0.5),
        ("mm", 1.0, 0.5),
    ]


def test_one_scan_has_no_interval(world: World) -> None:
    world.store.put_shown(
        PROJECT,
        {"task": 1, "version": "scanqueue-r1", "label": "k", "dice": 0.5, "hd": 2.0, "hd95": 1.0, "unit": "px"},
    )
    (shown,) = curve(world.store, PROJECT)["shown"]
    assert (shown["dice"], shown["dice_low"], shown["dice_high"]) == (0.5, None, None)


def test_a_preview_is_the_order_after_saving_and_changes_nothing(world: World) -> None:
    world.in_round_1()
    audit.set_overrides(world.store, PROJECT, "anna", {"strategy": "paper"})
    world.run()
    before = world.order()
    found = overview(world).preview(PROJECT, {"alpha": "1"})
    assert [p["task"] for p in found["now"]] == world.status()["queue"]
    assert world.order() == before
    assert [c["kind"] for c in audit.listed(world.store, PROJECT)] == ["settings"]
    audit.set_overrides(world.store, PROJECT, "anna", {"alpha": 1.0})
    world.run()
    assert [p["task"] for p in found["then"]] == world.order()
    entropies = [p["entropy"] for p in found["then"]]
    assert entropies == sorted(entropies, reverse=True)
    assert found["then"][0]["reason"].endswith("(alpha 1)")
    assert found["note"] == ""
    other = overview(world).preview(PROJECT, {"alpha": "0", "strategy": "power-entropy"})
    assert "only the strategy “paper”" in other["note"]


def test_a_preview_before_the_first_model_is_the_cold_start(world: World) -> None:
    world.cold_started()
    found = overview(world).preview(PROJECT, {"strategy": "random", "seed": "3"})
    audit.set_overrides(world.store, PROJECT, "anna", {"strategy": "random", "seed": 3})
    world.run()
    assert [p["task"] for p in found["then"]] == world.order()


def test_a_preview_that_needs_missing_signals_is_refused_with_the_reason(world: World) -> None:
    world.in_round_1()
    found = overview(world).preview(PROJECT, {"strategy": "pairwise-dice"})
    assert found["then"] == []
    assert found["note"].startswith("The model has not computed")


def test_a_preview_of_invalid_settings_is_refused(world: World) -> None:
    world.cold_started()
    with pytest.raises(BadSetting, match="it must be from 0 to 1"):
        overview(world).preview(PROJECT, {"alpha": "7"})


def test_settings_show_where_each_comes_from(world: World) -> None:
    audit.set_overrides(world.store, PROJECT, "anna", {"alpha": 0.25})
    found = overview(world).settings(PROJECT)
    assert found["settings"]["alpha"] == 0.25
    assert found["settings"]["round_size"] == found["given"]["round_size"] == ROUND
    assert found["changed"] == {"alpha": 0.25}
    assert found["default"]["alpha"] == 0.5
    world.store.set_project(PROJECT, extra_params='{"alfa": 1}')
    assert "'alfa' is not a project setting" in overview(world).settings(PROJECT)["problem"]


def test_the_interval_of_many_values_matches_resampling_at_lower_cost() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=1001)
    rows = np.random.default_rng(1).integers(len(values), size=(2000, len(values)))
    for of, numpys in ((median, np.median), (mean, np.mean)):
        wanted = np.percentile(numpys(values[rows], axis=1), [2.5, 97.5])
        found = of(values.tolist())
        assert (found["low"], found["high"]) == pytest.approx(tuple(wanted), abs=0.02)


def test_slow_requests_beyond_the_limit_are_asked_to_retry(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.web.overview.PATIENCE", 0.05)
    going, answered = threading.Event(), threading.Event()

    def examine(project: int | None) -> list[dict[str, str]]:
        going.set()
        answered.wait(30)
        return []

    seen = Overview(world.store, None, SimpleNamespace(), examine)  # type: ignore[arg-type]
    threads = [threading.Thread(target=seen.doctor, args=(None,)) for _ in range(SLOW)]
    for thread in threads:
        going.clear()
        thread.start()
        assert going.wait(30)
    with pytest.raises(Overloaded, match="Try again in a few seconds"):
        seen.curve(PROJECT)
    answered.set()
    for thread in threads:
        thread.join()
    assert seen.curve(PROJECT)["models"] == []


class Names:
    """The part of a Label Studio that knows user names."""

    def __init__(self) -> None:
        self.away = False

    def tasks_with_drafts(self, project: int) -> list[int]:
        if self.away:
            raise StudioUnavailable("Label Studio does not answer.")
        return [11]

    def user_names(self) -> dict[int, str]:
        return {1: "Anna Reader"}


def test_activity_shows_recent_labels_with_annotators_and_drafts(world: World) -> None:
    last = world.cold_started().label(3)[-1]
    world.run()
    studio = Names()
    seen = overview(world, studio)
    found = seen.activity(PROJECT)
    assert found["lately"][0] | {"at": ""} == {"task": last, "at": "", "by": "Anna Reader", "seconds": 5.0}
    assert found["now"] == [{"task": 11, "by": None}]
    assert "not whose draft it is" in found["note"]
    studio.away = True
    found = seen.activity(PROJECT)
    assert (len(found["lately"]), found["now"], found["note"]) == (3, [], "Label Studio does not answer.")


def test_a_worker_is_shown_while_it_works_and_gone_when_it_ends(tmp_path: Path) -> None:
    store, stopping = Store(tmp_path), threading.Event()
    roster = Roster(store, "host:7", lambda: "and more")
    thread = threading.Thread(target=roster.run, args=(stopping,))
    with roster.at("project 4"):
        thread.start()
        until = time.monotonic() + 10
        while not (found := store.workers()):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert (found[0]["name"], found[0]["doing"]) == ("host:7", "project 4, and more")
        assert found[0]["seconds"] < 10
    stopping.set()
    thread.join(timeout=20)
    assert store.workers() == []


def test_the_figures_of_a_round_follow_its_masks_and_leave_the_other_rounds_alone(world: World) -> None:
    world.in_round_1()
    world.label(ROUND)
    world.run()
    world.label(1)
    world.run()

    def shown() -> list[dict[str, Any]]:
        return [row["shown"] for row in status.round_list(world.store, PROJECT)]

    before = shown()
    assert [found["n"] for found in before] == [0, ROUND, 1]
    assert shown() == before
    shown()[1]["per_label"].clear()  # what one reader does with them is nothing to the next
    assert shown() == before
    assert [found["n"] for found in curve(world.store, PROJECT)["shown"]] == [ROUND, 1]
    world.label(1)
    world.run()
    after = shown()
    assert (after[:2], after[2]["n"]) == (before[:2], 2)
    assert status.shown_summary(world.store, PROJECT, "scanqueue-r2") == after[2]
