"""Projects whose tasks give the scan and the patient of each slice, and its pixel spacing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from world import COLD, DEPTH, PROJECT, ROUND, KeptLearner, World

from backend.facts import validation_rows
from backend.loop import audit
from backend.loop.stored import served
from backend.records.maps import read_map
from backend.records.tables import scan_table
from backend.web import status
from backend.web.overview import Overview

pytestmark = pytest.mark.usefixtures("miniature")

SLICES = 4
SPACING = [3.0, 0.5]
WHOLE = {"unit": "scan"}


def set_task_data(world: World, tasks: Sequence[int], **data: Any) -> None:
    for task in tasks:
        world.studio.set_data(task, world.studio._tasks[task]["data"] | data)


def add_volumes(world: World, names: str, slices: int = SLICES) -> None:
    """Volumes with `slices` slices each, two per patient; the tasks are in reverse slice order."""
    for name in names:
        tasks = world.add_scans(len(world.masks), slices)
        for n, task in enumerate(reversed(tasks)):
            set_task_data(
                world, [task], scan=f"S-{name}", slice=n, group=f"P-{(ord(name) - 65) // 2}", spacing_mm=SPACING
            )


def places(world: World) -> dict[int, tuple[str, int]]:
    """Volume and slice of every task."""
    return {s["task"]: (s["volume"], s["slice"]) for s in world.store.scans(PROJECT)}


def pieces(world: World, tasks: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Consecutive runs as (volume, slices)."""
    of = places(world)
    return [(volume, [of[t][1] for t in run]) for volume, run in groupby(tasks, lambda t: of[t][0])]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "data", **WHOLE)


