"""Trainings that never end, because their process is killed (mostly for memory) or fails: the loop goes on without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuse import Killed
from numpy.typing import NDArray
from world import COLD, PROJECT, ROUND, SIZE, KeptLearner, World

from backend.demo.phantoms import phantom
from backend.errors import StudioUnavailable, WorkersLost
from backend.formats.pixels import Letterboxed, letterbox
from backend.loop import attention, audit, quick_masks, rounds, steps
from backend.loop.driver import Reconciler
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


class Deadly(KeptLearner):
    """A learner whose process is killed by the scans of these seeds, while it does a kind of work."""

    seeds: tuple[int, ...] = ()
    work = ""
    before_death: Callable[[], None] = staticmethod(lambda: None)

    def _risk(self, work: str, given: list[Any], made: Callable[[Any], Any]) -> None:
        fatal = [made(phantom(seed, (SIZE, SIZE))[0]) for seed in self.seeds]
        if work == self.work and any(np.array_equal(one, each) for one in given for each in fatal):
            self.before_death()
            raise Killed

    def embed_prepared(self, prepared: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        self._risk("read", list(prepared), self.prepare)
        return super().embed_prepared(prepared)

    def signals(self, folder: Path, scans: Sequence[Letterboxed], extra: str = "") -> Any:
        self._risk("score", [s.pixels for s in scans], lambda image: letterbox(image, len(scans[0].pixels)).pixels)
        return super().signals(folder, scans, extra)

    def masks(self, folder: Path, scans: Sequence[Letterboxed]) -> Any:
        self._risk("draw", [s.pixels for s in scans], lambda image: letterbox(image, len(scans[0].pixels)).pixels)
        return super().masks(folder, scans)


def deadly(world: World, work: str, *seeds: int) -> Reconciler:
    """A new process that such scans kill."""
    learner = Deadly(world.settings)
    learner.seeds, learner.work = seeds, work
    return replace(world.reconciler(), learner=learner)


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
    world.store.begin_attempt(11, "train", ["recipe"], 3, first=False)
    forget_project(world.store, PROJECT)
    assert world.store.attempts(PROJECT) == {}
    assert world.store.attempts(11) == {("train", "recipe"): (1, 3)}


def begun(world: World, work: str) -> tuple[int, int]:
    """Make that work on scans 0 to 19 due; returns the seed and the task of one of them."""
    tasks = world.add_scans(0, 20)
    if work == "read":
        return 13, tasks[13]
    world.run()
    world.label(COLD)
    last = world.order()[-1]
    return tasks.index(last), last


@pytest.mark.parametrize("work", ["read", "score", "draw"])
def test_a_scan_that_kills_its_worker_three_times_is_left_out_and_the_others_go_on(
    work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "data", queue_depth=20)
    seed, killer = begun(world, work)
    for _ in range(MOST_ATTEMPTS):
        with pytest.raises(Killed):
            deadly(world, work, seed).reconcile(PROJECT)
    assert deadly(world, work, seed).reconcile(PROJECT).steps == ()
    ((task, text),) = world.store.problems(PROJECT)
    assert task == killer
    assert "the worker ended 3 times" in text
    assert "give the worker more memory" in text
    assert killer not in world.published()
    assert len(world.published()) == 19 - (0 if work == "read" else COLD)

    monkeypatch.setattr(attention, "PROBLEM_RETRY", 0.0)  # unreadable scans are read again by themselves
    deadly(world, work, seed).reconcile(PROJECT)
    assert [t for t, _ in world.store.problems(PROJECT)] == [killer]
    monkeypatch.undo()
    audit.retry(world.store, PROJECT, "local", killer)
    with pytest.raises(Killed):  # it is tried again
        deadly(world, work, seed).reconcile(PROJECT)
    world.run()
    assert (world.store.problems(PROJECT), world.store.attempts(PROJECT)) == ([], {})


def test_the_scans_that_kill_are_found_among_many_and_others_are_not_suspected(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    tasks = world.add_scans(0, 20)
    deaths = 0
    while True:
        try:
            deadly(world, "read", 3, 4, 17).reconcile(PROJECT)
            break
        except Killed:
            deaths += 1
    assert sorted(t for t, _ in world.store.problems(PROJECT)) == [tasks[3], tasks[4], tasks[17]]
    assert deaths <= 3 * MOST_ATTEMPTS
    assert world.status()["embedded"] == 17


@pytest.mark.parametrize("work", ["read", "score", "draw"])
def test_a_planned_stop_is_no_death_even_if_the_worker_does_not_end_in_time(work: str, tmp_path: Path) -> None:
    world = World(tmp_path / "data", queue_depth=20)
    seed, _ = begun(world, work)
    for _ in range(MOST_ATTEMPTS + 1):
        process = deadly(world, work, seed)
        process.learner.before_death = process.context.attempts.stop  # type: ignore[attr-defined]
        with pytest.raises(Killed):
            process.reconcile(PROJECT)
    world.run()
    assert (world.store.problems(PROJECT), world.store.attempts(PROJECT)) == ([], {})


def test_a_planned_stop_of_a_training_is_no_death(world: World) -> None:
    for _ in range(MOST_ATTEMPTS + 1):
        learner = Doomed(world.settings)
        process = replace(world.reconciler(), learner=learner)

        def stop(*_: Any, process: Reconciler = process, **__: Any) -> None:
            process.context.attempts.stop()
            raise Killed

        learner.train = stop  # type: ignore[method-assign,assignment]
        with pytest.raises(Killed):
            process.reconcile(PROJECT)
    world.run()
    assert world.status()["model"] == "scanqueue-r1"


def test_a_map_that_is_cut_off_three_times_is_laid_out_from_fewer_scans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (steps, rounds):
        monkeypatch.setattr(module, "FEW_ON_MAP", 10)
    world = World(tmp_path / "data")
    world.add_scans(0, 20)
    fit = rounds.lay_out

    def greedy(*given: Any) -> Any:
        if given[-1] != 10:
            raise Killed
        return fit(*given)

    monkeypatch.setattr(rounds, "lay_out", greedy)
    for _ in range(MOST_ATTEMPTS):
        with pytest.raises(Killed):
            world.run()
    world.run()
    assert len(world.order()) == 20
    assert "lays out 10 scans" in world.status()["trouble"]
    assert "give the worker more memory" in world.status()["trouble"]
    world.add_scans(20, 61)
    with pytest.raises(Killed):  # the pool is four times as large
        world.run()
    monkeypatch.setattr(rounds, "lay_out", fit)
    world.run()
    assert (len(world.order()), world.status()["trouble"], world.store.attempts(PROJECT)) == (81, "", {})


def test_quick_masks_that_are_cut_off_three_times_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path / "data", quick_model="on", cold_start_size=12, queue_depth=8).cold_started()
    learnt = quick_masks.learn_alone

    def greedy(*_: Any) -> Any:
        raise Killed

    monkeypatch.setattr(quick_masks, "learn_alone", greedy)
    world.label(2)
    for _ in range(MOST_ATTEMPTS):
        with pytest.raises(Killed):
            world.run()
    world.label(1)
    world.run()
    told = world.status()["trouble"]
    assert "Drawing quick masks from 3 labels was cut off 3 times" in told
    assert "set quick_model to off" in told
    world.label(ROUND - 1)
    with pytest.raises(Killed):  # with so many more labels, it is tried again
        world.run()
    monkeypatch.setattr(quick_masks, "learn_alone", learnt)
    world.run()
    assert (world.status()["trouble"], world.store.attempts(PROJECT)) == ("", {})
    assert world.store.quick_masks(PROJECT, "scanqueue-r0")
