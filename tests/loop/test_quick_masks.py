"""Before the first training, tasks open with masks of the quick model; held tasks and the order stay as they are."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from world import PROJECT, World

from backend.errors import UnreadableMask, WeightsMissing
from backend.facts import IMPORTED_MASKS, Scan
from backend.learning.learner import Learner
from backend.loop import audit, tending
from backend.loop.batch import BatchProcessor
from backend.loop.driver import Reconciler
from backend.loop.predictor import Predictor
from backend.loop.quick_masks import QuickDrawer
from backend.records.quick_masks import PROJECT_ROW
from backend.records.store import Store
from backend.web.learning_curve import curve
from backend.web.overview import Overview
from backend.web.pictures import Pictures

pytestmark = pytest.mark.usefixtures("miniature")

SCANS, COLD = 16, 12


def world_with(folder: Path, **params: Any) -> World:
    """All scans in the queue, nothing labelled."""
    defaults = {"cold_start_size": COLD, "queue_depth": SCANS, "quick_model": "on", "least_dice": 0.0}
    world = World(folder, **defaults | params)
    world.add_scans(0, SCANS)
    world.run()
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return world_with(tmp_path / "data")


def regions(world: World) -> dict[int, str]:
    """What each task of the first round shows, as JSON; "[]" is blank."""
    first = (p for p in world.studio.predictions if p["model_version"] == "scanqueue-r0")
    return {p["task"]: json.dumps(p["result"]) for p in first}


def label_one(world: World) -> int:
    (task,) = world.label(1)
    world.run()
    return task


def test_from_the_second_label_on_the_next_tasks_show_masks_and_the_order_stays(world: World) -> None:
    order, scores = world.order(), {p["task"]: p["score"] for p in world.studio.predictions}
    label_one(world)
    assert set(regions(world).values()) == {"[]"}
    label_one(world)
    shown = [place for place, task in enumerate(order) if regions(world)[task] != "[]"]
    assert shown == [4, 5, 6, 7]  # two are labelled, one is held by the annotator, one perhaps by somebody new
    assert {p["task"]: p["score"] for p in world.studio.predictions} == scores
    assert len(world.studio.predictions) == SCANS
    assert world.order() == order
    assert world.status()["quick"]["labels"] == 2


def test_annotators_correct_masks_that_get_better_and_held_tasks_are_never_touched(world: World) -> None:
    opened, blank = [], 0
    for number in range(COLD - 1):
        before, queue = regions(world), [t for t in world.order() if t not in world.annotations]
        task = label_one(world)
        opened.append(task)
        assert task == queue[0]
        blank += number > 2 and before[task] == "[]"
        held = queue[1:3]
        assert {t: regions(world)[t] for t in held} == {t: before[t] for t in held}
    assert opened == world.order()[: COLD - 1]
    assert blank <= 1
    shown = {row["task"]: row["dice"] for row in world.store.shown(PROJECT, "scanqueue-r0")}
    assert len(shown) >= COLD - 5
    late = [shown[task] for task in opened[6:]]
    assert sum(late) / len(late) > 0.6
    groups = curve(world.store, PROJECT)["quick"]
    assert [group["labels"] for group in groups] == [4, 8]  # means of up to 5, and of 6 to 10
    assert sum(group["n"] for group in groups) == len(shown)
    assert world.status()["shown"]["n"] == len(shown)


def test_a_task_that_somebody_has_begun_is_left_alone(world: World) -> None:
    world.label(2)
    begun = world.order()[5]
    world.studio.drafts.add(begun)
    world.run()
    shown = [place for place, task in enumerate(world.order()) if regions(world)[task] != "[]"]
    assert shown == [4, 6, 7]


def test_the_first_model_takes_over(world: World) -> None:
    world.label(COLD)
    world.run()
    assert (world.status()["model"], world.status()["quick"]) == ("scanqueue-r1", None)
    before = regions(world)
    label_one(world)
    assert regions(world) == before


def test_a_first_model_that_draws_worse_leaves_the_drawing_to_the_quick_model(tmp_path: Path) -> None:
    """The network is trained for three steps only."""
    world = World(tmp_path / "data", cold_start_size=25, round_size=5, queue_depth=10, quick_model="on", least_dice=0.0)
    world.add_scans(0, 40)
    world.run()
    world.label(25)
    world.run()
    (model,) = world.store.models(PROJECT)
    assert (model["accepted"], world.status()["model"]) == (0, None)
    champion = model["details"]["champion"]
    assert (champion["version"], champion["difference"]["scans"]) == ("quick model", 5)
    assert model["validation"]["dice"] < champion["dice"]
    assert "worse than the quick model by" in model["remark"]
    assert world.status()["quick"]["labels"] == 25
    assert world.status()["reason"] == "No model is active. The next one is trained after 5 new labels."
    first = world.studio.next_task()
    assert first is not None
    shown = {
        p["task"]: p["result"] for p in world.studio.predictions if p["model_version"] == world.studio.model_version
    }
    assert shown[first], "opens blank"
    before = {t: json.dumps(r) for t, r in shown.items()}
    label_one(world)
    after = {p["task"]: json.dumps(p["result"]) for p in world.studio.predictions}
    assert any(after[t] != before[t] for t in before), "nothing is redrawn any more"
    world.label(4)
    world.run()
    assert len(world.store.models(PROJECT)) == 2  # the next training compares again


def test_masks_that_would_hinder_are_hidden_until_they_are_good_enough(tmp_path: Path) -> None:
    world = world_with(tmp_path / "data", least_dice=1.0)
    world.label(4)
    world.run()
    assert set(regions(world).values()) == {"[]"}
    quick = world.status()["quick"]
    assert (quick["labels"], quick["hidden"], 0 < quick["dice"] < 1) == (4, True, True)
    world.set(cold_start_size=COLD, queue_depth=SCANS, quick_model="on", least_dice=0.0)
    label_one(world)
    assert regions(world)[world.order()[8]] != "[]"
    assert not world.status()["quick"]["hidden"]
    world.set(cold_start_size=COLD, queue_depth=SCANS, quick_model="on", least_dice=1.0)
    label_one(world)
    assert regions(world)[world.order()[9]] == "[]"  # too poor now: it is taken back
    assert world.store.shown(PROJECT) == []


def test_switched_off_everything_opens_blank(tmp_path: Path) -> None:
    world = world_with(tmp_path / "data", quick_model="off")
    world.label(4)
    world.run()
    assert (set(regions(world).values()), world.status()["quick"]) == ({"[]"}, None)


def test_switched_off_midway_its_masks_are_taken_back_but_for_held_tasks(world: World) -> None:
    world.label(4)
    world.run()
    before = regions(world)
    world.set(cold_start_size=COLD, queue_depth=SCANS, quick_model="off")
    assert set(regions(world).values()) == {"[]"}
    assert world.status()["quick"] is None
    world.set(cold_start_size=COLD, queue_depth=SCANS, quick_model="on", least_dice=0.0)
    assert {t: len(r) > 2 for t, r in regions(world).items()} == {t: len(r) > 2 for t, r in before.items()}


def test_a_skipped_scan_does_not_count_as_held(world: World) -> None:
    """It stays first in the order, but Label Studio serves it to nobody who skipped it."""
    first, second = world.order()[:2]
    world.studio.skip(first)
    world.studio.skip(second)
    world.run()
    for _ in range(4):
        held = world.studio.next_task()
        assert held is not None
        before = regions(world)[held]
        world.run()
        assert regions(world)[held] == before
        label_one(world)


def test_deleted_labels_are_forgotten_and_so_are_masks_without_labels(world: World) -> None:
    tasks = world.label(4)
    world.run()
    for number, task in enumerate(tasks, start=1):
        world.studio.delete(world.annotations.pop(task))
        world.run()
        quick = world.status()["quick"]
        assert (quick["labels"] if quick else 0) == (4 - number if number < 3 else 0)
    free = world.order()[2:6]  # those further back are redrawn before they are opened
    assert {regions(world)[task] for task in free} == {"[]"}


def test_what_is_compared_is_what_label_studio_shows(world: World) -> None:
    """Another program empties all predictions, which our records do not know."""
    world.label(4)
    world.run()
    for prediction in world.studio.predictions:
        prediction["result"] = []
    task = label_one(world)
    assert task not in {row["task"] for row in world.store.shown(PROJECT)}


def test_deleted_predictions_are_published_again_with_masks(world: World) -> None:
    world.label(4)
    world.run()
    world.studio.predictions.clear()
    world.run()
    task = label_one(world)
    assert task in {row["task"] for row in world.store.shown(PROJECT)}


def test_masks_imported_later_are_no_reason_to_blank_a_task(world: World) -> None:
    world.label(3)
    world.run()
    task = world.order()[6]
    before = regions(world)[task]
    row = {"task": task, "score": 0.5, "model_version": IMPORTED_MASKS, "result": world.truth(task)}
    world.studio.import_predictions(PROJECT, [row])
    label_one(world)
    assert regions(world)[task] == before != "[]"


def test_a_new_round_of_the_cold_start_shows_masks_from_its_first_task_on(world: World) -> None:
    world.label(4)
    world.run()
    last = world.order()[-1]
    audit.set_priorities(world.store, PROJECT, "anna", [last], "next")
    world.run()
    assert (world.studio.model_version, world.status()["model"]) == ("scanqueue-r1", None)
    order = world.order()
    first = [t for t in order if t not in world.annotations][:4]
    shown = {p["task"]: p["result"] for p in world.studio.predictions if p["model_version"] == "scanqueue-r1"}
    assert last in first
    assert all(shown[task] for task in first), first
    assert world.status()["quick"]["labels"] == 4
    label_one(world)
    rows = world.store.shown(PROJECT, "scanqueue-r1")
    assert [row["task"] for row in rows] == first[:1]


def test_an_edited_label_is_learnt_at_once(world: World) -> None:
    tasks = world.label(3)
    world.run()
    before = regions(world)
    world.studio.edit(world.annotations[tasks[0]], [])
    world.run()
    changed = [task for task, shown in regions(world).items() if shown != before[task]]
    assert changed == world.order()[5:9]


def test_imported_masks_stay(tmp_path: Path) -> None:
    world = World(tmp_path / "data", cold_start_size=COLD, queue_depth=SCANS, quick_model="on", least_dice=0.0)
    tasks = world.add_scans(0, SCANS)
    mine = {task: world.truth(task) for task in tasks[::3]}
    world.studio.import_predictions(
        PROJECT, [{"task": t, "score": 0.5, "model_version": IMPORTED_MASKS, "result": r} for t, r in mine.items()]
    )
    world.run()
    before = regions(world)
    world.label(4)
    world.run()
    after = regions(world)
    assert all(after[task] == before[task] != "[]" for task in mine)
    drawn = [task for task in world.order()[6:10] if task not in mine]
    assert drawn and all(after[task] != "[]" for task in drawn)  # noqa: PT018


def test_without_the_built_in_network_the_queue_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise WeightsMissing("the built-in weights are not installed")

    monkeypatch.setattr(Learner, "features", missing)
    world.label(COLD)
    world.run()
    assert (world.status()["model"], world.status()["trouble"]) == ("scanqueue-r1", "")


def test_a_task_that_label_studio_asks_about_is_drawn_by_the_quick_model_too(world: World) -> None:
    """As somebody who opens a task deep in the queue in the Data Manager, before it has a prediction."""
    world.label(4)
    world.run()
    task = world.order()[-1]
    data = {"image": world.studio.reference(task)}
    predictor = Predictor(world.store, world.studio, Learner(world.settings))  # type: ignore[arg-type]
    (found,) = predictor.predict(PROJECT, [{"id": task, "data": data}])
    assert (found["model_version"], bool(found["result"])) == ("scanqueue-r0", True)
    world.studio.predictions = [p for p in world.studio.predictions if p["task"] != task]
    world.studio.import_predictions(PROJECT, [{"task": task, **found}])
    world.submit(task)
    world.run()
    assert [row["task"] for row in world.store.shown(PROJECT)] == [task]


def label_while_it_trains(world: World) -> tuple[Reconciler, list[int]]:
    """A process in which an annotator submits the next scan while it trains; the tasks that were submitted."""
    reconciler, submitted = world.reconciler(), list[int]()
    reconciler.tender._tended[PROJECT] = time.monotonic()  # it has just looked at the queue

    def news(project: int) -> bool:
        submitted.extend(world.label(1) if not submitted else [])
        return len(submitted) == 1

    reconciler.context.news = news
    return reconciler, submitted


def test_labels_submitted_while_the_first_model_is_trained_redraw_the_next_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_with(tmp_path / "data", cold_start_size=4, queue_depth=SCANS)
    world.label(4)
    reconciler, submitted = label_while_it_trains(world)
    at: list[dict[int, str]] = []
    real = Store.put_model

    def trained(*args: Any, **kwargs: Any) -> Any:
        at.append(regions(world))
        return real(*args, **kwargs)

    drawn = QuickDrawer.redraw
    before: list[dict[int, str]] = []

    def redraw(*args: Any) -> None:
        drawn(*args)
        before.append(regions(world))

    monkeypatch.setattr(Store, "put_model", trained)
    monkeypatch.setattr(QuickDrawer, "redraw", redraw)
    reconciler.reconcile(PROJECT)
    (task,) = submitted
    changed = [t for t in world.order() if before[0].get(t) != at[0].get(t)]
    first = before[0].keys() - world.annotations.keys()
    assert changed, "nothing was redrawn during the training"
    assert task not in changed
    assert world.store.quick_mask(PROJECT, PROJECT_ROW)["learnt"] == 5  # type: ignore[index]
    (model,) = world.store.models(PROJECT)
    assert len(model["trained_on"]) == 4
    assert first.issuperset(changed)


def test_the_queue_is_refilled_while_the_quick_model_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two busy cores, twenty annotators finished their queue while the features of twenty scans were computed."""
    world = world_with(tmp_path / "data", queue_depth=4, round_size=3)
    world.label(1)
    monkeypatch.setattr(tending, "TEND_EVERY", 0.0)
    features, drawn = BatchProcessor.features, QuickDrawer.redraw
    open_after: list[set[int]] = []

    def label_meanwhile(self: BatchProcessor, scan: Scan) -> Any:
        if len(world.annotations) == 1:
            world.label(2)
        return features(self, scan)

    def redraw(*args: Any) -> None:
        drawn(*args)
        open_after.append(world.published().keys() - world.annotations.keys())

    monkeypatch.setattr(BatchProcessor, "features", label_meanwhile)
    monkeypatch.setattr(QuickDrawer, "redraw", redraw)
    world.run()
    assert len(open_after[0]) == 4  # before, 1
    assert len(world.studio.predictions) == len({p["task"] for p in world.studio.predictions})


