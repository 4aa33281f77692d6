"""Trainings that never end, because their process is killed (mostly for memory) or fails: the loop goes on without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fuse import Killed
from world import COLD, PROJECT, ROUND, KeptLearner, World

from backend.errors import StudioUnavailable, WorkersLost
from backend.loop.steps import MOST_ATTEMPTS
from backend.records.forgetting import forget_project

pytestmark = pytest.mark.usefixtures("miniature")
GIVEN_UP = "was cut off 3 times, so scanqueue goes on without it"


class Doomed(KeptLearner):
    """A learner whose trainings end like this."""

    ending: BaseException = Killed()
    spared = 0

    def train(self, *args: Any, on_step: Callable[[int, int], None], **how: Any) -> Any:
        if self.spared:
            self.spared -= 1
            return super().train(*args, on_step=on_step, **how)
        on_step(0, 1)
        raise self.ending


def doomed(world: World, ending: BaseException, times: int = 1, *, spared: int = 0, **settings: Any) -> None:
    """Reconcile so often, by new processes whose trainings end like this, all but the first `spared` ones."""
    learner = Doomed(replace(world.settings, **settings))
    learner.ending, learner.spared = ending, spared
    for _ in range(times):
        with pytest.raises(type(ending)):
            replace(world.reconciler(), learner=learner).reconcile(PROJECT)


def goes_on_without(world: World) -> str:
    """Reconcile once more, where every training is killed: nothing is trained, and nothing else is left to do."""
    plan = replace(world.reconciler(), learner=Doomed(world.settings)).reconcile(PROJECT)
    assert plan.steps == ()
    return str(world.status()["trouble"])


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A project whose first training is due."""
    world = World(tmp_path / "data").cold_started()
    world.label(COLD)
    return world


@pytest.mark.parametrize("ending", [Killed(), MemoryError("no room"), WorkersLost("lost several workers")])
def test_a_training_that_is_cut_off_three_times_is_left_out_with_advice(world: World, ending: BaseException) -> None:
    doomed(world, ending, MOST_ATTEMPTS)
    told = goes_on_without(world)
    assert GIVEN_UP in told
    assert "SCANQUEUE_IMAGE_SIZE" in told
    assert f"after {ROUND} more labels" in told
    served = world.label(ROUND - 1)  # the queue goes on, and what is labelled is read
    assert f"The training on {COLD + ROUND - 1} labels" in (told := goes_on_without(world))
    assert "after 1 more labels" in told
    assert {row["task"] for row in world.store.labels(PROJECT) if row["mask"]} >= set(served)
    assert world.store.models(PROJECT) == []


def test_it_is_tried_again_after_a_round_of_new_labels(world: World) -> None:
    doomed(world, Killed(), MOST_ATTEMPTS)
    goes_on_without(world)
    world.label(ROUND)
    doomed(world, Killed(), MOST_ATTEMPTS)
    assert GIVEN_UP in goes_on_without(world)
    world.label(ROUND)
    world.run()
    assert [len(m["trained_on"]) for m in world.store.models(PROJECT)] == [COLD + 2 * ROUND]
    assert (world.status()["trouble"], world.store.attempts(PROJECT)) == ("", {})


def test_it_is_tried_again_on_request_and_left_out_again(world: World) -> None:
    doomed(world, Killed(), MOST_ATTEMPTS)
    goes_on_without(world)
    world.store.request_training(PROJECT)
    doomed(world, Killed(), MOST_ATTEMPTS)
    assert GIVEN_UP in goes_on_without(world)
    row = world.store.project(PROJECT)
    assert row is not None
    assert row["training_requests"] == 0
    world.store.request_training(PROJECT)
    world.run()
    assert world.status()["model"] == "scanqueue-r1"


def test_it_is_tried_again_with_other_settings(world: World) -> None:
    doomed(world, Killed(), MOST_ATTEMPTS)
    goes_on_without(world)
    doomed(world, Killed(), image_size=64)
    assert [times for times, _ in world.store.attempts(PROJECT).values()] == [1]


def test_what_is_interrupted_on_purpose_or_explained_is_tried_for_ever(world: World) -> None:
    for ending in (StudioUnavailable("no answer"), OSError("odd")):
        doomed(world, ending, 2)
    assert [times for times, _ in world.store.attempts(PROJECT).values()] == [2]
    doomed(world, StudioUnavailable("no answer"), MOST_ATTEMPTS)
    world.run()
    assert world.store.attempts(PROJECT) == {}


def test_a_comparison_with_chance_that_is_cut_off_three_times_is_left_out(tmp_path: Path) -> None:
    world = World(tmp_path / "data", control_share=0.5, cold_start_size=18, queue_depth=18)
    world.add_scans(0, 24)
    world.run()
    world.label(18)
    doomed(world, Killed(), spared=1)  # the model is trained, and its comparison is killed
    doomed(world, Killed(), MOST_ATTEMPTS - 1)
    assert goes_on_without(world) == ""
    assert (world.status()["model"], world.studio.model_version) == ("scanqueue-r1", "scanqueue-r1")
    assert world.status()["control"] is None


def test_the_attempts_of_a_project_are_forgotten_with_it(world: World) -> None:
    doomed(world, Killed())
    world.store.add_project(11)  # its number begins like ours
    world.store.begin_attempt(11, "train", "recipe", 3, first=False)
    forget_project(world.store, PROJECT)
    assert world.store.attempts(PROJECT) == {}
    assert world.store.attempts(11) == {("train", "recipe"): (1, 3)}
