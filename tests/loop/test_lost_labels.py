"""Labels that vanish from the label config while annotations have them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner
from world import COLD, CONFIG, LARGER, PROJECT, World

from backend import cli
from backend.errors import BadSetting
from backend.facts import PENDING
from backend.loop import audit, listing
from backend.loop.decide import waiting_for_labels
from backend.loop.predictor import Predictor

pytestmark = pytest.mark.usefixtures("miniature")
RENAMED = CONFIG.replace('"Lung"', '"Lungs"')


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "data")


def drawn_labels(world: World) -> set[str]:
    """The labels of the regions that annotators are shown now."""
    shown = [p for p in world.studio.predictions if p["model_version"] == world.studio.model_version]
    return {label for p in shown for region in p["result"] for label in region["value"]["brushlabels"]}


def test_a_renamed_label_stops_everything_until_somebody_says_so_and_then_counts(world: World) -> None:
    world.in_round_1()
    before = world.end_state()
    world.studio.change_config(RENAMED)
    world.run()
    status = world.status()
    assert status["phase"] == "blocked"
    assert status["reason"].startswith("The label config no longer has 'Lung' (6 annotations). Nothing is trained")
    assert status["lost_labels"] == [{"label": "Lung", "annotations": COLD}]
    assert status["labels"] == ["Lungs"]
    after = world.end_state()
    for part in ("served", "predictions", "rounds", "models", "shown"):
        assert after[part] == before[part], part
    assert drawn_labels(world) == {"Lung"}
    lacking = world.studio.predictions.pop()
    reconciler = world.reconciler()
    reconciler.tender.tend(PROJECT)  # what a long training does meanwhile: fill the queue
    assert lacking["task"] not in world.published()
    world.studio.predictions.append(lacking)
    task = world.order()[-1]
    asked = {"id": task, "data": {"image": world.studio.reference(task)}}
    (item,) = Predictor(world.store, world.studio, reconciler.learner).predict(PROJECT, [asked])  # type: ignore[arg-type]
    assert (item["model_version"], item["result"]) == (PENDING, [])

    number = audit.rename_labels(world.store, PROJECT, "radiology", {"Lung": "Lungs"})
    world.run()
    status = world.status()
    assert (status["phase"], status["lost_labels"], status["problems"]) == ("active", [], [])
    assert drawn_labels(world) == {"Lungs"}
    assert [m["labels"] for m in world.store.models(PROJECT)] == [["Lungs"]]
    assert world.end_state()["models"] == before["models"]  # nothing had to be trained again
    (change,) = audit.listed(world.store, PROJECT)
    assert (change["what"], change["user"], change["undoable"]) == (
        "label Lung: now called Lungs",
        "radiology",
        True,
    )
    audit.undo(world.store, PROJECT, "radiology", number)
    world.run()
    assert world.status()["lost_labels"] == [{"label": "Lung", "annotations": COLD}]


def test_a_label_that_is_added_again_needs_no_answer(world: World) -> None:
    world.in_round_1()
    before = world.end_state()
    world.studio.change_config(RENAMED)
    world.run()
    world.studio.change_config(CONFIG)
    world.run()
    assert world.end_state() == before


def test_regions_of_a_label_that_is_no_longer_used_are_left_out(world: World) -> None:
    world.studio.change_config(LARGER)
    world.cold_started()
    tasks = world.order()[:COLD]
    for task in tasks:
        world.submit(task, "Lung", "Heart")
    world.run()
    assert [m["labels"] for m in world.store.models(PROJECT)] == [["Lung", "Heart"]]
    world.studio.change_config(CONFIG)
    world.run()
    assert world.status()["lost_labels"] == [{"label": "Heart", "annotations": COLD}]
    assert len(world.store.models(PROJECT)) == 1
    audit.rename_labels(world.store, PROJECT, "radiology", {"Heart": ""})
    world.run()
    assert world.status()["phase"] == "active"
    assert [m["labels"] for m in world.store.models(PROJECT)] == [["Lung", "Heart"], ["Lung"]]
    assert drawn_labels(world) <= {"Lung"}
    assert all("no longer used" in p["what"] for p in world.status()["problems"])


def test_the_command_line_lists_and_answers_lost_labels(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    world.in_round_1()
    world.studio.change_config(RENAMED)
    world.run()
    where = ["--project", str(PROJECT), "--data-dir", str(world.folder)]

    def run(*words: str) -> str:
        done = CliRunner().invoke(cli.app, ["labels", *words, *where], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    assert "lost; 6 annotations have it" in run("list")
    assert "'Lung' is now called 'Lungs' in project 1" in run("rename", "Lung", "Lungs")
    assert "now called Lungs" in run("list")
    world.run()
    assert world.status()["phase"] == "active"
    assert audit.listed(world.store, PROJECT)[0]["user"] == "command line"
    with pytest.raises(BadSetting, match="Nothing was changed"):
        run("rename", "Lung", "Lungs")


def test_answers_that_make_no_sense_are_refused(world: World) -> None:
    world.in_round_1()
    world.studio.change_config(RENAMED)
    world.run()
    for given, what in (
        ({"Lungs": "Lung"}, "'Lungs' is not a label that the label config lost. Lost: Lung"),
        ({"Lung": "Heart"}, "'Heart' is not a label of the label config. Its labels: Lungs"),
        ({"Lung": None}, "Nothing was changed"),
    ):
        with pytest.raises(BadSetting, match=what):
            audit.rename_labels(world.store, PROJECT, "x", given)


def test_one_region_with_a_label_that_never_was_is_a_problem_of_its_scan_only(world: World) -> None:
    world.cold_started()
    task = world.order()[0]
    world.submit(task, "Lung", "Heart")
    world.label(COLD)
    world.run()
    (problem,) = world.status()["problems"]
    assert problem["task"] == task
    assert "region 2 has the label 'Heart', which the label config does not have" in problem["what"]
    assert world.status()["phase"] == "active"
    (model,) = world.store.models(PROJECT)
    assert len(model["trained_on"]) == COLD  # without the scan that was not understood


def test_annotations_made_from_predictions_in_bulk_are_not_learned_until_somebody_looks(world: World) -> None:
    world.cold_started()
    made = world.studio.annotations_from_predictions(world.studio.predictions[:2])
    world.label(COLD - 1)
    world.run()
    assert world.store.models(PROJECT) == []
    assert len(world.status()["problems"]) == 2
    assert all("nobody has looked at it" in p["what"] for p in world.status()["problems"])
    world.studio.edit(made[0], [])  # the annotator opens it, sees that the scan shows nothing, and presses Update
    world.run()
    (model,) = world.store.models(PROJECT)
    assert len(model["trained_on"]) == COLD


def test_copies_of_an_annotation_are_noticed_beside_others_and_never_replace_what_was_drawn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.cold_started()
    made = world.studio.annotations_from_predictions(world.studio.predictions[:1])
    in_bulk = world.studio.predictions[0]["task"]
    drawn = world.label(COLD)
    world.run()
    learned = {r["task"]: r["mask"] for r in world.store.labels(PROJECT) if r["task"] in drawn}
    monkeypatch.setattr(listing, "FULL_AGAIN", 0.0)
    world.studio.propagate(world.annotations[drawn[0]], [in_bulk, *drawn[1:]])
    world.run()
    (problem,) = world.status()["problems"]
    assert problem["task"] == in_bulk
    assert "copied from another task" in problem["what"]
    assert {r["task"]: r["mask"] for r in world.store.labels(PROJECT) if r["task"] in drawn} == learned
    world.studio.edit(made[0], [])
    world.run()
    assert world.status()["problems"] == []


def test_a_label_that_is_renamed_twice_is_asked_for_twice(world: World) -> None:
    world.in_round_1()
    learned = [m["trained_on"] for m in world.store.models(PROJECT)]
    for old, new in (("Lung", "Lungs"), ("Lungs", "Pulmo")):
        world.studio.change_config(CONFIG.replace('"Lung"', f'"{new}"'))
        world.run()
        assert world.status()["phase"] == "blocked"
        assert world.status()["lost_labels"] == [{"label": old, "annotations": COLD}]
        audit.rename_labels(world.store, PROJECT, "radiology", {old: new})
        world.run()
        status = world.status()
        assert (status["phase"], status["lost_labels"], status["problems"]) == ("active", [], [])
        assert drawn_labels(world) == {new}
    assert [m["trained_on"] for m in world.store.models(PROJECT)] == learned


def test_a_label_that_gets_an_alias_keeps_its_masks_and_its_model(world: World) -> None:
    world.in_round_1()
    models = world.end_state()["models"]
    world.studio.change_config(CONFIG.replace('"Lung"', '"Lung" alias="L"'))
    world.run()
    status = world.status()
    assert (status["phase"], status["lost_labels"], status["problems"]) == ("active", [], [])
    assert drawn_labels(world) == {"L"}
    assert world.end_state()["models"] == models
    world.studio.change_config(CONFIG)
    world.run()
    assert drawn_labels(world) == {"Lung"}
    assert world.end_state()["models"] == models


def test_two_labels_that_become_one_are_learned_as_one(world: World) -> None:
    world.studio.change_config(LARGER)
    world.cold_started()
    for task in world.order()[:COLD]:
        world.submit(task, "Lung", "Heart")
    world.run()
    world.studio.change_config(CONFIG)
    world.run()
    audit.rename_labels(world.store, PROJECT, "radiology", {"Heart": "Lung"})
    world.run()
    status = world.status()
    assert (status["phase"], status["problems"]) == ("active", [])
    assert world.store.models(PROJECT)[-1]["labels"] == ["Lung"]
    assert world.store.arrays("labels", world.store.labels(PROJECT)[0]["mask"])["mask"].max() == 1
    assert drawn_labels(world) <= {"Lung"}


def test_a_removed_label_that_no_annotation_has_stops_nothing(world: World) -> None:
    world.studio.change_config(LARGER)
    world.in_round_1()
    world.studio.change_config(CONFIG)
    world.run()
    assert world.status()["lost_labels"] == []
    world.label(1)
    reconciler = world.reconciler()
    seen = reconciler.observer.observe(PROJECT)
    assert waiting_for_labels(seen, seen.config) is None  # type: ignore[arg-type]
    world.run()
    assert world.status()["phase"] == "active"