def test_a_project_of_volumes_is_published_by_volume_and_no_patient_is_both_trained_on_and_held_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_volumes(world, "ABCDEFG")
    people = {t: (t - 1) // (2 * SLICES) for t in world.masks}
    patient = {world.masks[t]["Lung"].tobytes(): p for t, p in people.items()}
    assert len(patient) == len(people)
    trainings: list[tuple[set[int], set[int]]] = []
    train = KeptLearner.train

    def watched(self: Any, cases: Any, validation: Any, *rest: Any, **more: Any) -> Any:
        trainings.append(tuple({patient[(c.mask > 0).tobytes()] for c in part} for part in (cases, validation)))  # type: ignore[arg-type]
        return train(self, cases, validation, *rest, **more)

    monkeypatch.setattr(KeptLearner, "train", watched)
    world.run()
    served: list[int] = []
    while len(served) < len(people):
        order, ahead = world.order(), world.published()
        waiting = [t for t in order if t not in served]
        assert sorted(waiting) == sorted(set(people) - set(served))
        found = pieces(world, waiting)
        assert len({volume for volume, _ in found}) == len(found)
        assert all(slices == sorted(slices) for _, slices in found)
        shown = {t for t in ahead if t not in served}
        of = places(world)
        assert shown == {t for t in waiting if of[t][0] in {of[s][0] for s in shown}}  # all remaining slices of each
        assert world.status()["queue"] == [t for t in order if t in shown]
        assert len(shown) >= min(DEPTH, len(waiting))
        served += world.label(min(ROUND, len(waiting)))
        world.run()
    assert world.status()["phase"] == "done"
    taken = pieces(world, served)
    assert sorted(volume for volume, _ in taken) == [f"S-{c}" for c in "ABCDEFG"]  # no volume was abandoned for another
    assert all(slices == list(range(SLICES)) for _, slices in taken)
    assert all(learnt and not learnt & judged for learnt, judged in trainings)
    assert {p for _, judged in trainings for p in judged}
    reasons = {p.reason for r in world.store.rounds(PROJECT) for p in r["picks"]}
    assert "begun" in reasons
    for model in world.store.models(PROJECT):
        assert {one["unit"] for one in model["details"]["held_out"]} <= {"mm"}
    assert world.status()["shown"]["unit"] == "mm"
    found_map = read_map(world.store, PROJECT, "pixels")
    assert found_map is not None
    assert (found_map.unit, sorted(found_map.volumes)) == ("scan", [f"S-{c}" for c in "ABCDEFG"])


def test_mask_distances_are_in_the_millimetres_of_the_scan(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    world.cold_started()
    set_task_data(world, [t for t in world.masks if t % 2], spacing_mm=SPACING)
    world.label(COLD)
    world.run()
    world.label(6)
    world.run()
    rows = world.store.shown(PROJECT)
    assert {(r["task"] % 2, r["unit"]) for r in rows} == {(1, "mm"), (0, "px")}
    tools = world.reconciler()
    model = world.store.model(PROJECT, "scanqueue-r1")
    assert model is not None
    scans = {s.task: s for s in tools.processor.scans(PROJECT, [r["task"] for r in rows])}
    masks = {r["task"]: r["mask"] for r in world.store.labels(PROJECT)}
    for r in rows:
        drawn = tools.processor.mask(model["fingerprint"], scans[r["task"]])
        truth = world.store.arrays("labels", masks[r["task"]])["mask"]
        assert drawn is not None
        spacing = (3.0, 0.5) if r["task"] % 2 else None
        expected = tools.learner.compare(drawn, truth, 2, spacing)
        assert (r["hd95"], r["hd"], r["unit"]) == (expected.hd95, expected.hd, expected.unit)
    held = model["details"]["held_out"]
    assert {one["unit"] for one in held} == {"mm" if one["task"] % 2 else "px" for one in held}
    shown = status.shown_summary(world.store, PROJECT, "scanqueue-r1")
    assert (shown["unit"], shown["hd95"], shown["n"]) == ("mixed", None, len(rows))


def test_task_data_that_older_versions_did_not_read_is_read_once(world: World) -> None:
    add_volumes(world, "ABC")
    tools = world.reconciler()
    for _ in range(3):
        tools.reconcile(PROJECT)
    known = places(world)
    assert set(known.values()) == {(f"S-{v}", n) for v in "ABC" for n in range(SLICES)}
    blank = {"volume": "", "slice": 0, "patient": "", "row_mm": 0.0, "column_mm": 0.0}
    with world.store.write() as connection:
        connection.execute(update(scan_table).values(**blank))  # as after the upgrade
    world.store.set_project(PROJECT, task_data_version=0)
    listings: list[int] = []
    listed = world.studio.tasks_after
    world.studio.tasks_after = lambda *at: listings.append(at[1]) or listed(*at)  # type: ignore
    tools.reconcile(PROJECT)
    assert places(world) == known
    assert {(s["patient"], s["row_mm"], s["column_mm"]) for s in world.store.scans(PROJECT)} == {
        ("P-0", 3.0, 0.5),
        ("P-1", 3.0, 0.5),
    }
    tools.reconcile(PROJECT)
    assert listings == [0]
    assert world.status()["trouble"] == ""


def test_invalid_task_data_stops_nothing_and_is_read_once_it_is_valid(world: World) -> None:
    world.add_scans(0, 8)
    odd: list[dict[str, Any]] = [
        {"scan": ["S"], "slice": "first", "group": {"a": 1}, "spacing_mm": "1 mm"},
        {"scan": "a\0b", "slice": -3, "group": None, "spacing_mm": [0, 1]},
        {"scan": "\ud800", "slice": 10**30, "group": "\0", "spacing_mm": [float("nan"), 1]},
        {"scan": True, "slice": 1.5, "group": 1.5, "spacing_mm": [10**400, 1]},
    ]
    for task, data in enumerate(odd, start=1):
        set_task_data(world, [task], **data)
    world.run()
    assert set(places(world).values()) == {("", 0)}
    assert {(s["patient"], s["row_mm"]) for s in world.store.scans(PROJECT)} == {("", 0.0)}
    assert sorted(world.order()) == sorted(world.masks)
    assert world.status()["trouble"].startswith('The unit is "scan", but no task states which scan it is a slice of')
    set_task_data(world, [1, 2], scan="S", group="P", slice=1, spacing_mm=[1, 2])
    world.run()
    assert [places(world)[t] for t in (1, 2, 3)] == [("S", 1), ("S", 1), ("", 0)]
    assert world.status()["trouble"] == ""
    assert pieces(world, world.order()).count(("S", [1, 1])) == 1


def test_a_change_of_the_unit_and_back_each_refits_the_map_and_opens_a_round(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    add_volumes(world, "ABCDEF")
    world.run()
    world.label(COLD)
    world.run()
    slices = read_map(world.store, PROJECT, "pixels")
    before = world.order()
    seen = Overview(world.store, world.studio, None, lambda _: [])  # type: ignore[arg-type]
    tried = seen.preview(PROJECT, {"unit": "scan"})
    assert "The map is computed again" in tried["note"]
    audit.set_overrides(world.store, PROJECT, "anna", {"unit": "scan"})
    world.run()
    volumes = read_map(world.store, PROJECT, "pixels")
    assert slices is not None
    assert volumes is not None
    assert (slices.unit, volumes.unit, len(volumes.state["xy"])) == ("slice", "scan", 6)
    assert (world.status()["round"], world.status()["model"]) == (2, "scanqueue-r1")
    found = pieces(world, world.order())
    assert len({v for v, _ in found}) == len(found) <= 6
    assert seen.preview(PROJECT, {"unit": "scan"})["note"] == ""
    assert [p["task"] for p in seen.preview(PROJECT, {})["then"]] == world.order()[:30]
    assert seen.settings(PROJECT)["units"] == ["slice", "scan"]
    audit.set_overrides(world.store, PROJECT, "anna", {"unit": None})
    world.run()
    again = read_map(world.store, PROJECT, "pixels")
    assert again is not None
    assert again.xy.tolist() == slices.xy.tolist()
    assert (world.status()["round"], world.order()) == (3, before)


def test_models_are_compared_on_patients_that_neither_has_learnt_from(tmp_path: Path) -> None:
    """Patients are labelled one by one; one that the active model has learnt from is not held out."""
    names = sorted((f"P-{i}" for i in range(200)), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    low, *high = names[0], names[-1], names[-2]
    world = World(tmp_path / "data")
    tasks = world.add_scans(0, 21)
    for patient, (start, end) in zip((low, *high), ((0, 8), (8, 16), (16, 21)), strict=True):
        set_task_data(world, tasks[start:end], group=patient)
    world.run()
    patient = {s["task"]: s["patient"] for s in world.store.scans(PROJECT)}
    held, said, against = [], [], []
    for start, end in ((0, 6), (6, 9), (9, 12), (12, 15), (15, 18)):
        for task in tasks[start:end]:
            world.submit(task)
        world.run()
        model = world.store.models(PROJECT)[-1]
        held.append({patient[one["task"]] for one in model["details"]["held_out"]})
        said.append(model["remark"])
        against.append(model["details"].get("champion", {}).get("version"))
    assert len(world.store.models(PROJECT)) == 5
    assert held == [set(), {high[0]}, {high[0]}, {high[0]}, {high[1]}]
    assert said[0].startswith("All 6 labelled scans belong to one patient or volume, so none could be held out")
    assert against == [None, "scanqueue-r1", "scanqueue-r2", "scanqueue-r3", "scanqueue-r4"]
    assert said[4].startswith("Too few scans to tell whether it is better than scanqueue-r4: 2 that neither has learnt")
    assert world.status()["model"] == "scanqueue-r5"
    assert world.status()["validation"]["n"] == 2


def test_late_slices_follow_the_published_ones_of_their_volume(world: World) -> None:
    add_volumes(world, "ABCDEF")
    world.run()
    order, ahead = world.order(), world.published()
    first = places(world)[order[0]][0]
    late = world.add_scans(90, 2)
    for n, task in enumerate(late):
        set_task_data(world, [task], scan=first, slice=50 + n)
    add_volumes(world, "G")
    world.run()
    now = world.order()
    assert now[: len(ahead)] == order[: len(ahead)]
    assert now[len(ahead) : len(ahead) + 2] == late
    assert {p.reason for p in world.picks() if p.task in late} == {"begun"}
    assert sorted(now) == sorted(world.masks)
    others = [piece for piece in pieces(world, now) if piece[0] != first]
    assert sorted(v for v, _ in others) == sorted({f"S-{c}" for c in "ABCDEFG"} - {first})
    assert set(world.published()) >= set(order[: len(ahead)])


def test_the_remaining_slices_of_a_control_stay_controls(tmp_path: Path) -> None:
    world = World(tmp_path / "data", **WHOLE, control_share=0.5)
    add_volumes(world, "ABCDEFG")
    world.run()
    chance = {p.task for p in world.picks() if p.reason == "control"}
    assert {len(slices) for _, slices in pieces(world, [t for t in world.order() if t in chance])} == {SLICES}
    for _ in range(2):  # a volume and a half
        world.label(COLD // 2)
        world.run()
    assert world.status()["round"] == 1
    in_progress = {p.task for p in world.picks() if p.reason == "begun"}
    assert len(in_progress) == SLICES - COLD % SLICES
    kept = served(world.store, PROJECT)
    assert {t: kept[t] for t in in_progress} == {t: t in chance for t in in_progress}
    assert in_progress <= chance or not in_progress & chance


def test_projects_without_volumes_are_unaffected(tmp_path: Path) -> None:
    """Without volumes and patients, the unit changes neither the first queries nor the held-out scans."""
    orders, held = [], []
    for unit in ("slice", "scan"):
        world = World(tmp_path / unit, unit=unit)
        world.cold_started().label(COLD)
        world.run()
        orders.append([r["picks"] for r in world.store.rounds(PROJECT)])
        (model,) = world.store.models(PROJECT)
        held.append((model["fingerprint"], [one["task"] for one in model["details"]["held_out"]]))
        digests = sorted(s["digest"] for s in world.store.scans(PROJECT) if s["annotated"])
        assert len(held[-1][1]) == len(validation_rows(digests))
    assert orders[0] == orders[1]
    assert held[0] == held[1]
