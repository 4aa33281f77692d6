"""A label that is added later is unknown, not background, in the annotations made before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from world import COLD, CONFIG, LARGER, PROJECT, KeptLearner, World

from backend.facts import IMPORTED_MASKS
from backend.label_config import Renames, unknown_classes
from backend.label_studio.drawing import imported_result
from backend.learning.cases import Case
from backend.records.tables import label_table

pytestmark = pytest.mark.usefixtures("miniature")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "data")


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> list[list[frozenset[int]]]:
    """For every training, the unknown classes of the scans it learnt from and was judged by."""
    seen: list[list[frozenset[int]]] = []
    train = KeptLearner.train

    def spied(self: KeptLearner, cases: Sequence[Case], validation: Sequence[Case], *rest: Any, **more: Any) -> Any:
        seen.append([case.unknown for case in (*cases, *validation)])
        return train(self, cases, validation, *rest, **more)

    monkeypatch.setattr(KeptLearner, "train", spied)
    return seen


def known(world: World) -> dict[int, list[str]]:
    return {r["task"]: json.loads(r["known"]) for r in world.store.labels(PROJECT)}


def test_older_annotations_say_nothing_about_a_new_label_until_they_are_submitted_again(
    world: World, learnt: list[list[frozenset[int]]]
) -> None:
    world.in_round_1()
    assert learnt[-1] == [frozenset()] * COLD
    older = list(world.annotations)
    world.studio.change_config(LARGER)
    world.run()
    assert known(world) == {task: ["Lung"] for task in older}
    assert sorted(map(sorted, learnt[-1])) == [[2]] * COLD
    model = world.store.models(PROJECT)[-1]
    assert "Only 0 of 6 labelled scans were annotated since the label config has 'Heart'" in model["remark"]

    newer = world.order()[:3]
    for task in newer:
        world.submit(task, "Lung", "Heart")
    world.run()
    assert known(world) == {task: ["Lung"] for task in older} | {task: ["Lung", "Heart"] for task in newer}
    assert sorted(map(sorted, learnt[-1])) == [[]] * 3 + [[2]] * COLD
    assert "Only 3 of 9" in world.store.models(PROJECT)[-1]["remark"]

    again = world.annotations[older[0]]
    world.studio.edit(again, world.truth(older[0], "Lung", "Heart"))
    world.run()
    assert known(world)[older[0]] == ["Lung", "Heart"]


@pytest.mark.parametrize("again", ["lost artefact", "try again"])
def test_reading_an_annotation_once_more_does_not_make_a_label_known(world: World, again: str) -> None:
    world.in_round_1()
    world.studio.change_config(LARGER)
    world.run()
    task = next(iter(world.annotations))
    if again == "lost artefact":
        world.store.forget_label(PROJECT, task)
    else:
        with world.store.write() as connection:
            connection.execute(update(label_table).where(label_table.c.task == task).values(remark="mostly outside"))
        world.store.retry(PROJECT, task)
    assert task not in known(world)
    world.run()
    assert known(world)[task] == ["Lung"]


def test_a_label_that_was_lost_and_is_there_again_is_known_where_it_is_drawn(world: World) -> None:
    world.studio.change_config(LARGER)
    world.cold_started()
    one, other = world.order()[:2]
    world.studio.change_config(CONFIG)
    world.submit(one, "Lung", "Heart")
    world.submit(other, "Lung")
    world.run()
    assert world.status()["problems"]
    world.studio.change_config(LARGER)
    world.run()
    assert known(world) == {one: ["Lung", "Heart"], other: ["Lung"]}


@pytest.mark.parametrize("drawn", [("Lung",), ("Lung", "Heart")])
def test_start_training_trains_when_an_annotation_was_submitted_again_since_a_label_was_added(
    world: World, drawn: tuple[str, ...]
) -> None:
    """With the very same mask, it now says that the scan does not show the label."""
    world.in_round_1()
    older = list(world.annotations)
    world.studio.change_config(LARGER)
    world.run()
    versions = [m["version"] for m in world.store.models(PROJECT)]

    def press() -> dict[str, Any]:
        world.store.request_training(PROJECT)
        world.run()
        return world.store.models(PROJECT)[-1]

    assert press()["version"] == versions[-1]  # nothing new to learn from
    world.studio.edit(world.annotations[older[0]], world.truth(older[0], *drawn))
    world.run()
    model = press()
    assert model["version"] not in versions
    assert {entry[0]: entry[4] for entry in model["trained_on"]} == {t: () if t == older[0] else (2,) for t in older}
    assert press()["version"] == model["version"]


def test_a_renamed_label_stays_known_and_what_is_not_recorded_counts_as_known() -> None:
    renames = Renames(("Lung", "Heart", "Cor"), {"Heart": "Cor"})
    assert unknown_classes('["Lung", "Heart"]', ("Lung", "Cor", "Rib"), renames) == {3}
    assert unknown_classes("", ("Lung", "Cor"), renames) == frozenset()


def test_a_label_that_a_mask_file_does_not_have_is_unknown_until_somebody_updates_the_annotation(world: World) -> None:
    world.studio.change_config(LARGER)
    world.cold_started()
    task = world.order()[0]
    made = world.studio.annotate_by_program(task, imported_result(world.truth(task, "Lung"), ["Lung"]))
    world.run()
    assert known(world)[task] == ["Lung"]
    world.studio.edit(made, world.truth(task, "Lung"))
    world.run()
    assert known(world)[task] == ["Lung", "Heart"]


def test_masks_imported_as_predictions_are_shown_until_there_is_a_model(world: World) -> None:
    tasks = world.add_scans(0, 12)[:6]
    rows = [{"task": t, "model_version": IMPORTED_MASKS, "score": 0.5, "result": world.truth(t)} for t in tasks]
    world.studio.import_predictions(PROJECT, rows)
    world.run()
    shown = {p["task"]: p["result"] for p in world.studio.predictions if p["model_version"] == "scanqueue-r0"}
    assert {task for task, result in shown.items() if result} == set(tasks) & set(shown)
    assert set(tasks) & set(shown)
    assert all(shown[task] == world.truth(task) for task in set(tasks) & set(shown))