class Killed(BaseException):
    """The process was killed."""


def test_killed_at_any_write_it_ends_the_same_without_double_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: Path, last: int) -> tuple[dict[str, Any], int]:
        world, writes = world_with(folder), 0
        world.label(3)
        with monkeypatch.context() as patch:
            for owner, name in (
                (type(world.studio), "replace_results"),
                (Store, "put_arrays"),
                (Store, "put_quick_masks"),
            ):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            steps[0], limit[0] = 0, last
            with suppress(Killed):
                world.run()
            writes = steps[0]
        world.run()
        assert len(world.studio.predictions) == SCANS
        assert sum(shown != "[]" for shown in regions(world).values()) == 4
        state = world.end_state()
        return state | {"quick": [dict(r) for r in world.store.quick_masks(PROJECT, "scanqueue-r0").values()]}, writes

    steps, limit = [0], [0]

    def counted(call: Any) -> Any:
        def fused(*args: Any, **kwargs: Any) -> Any:
            if limit[0] and steps[0] >= limit[0]:
                raise Killed
            steps[0] += 1
            return call(*args, **kwargs)

        return fused

    whole, count = run(tmp_path / "whole", 0)
    assert count >= 10
    for last in sorted({*range(1, count, 3), count - 2, count - 1}):
        state, _ = run(tmp_path / f"killed-{last}", last)
        assert state == whole, f"killed after write {last}"


def test_the_page_outlines_the_masks_that_the_next_tasks_show(world: World) -> None:
    world.label(3)
    world.run()
    pictures = Pictures(world.store, world.reconciler().processor)
    data = Overview(world.store, world.studio, pictures, lambda _: [])  # type: ignore[arg-type]
    assert data.queue(PROJECT)["model"] == "quick"
    held, drawn = world.order()[3], world.order()[5]
    plain, outlined = (data.scan_picture(PROJECT, drawn, 160, model) for model in ("", "quick"))
    assert plain != outlined
    with pytest.raises(UnreadableMask, match="shows no mask of the quick model"):
        data.scan_picture(PROJECT, held, 160, "quick")
    assert world.status()["quick"] == {"labels": 3, "dice": pytest.approx(0.8, abs=0.2), "hidden": False}
