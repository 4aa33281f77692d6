"""Predictions that have our version names but are not of these records: their names are never used again."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from world import COLD, DEPTH, ROUND, World

from backend.facts import round_of

pytestmark = pytest.mark.usefixtures("miniature")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "data")


def check_served(world: World, above: int) -> None:
    """What annotators get is a round of these records, with a number that was free, and complete."""
    studio = world.studio
    version = studio.model_version
    assert (round_of(version) or 0) > above
    served = {p["task"]: p for p in studio.predictions if p["model_version"] == version}
    order = [task for task in world.order() if task in served]
    assert len(order) == len(served) >= min(DEPTH, len(world.order()))
    assert [served[t]["score"] for t in order] == sorted(p["score"] for p in served.values())
    assert world.order()[:DEPTH] == order[:DEPTH]
    counts = Counter((p["task"], p["model_version"]) for p in studio.predictions)
    assert set(counts.values()) == {1}


def test_after_a_lost_data_folder_everything_is_written_under_a_free_version(world: World, tmp_path: Path) -> None:
    world.in_round_1()
    old = [dict(p) for p in world.studio.predictions]
    world.store.close()
    lost = World(tmp_path / "empty")
    lost.studio, lost.masks = world.studio, world.masks
    lost.run()
    check_served(lost, above=1)
    assert [p for p in lost.studio.predictions if p in old] == old  # nothing of before was touched
    assert lost.status()["round"] == round_of(lost.studio.model_version)
    lost.label(ROUND)
    lost.run()
    check_served(lost, above=2)


def test_records_restored_from_an_older_backup_go_on_with_free_versions(world: World, tmp_path: Path) -> None:
    world.in_round_1()
    world.store.close()
    shutil.copytree(world.folder, tmp_path / "backup")
    world.label(ROUND)
    world.run()
    assert world.studio.model_version == "scanqueue-r2"
    restored = World(tmp_path / "restored")
    restored.store.close()
    shutil.rmtree(restored.folder)
    shutil.copytree(tmp_path / "backup", restored.folder)
    restored.studio, restored.masks = world.studio, world.masks
    restored.run()
    check_served(restored, above=2)
    assert len(restored.store.models(1)[-1]["trained_on"]) == COLD + ROUND


def test_predictions_of_the_latest_round_that_the_order_does_not_have_open_a_new_one(world: World) -> None:
    world.in_round_1()
    strange = next(t for t in world.studio.task_ids(1) if t not in world.order())
    world.studio.import_predictions(1, [{"task": strange, "score": 0.1, "model_version": "scanqueue-r1", "result": []}])
    world.run()
    check_served(world, above=1)


def test_our_own_rounds_open_no_other(world: World) -> None:
    world.in_round_1()
    before = world.end_state()
    world.run()
    assert world.end_state() == before
    assert world.store.project(1)["first_round"] == 0  # type: ignore[index]
