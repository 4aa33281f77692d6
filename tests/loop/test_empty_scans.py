"""Scans without foreground: never a Dice of 1, in no mean, but told as false alarms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import update
from typer.testing import CliRunner
from world import COLD, PROJECT, ROUND, World

from backend import cli
from backend.commands.status import label_rows, quality_text
from backend.learning.averages import Recorded, summarise
from backend.learning.evaluation import score
from backend.records.tables import label_table, shown_table
from backend.web.learning_curve import curve


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "data", steps=30)


def printed(world: World) -> str:
    found = CliRunner().invoke(cli.app, ["status", "--project", "1", "--data-dir", str(world.folder)], env={})
    return " ".join(found.output.split())


def label_first(world: World) -> None:
    """Label the first scans. Only one has foreground, so it is learnt, and only empty ones are held out."""
    world.cold_started()
    for i, task in enumerate(world.order()[:COLD]):
        world.studio.annotate(task, world.truth(task) if i == 0 else [])
    world.run()


def test_held_out_scans_without_foreground_give_no_dice(world: World) -> None:
    label_first(world)
    held = round(0.2 * COLD)
    status = world.status()
    found = status["validation"]
    assert [found[name] for name in ("dice", "hd95", "hd", "n", "n_empty")] == [None, None, None, 0, held]
    assert found["false_alarm_rate"] in {k / held for k in range(held + 1)}
    assert status["labelled_empty"] == COLD - 1
    (model,) = curve(world.store, PROJECT)["models"]
    assert (model["dice"], model["n"], model["n_empty"], model["classes"]) == (None, 0, held, {})
    text = printed(world)
    assert f"labelled {COLD} ({COLD - 1} without foreground)" in text
    assert "validation no scan with foreground. False alarms:" in text
    assert "1.000" not in text


def test_misses_and_false_alarms_stand_beside_the_mean() -> None:
    found = {"dice": 0.8125, "hd95": 3.0, "unit": "px", "n": 9, "miss_rate": 1 / 9, "n_empty": 3}
    assert quality_text(found | {"false_alarm_rate": 2 / 3}) == (
        "Dice 0.812, HD95 3.0 px (9 scans with foreground). Missed: 1 of 9. False alarms: 2 of 3."
    )


def test_several_labels_stand_one_by_one_and_the_worst_beside_the_mean() -> None:
    nothing = np.zeros((20, 20), np.uint8)
    lung, lesion = nothing.copy(), nothing.copy()
    lung[5:15, 5:15], lesion[2:4, 2:4] = 1, 2
    scores = [score(lung, lung, 3), score(lung, lung, 3), score(nothing, lesion, 3), score(lesion, nothing, 3)]
    found = summarise([Recorded.of(one, ("Lung", "Lesion")) for one in scores])
    assert quality_text(found) == (
        "Dice 0.500, HD95 14.1 px (mean over 2 labels, 3 scans with foreground). "
        "Lowest: Lesion, Dice 0.000 on 1 scan. Missed: 1 of 3. False alarms: 1 of 5."
    )
    assert label_rows(found) == [
        ("  Lung", "Dice 1.000 (1.000 to 1.000), HD95 0.0 px (2 scans); missed 0 of 2; false alarms 0 of 2"),
        ("  Lesion", "Dice 0.000, HD95 28.3 px (1 scan); missed 1 of 1; false alarms 1 of 3"),
    ]


def test_masks_shown_on_scans_without_foreground_are_false_alarms(world: World) -> None:
    world.in_round_1()
    drawn = {p["task"]: p for p in world.studio.predictions if p["model_version"] == "scanqueue-r1" and p["result"]}
    first, second, *_ = drawn
    world.studio.annotate(first, world.truth(first), shown=drawn[first]["id"])
    world.studio.annotate(second, [], shown=drawn[second]["id"])
    world.run()
    found = world.status()["shown"]
    assert (found["n"], found["n_empty"], found["false_alarm_rate"], found["miss_rate"]) == (1, 1, 1.0, 0.0)
    rows = {s["task"]: s for s in world.store.shown(PROJECT)}
    assert found["dice"] == pytest.approx(rows[first]["dice"], abs=1e-5)  # the false alarm is not in the mean
    (label,) = found["per_label"]
    assert json.loads(rows[second]["per_label"])[label] == {
        "present": False,
        "drawn": True,
        "area": pytest.approx(0.2, abs=0.2),
        "dice": None,
        "hd": None,
        "hd95": None,
    }
    (kept,) = curve(world.store, PROJECT)["shown"]
    assert (kept["dice"], kept["n"], kept["false_alarm_rate"]) == (pytest.approx(found["dice"], abs=1e-6), 1, 1.0)


def test_empty_masks_that_were_shown_and_submitted_do_not_say_that_annotators_kept_everything(world: World) -> None:
    tasks = world.in_round_1().label(ROUND - 1)
    world.run()
    same = {"dice": 1.0, "hd": 0.0, "hd95": 0.0, "shown_empty": 1, "label_empty": 1, "per_label": ""}
    with world.store.write() as connection:  # as if one of the masks shown and submitted had been empty
        connection.execute(update(shown_table).where(shown_table.c.task == tasks[0]).values(same))
    rows = {s["task"]: s["dice"] for s in world.store.shown(PROJECT)}
    found = world.status()["shown"]
    assert (found["dice"], found["n"], found["n_empty"]) == (pytest.approx(rows[tasks[1]], abs=1e-5), ROUND - 2, 1)
    assert found["false_alarm_rate"] == 0.0
    with world.store.write() as connection:
        connection.execute(update(shown_table).values(same))
    found = world.status()["shown"]
    assert (found["dice"], found["n"], found["n_empty"]) == (None, 0, ROUND - 1)
    assert "1.000" not in printed(world).partition("shown masks")[2]


def test_labels_of_an_older_version_are_read_again_to_know_which_are_empty(world: World) -> None:
    label_first(world)
    before = world.end_state()
    known = [(r["task"], r["empty"]) for r in world.store.labels(PROJECT)]
    assert {empty for _, empty in known} == {0, 1}
    with world.store.write() as connection:
        connection.execute(update(label_table).values(empty=-1, config="of an older version"))
    world.run()
    assert [(r["task"], r["empty"]) for r in world.store.labels(PROJECT)] == known
    assert world.end_state() == before  # nothing is trained or published again
