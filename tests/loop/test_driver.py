"""The loop itself: the real Reconciler, Store and Learner, made small, on a Label Studio in memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fuse import STORE_WRITES, Fuse, Fused, Killed, with_fuse
from typer.testing import CliRunner
from weight_files import timm_folder
from world import (
    COLD,
    CONFIG,
    DEPTH,
    LARGER,
    NO_MASKS,
    PARAMS,
    PROJECT,
    ROUND,
    SIZE,
    TRAINED,
    KeptLearner,
    World,
    png,
)

from backend import cli
from backend.demo.phantoms import phantom
from backend.errors import ScanqueueError, StorageFull, StudioRefused, StudioUnavailable, UnreadableScan
from backend.facts import SAMPLING, Scan, control_draw
from backend.learning.segmenters import WEIGHTS_FILE, Segmenter
from backend.loop import attention, audit, control_trial, listing, observing, tending
from backend.loop.annotations import AnnotationReader
from backend.loop.batch import cached_pixels
from backend.loop.context import Busy, LoopContext
from backend.loop.control_trial import ControlTrial
from backend.records.maps import map_name
from backend.records.store import Store, activate_model
from backend.records.tables import uncertainty_table
from backend.web import status

pytestmark = pytest.mark.usefixtures("miniature")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "data")


# -- the life of a project ---------------------------------------------------------------------


def test_a_project_goes_from_the_cold_start_through_two_rounds(world: World) -> None:
    world.cold_started()
    cold = world.order()
    assert sorted(cold) == sorted(world.masks)
    assert world.published("scanqueue-r0") == dict.fromkeys(cold[:DEPTH], 1)
    assert world.studio.sampling == SAMPLING
    assert (world.status()["phase"], world.status()["queue"]) == ("cold_start", cold[:DEPTH])
    assert world.label(2) == cold[:2]
    world.run()
    assert world.published("scanqueue-r0") == dict.fromkeys(cold[: DEPTH + ROUND], 1)
    assert world.label(COLD - 2) == cold[2:COLD]
    world.run()
    assert (world.status()["phase"], world.status()["round"], world.status()["model"]) == ("active", 1, "scanqueue-r1")
    first = world.order()
    assert sorted(first) == sorted(set(world.masks) - set(cold[:COLD]))
    assert set(first[:DEPTH]) <= set(world.published("scanqueue-r1"))
    assert world.label(ROUND) == first[:ROUND]
    world.run()
    assert world.studio.model_version == "scanqueue-r2"
    assert sorted(world.order()) == sorted(set(first) - set(first[:ROUND]))
    assert {(s["task"], s["version"]) for s in world.store.shown(PROJECT)} == {(t, "scanqueue-r1") for t in first[:3]}
    world.label(ROUND)
    world.run()
    assert (world.status()["phase"], world.status()["queue"]) == ("done", [])


def test_a_lost_shown_mask_is_predicted_again_for_the_comparison(world: World) -> None:
    world.in_round_1()
    (task,) = world.label(1)
    for mask in (world.folder / "masks").rglob("*"):
        if mask.is_file():
            mask.unlink()
    world.run()
    assert [(s["task"], s["version"]) for s in world.store.shown(PROJECT)] == [(task, "scanqueue-r1")]


def test_lost_artefacts_cost_only_time(world: World) -> None:
    world.in_round_1()
    version = world.status()["model"]
    for kind in ("labels", "pixels", "masks", "models"):
        shutil.rmtree(world.folder / kind)
    world.run()
    seen = world.status()
    assert (seen["phase"], seen["trouble"]) == ("active", "")
    assert seen["model"] != version
    assert all(count == 1 for count in world.published(seen["model_version"]).values())


def test_training_and_comparison_work_after_a_change_of_image_size(world: World) -> None:
    world.in_round_1().label(ROUND)
    world.settings = replace(world.settings, image_size=64)
    world.run()
    assert world.status()["trouble"] == ""
    assert [m["version"] for m in world.store.models(PROJECT)] == ["scanqueue-r1", "scanqueue-r2"]


def test_a_second_reconciliation_writes_nothing(world: World) -> None:
    world.in_round_1().label(1)
    world.run()
    before, writes = world.end_state(), list(world.studio.writes)
    touched = {p: p.stat().st_mtime_ns for p in world.folder.rglob("*.npz")}
    again = world.reconciler()
    for _ in range(2):
        assert again.reconcile(PROJECT).steps == ()
    world.run()
    assert world.studio.writes == writes
    assert world.end_state() == before
    assert {p: p.stat().st_mtime_ns for p in world.folder.rglob("*.npz")} == touched


def test_a_second_process_leaves_a_locked_project_alone(world: World) -> None:
    world.add_scans(0, 5)
    with world.store.lock(PROJECT), pytest.raises(Busy):
        world.reconciler().reconcile(PROJECT)
    assert world.studio.writes == []


# -- killed at any point -----------------------------------------------------------------------


def scenario(folder: Path, fuse: Fuse) -> World:
    """Cold start, late scans, the first model, a round, the second model; killed once, then restarted."""
    world = World(folder)
    world.add_scans(0, 10)
    with_fuse(world, fuse)
    world.label(3)
    world.add_scans(10, 2)
    with_fuse(world, fuse)
    world.label(COLD - 3)
    with_fuse(world, fuse)
    world.label(ROUND - 1)
    world.studio.edit(next(iter(world.annotations.values())), [])
    with_fuse(world, fuse)
    return world


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The final state of the scenario, and every write that led to it."""
    fuse = Fuse()
    world = scenario(tmp_path_factory.mktemp("undisturbed") / "data", fuse)
    assert world.studio.model_version == "scanqueue-r2"
    return SimpleNamespace(end=world.end_state(), names=fuse.names)


def test_the_undisturbed_run_publishes_every_round_once(undisturbed: SimpleNamespace) -> None:
    counts = Counter((version, task) for version, task, _, _ in undisturbed.end["predictions"])
    assert set(counts.values()) == {1}
    assert {version for version, _ in counts} == {"scanqueue-r0", "scanqueue-r1", "scanqueue-r2"}
    assert undisturbed.end["tabs"] == ["Default", "scanqueue"]
    assert undisturbed.end["webhooks"] == ["http://127.0.0.1:9090/webhook"]
    assert undisturbed.end["shown to annotators"] == [True, True, True]


def _same_end(undisturbed: SimpleNamespace, folder: Path, at: int, *, midway: bool = False) -> None:
    fuse = Fuse(at, midway=midway)
    end = scenario(folder, fuse).end_state()
    assert fuse.names[:at] == undisturbed.names[:at], "the run before the kill was different"
    where = f"killed at write {at} of {len(undisturbed.names)}, {undisturbed.names[at - 1]}"
    for part, value in undisturbed.end.items():
        assert end[part] == value, f"{part}, {where}"
    shutil.rmtree(folder)


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 18))])
def test_a_kill_before_any_write_leads_to_the_same_end_state(
    first: int, undisturbed: SimpleNamespace, tmp_path: Path
) -> None:
    """A kill after a write equals a kill before the next one: nothing permanent happens in between."""
    for at in range(1 + first, len(undisturbed.names) + 1, 18):
        _same_end(undisturbed, tmp_path / "data", at)


def test_a_kill_during_a_large_write_leads_to_the_same_end_state(undisturbed: SimpleNamespace, tmp_path: Path) -> None:
    large = [i for i, name in enumerate(undisturbed.names, start=1) if name in ("import_predictions", "put_folder")]
    assert len(large) >= 7
    for at in large:
        _same_end(undisturbed, tmp_path / "data", at, midway=True)


# -- lost answers -------------------------------------------------------------------------------


def test_the_page_says_at_once_that_label_studio_answers_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look may go on for hours, while the other scans are read."""
    tools, observe = world.reconciler(), observing.Observer.observe

    def fail(*given: Any) -> Any:
        raise StudioUnavailable("Label Studio does not answer.")

    world.add_scans(0, 12)
    monkeypatch.setattr(observing.Observer, "observe", fail)
    with pytest.raises(StudioUnavailable):
        tools.reconcile(PROJECT)
    assert world.status()["trouble"] == "Label Studio does not answer."
    during: list[str] = []

    def noted(*given: Any) -> Any:
        during.append(world.status()["trouble"])
        return observe(*given)

    monkeypatch.setattr(observing.Observer, "observe", noted)
    tools.reconcile(PROJECT)
    assert len(during) > 3
    assert set(during[1:]) == {""}


def test_an_import_whose_answer_was_lost_is_not_sent_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store_rows = world.studio.import_predictions

    def lose_answer(project: int, rows: Sequence[Mapping[str, Any]], *_: int) -> None:
        store_rows(project, rows)
        raise StudioUnavailable("Label Studio does not answer.")

    monkeypatch.setattr(world.studio, "import_predictions", lose_answer)
    world.add_scans(0, 12)
    with pytest.raises(StudioUnavailable):
        world.reconciler().reconcile(PROJECT)
    assert world.status()["trouble"] == "Label Studio does not answer."
    monkeypatch.undo()
    world.run()
    assert world.published("scanqueue-r0") == dict.fromkeys(world.order()[:DEPTH], 1)
    assert world.studio.writes.count("import_predictions") == 1
    assert world.status()["trouble"] == ""


def test_an_import_that_is_still_running_is_awaited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[tuple[int, Sequence[Mapping[str, Any]]]] = []
    store_rows = world.studio.import_predictions

    def too_slow(project: int, rows: Sequence[Mapping[str, Any]], *_: int) -> None:
        late.append((project, rows))
        raise StudioUnavailable("Label Studio does not answer.")

    monkeypatch.setattr(world.studio, "import_predictions", too_slow)
    world.add_scans(0, 12)
    with pytest.raises(StudioUnavailable):
        world.reconciler().reconcile(PROJECT)
    monkeypatch.undo()
    monkeypatch.setattr(observing, "SETTLE", 3600.0)
    waited: list[float] = []

    def land(seconds: float) -> None:
        waited.append(seconds)
        store_rows(*late.pop())

    monkeypatch.setattr(observing.time, "sleep", land)
    world.run()
    assert len(waited) == 1
    assert 3500 < waited[0] <= 3600
    assert world.published("scanqueue-r0") == dict.fromkeys(world.order()[:DEPTH], 1)
    assert world.studio.writes.count("import_predictions") == 1


def test_duplicate_predictions_are_removed(world: World) -> None:
    world.cold_started()
    rows = [{k: v for k, v in p.items() if k != "id"} for p in world.studio.predictions[:2]]
    world.studio.import_predictions(PROJECT, rows)
    world.run()
    assert set(world.published().values()) == {1}


def test_a_refused_webhook_is_reported_and_the_queue_goes_on(world: World) -> None:
    world.store.set_project(PROJECT, backend_url="http://backend:9090")
    world.studio.connected = [{"id": 1, "title": "scanqueue", "url": "http://backend:9090"}]
    world.add_scans(0, 12)
    world.reconciler().reconcile(PROJECT)
    assert "host name has no dot" in world.status()["trouble"]
    assert world.status()["queue"] == world.order()[:DEPTH]
    assert len(world.published("scanqueue-r0")) == DEPTH
    world.store.set_project(PROJECT, backend_url="http://backend.internal:9090")
    world.studio.connected = [{"id": 1, "title": "scanqueue", "url": "http://backend.internal:9090"}]
    world.run()
    assert world.status()["trouble"] == ""


def test_refused_predictions_are_reported_and_sent_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.in_round_1().label(ROUND - 1)
    world.run()
    world.store.set_project(PROJECT, extra_params=json.dumps(PARAMS | {"strategy": "medoids+paper"}))

    def refuse(project: int, rows: Sequence[Mapping[str, Any]], *_: int) -> None:
        raise StudioRefused(f"Label Studio stored 0 of {len(rows)} predictions and gave no reason.")

    with monkeypatch.context() as broken:
        broken.setattr(world.studio, "import_predictions", refuse)
        world.reconciler().reconcile(PROJECT)
    assert world.status()["trouble"] == "Label Studio stored 0 of 4 predictions and gave no reason."
    assert world.studio.model_version == "scanqueue-r1"
    world.run()
    assert world.status()["trouble"] == ""
    assert world.studio.model_version == "scanqueue-r2"


# -- training -----------------------------------------------------------------------------------


def test_a_worse_model_is_kept_and_reported_and_the_better_one_stays_active(tmp_path: Path) -> None:
    world = World(tmp_path / "data", steps=30, cold_start_size=25, round_size=19, queue_depth=25)
    world.add_scans(0, 32)
    world.run()
    world.label(25)
    world.run()
    (first,) = world.store.models(PROJECT)
    assert first["validation"]["dice"] > 0.3  # it learnt something that it can lose
    watched = {one["task"] for one in first["details"]["held_out"]}
    assert len(watched) == 5
    for task in sorted(set(world.annotations) - watched)[:-1]:
        world.studio.edit(world.annotations[task], [])  # "there is no lung"
    world.run()
    champion, challenger = world.store.models(PROJECT)
    assert (champion["accepted"], challenger["accepted"]) == (1, 0)
    was, now = champion["validation"]["dice"], challenger["validation"]["dice"]
    assert {one["task"] for one in challenger["details"]["held_out"]} == watched  # the active model knows the others
    assert challenger["remark"].startswith(f"On 5 held-out scans it is worse by {was - now:.3f} (95 % interval ")
    assert challenger["remark"].endswith(
        f"): Lung: Dice {now:.3f} against {was:.3f} on 5 scans with it. scanqueue-r1 stays active."
    )
    assert [m["active"] for m in status.model_list(world.store, PROJECT)] == [True, False]
    assert world.status()["model"] == "scanqueue-r1"
    assert world.studio.model_version == "scanqueue-r2"
    rounds = status.round_list(world.store, PROJECT)
    assert [(r["round"], r["model"], r["accepted"]) for r in rounds[1:]] == [
        (1, "scanqueue-r1", True),
        (2, "scanqueue-r1", False),
    ]
    assert rounds[2]["remark"] == challenger["remark"]
    asked = ["models", "list", "--project", "1", "--data-dir", str(world.folder)]
    told = CliRunner().invoke(cli.app, asked, env={"COLUMNS": "80"}).output
    assert all(f" {one} " in told for one in ("scanqueue-r1", "scanqueue-r2", "active", "rejected", "checkpoint"))
    assert f"scanqueue-r2: {challenger['remark']}" in " ".join(told.split())
    drawn = {p["task"]: p for p in world.studio.predictions if p["model_version"] == "scanqueue-r2"}
    assert any(p["result"] for p in drawn.values())

    activate_model(world.store, PROJECT, "scanqueue-r2")
    world.run()
    assert (world.status()["model"], world.studio.model_version) == ("scanqueue-r2", "scanqueue-r3")
    again = {p["task"]: p for p in world.studio.predictions if p["model_version"] == "scanqueue-r3"}
    assert set(world.order()[:DEPTH]) <= set(again)
    masks = {t: [r["value"]["rle"] for r in p["result"]] for t, p in again.items()}
    assert any(masks[t] != [r["value"]["rle"] for r in drawn[t]["result"]] for t in set(masks) & set(drawn))
    activate_model(world.store, PROJECT, "scanqueue-r1")
    world.run()
    assert world.studio.model_version == "scanqueue-r4"
    assert len(world.store.models(PROJECT)) == 2


def test_held_out_scans_are_judged_by_weights_that_have_not_learnt_from_them(world: World) -> None:
    world.in_round_1()
    (model,) = world.store.models(PROJECT)
    learner, digests = KeptLearner(world.settings), {s["task"]: s["digest"] for s in world.store.scans(PROJECT)}
    masks = {label["task"]: label["mask"] for label in world.store.labels(PROJECT)}
    folder = world.store.path("models", model["details"]["judged"])
    assert folder.read_bytes() != world.store.path("models", model["fingerprint"]).joinpath(WEIGHTS_FILE).read_bytes()
    for one in model["details"]["held_out"]:
        scan = cached_pixels(world.store, digests[one["task"]], learner.image_size)
        assert scan is not None
        truth = world.store.arrays("labels", masks[one["task"]])["mask"]
        score = learner.compare(learner.masks(folder, [scan])[0], truth, 2)
        assert one["dice"] == pytest.approx(score.dice, abs=1e-6)


def test_without_its_judged_weights_the_active_model_is_not_compared(world: World) -> None:
    world.in_round_1()
    world.store.path("models", world.store.models(PROJECT)[0]["details"]["judged"]).unlink()
    world.label(ROUND)
    world.run()
    second = world.store.models(PROJECT)[1]
    assert (second["accepted"], "champion" in second["details"]) == (1, False)
    assert world.status()["problems"] == []


def test_the_stopping_hint_appears_once_there_are_models(world: World) -> None:
    world.cold_started()
    assert world.status()["stopping"] is None
    world.label(COLD)
    world.run()
    hint = world.status()["stopping"]
    assert (hint["advice"], hint["gain"], hint["agreement"]) == ("too early to say", None, None)
    assert hint["sentence"].endswith("and there is one so far.")
    world.label(ROUND)
    world.run()
    first, second = world.store.models(PROJECT)
    assert "agreement" not in first["details"]
    same = second["details"]["agreement"]
    open_ = sum(1 for s in world.store.scans(PROJECT) if not s["annotated"])
    assert (same["n"], same["with"]) == (open_, "scanqueue-r1")
    assert same["per_label"] == {"Lung": {"dice": same["dice"], "n": open_}}
    assert 0 <= same["dice"] <= 1
    hint = world.status()["stopping"]
    assert (hint["agreement"], hint["agreement_per_label"]) == (same["dice"], same["per_label"])
    assert 0 <= hint["low"] <= hint["gain"] <= hint["high"]
    shown = CliRunner().invoke(cli.app, ["status", "--project", "1", "--data-dir", str(world.folder)], env={})
    assert hint["sentence"][:40] in shown.output
    world.label(open_)
    world.run()
    assert world.status()["stopping"] is None


def test_models_with_other_labels_are_not_on_the_learning_curve(world: World) -> None:
    world.in_round_1()
    world.studio.change_config(LARGER)
    world.run()
    assert len(world.store.models(PROJECT)) == 2
    assert world.status()["stopping"]["sentence"].endswith("and there is one so far.")
    assert "agreement" not in world.store.models(PROJECT)[1]["details"]


def test_with_the_button_it_trains_only_on_request(tmp_path: Path) -> None:
    world = World(tmp_path / "data", retrain="button").cold_started()
    world.label(COLD + 1)
    world.run()
    assert (world.status()["phase"], world.status()["model"]) == ("cold_start", None)
    world.store.request_training(PROJECT)
    world.run()
    assert (world.status()["model"], world.studio.model_version) == ("scanqueue-r1", "scanqueue-r1")
    row = world.store.project(PROJECT)
    assert row is not None
    assert row["training_requests"] == 0
    world.label(ROUND + 1)
    world.run()
    assert len(world.store.models(PROJECT)) == 1
    world.store.request_training(PROJECT)
    world.run()
    assert [m["version"] for m in world.store.models(PROJECT)] == ["scanqueue-r1", "scanqueue-r2"]


def test_a_training_request_before_the_first_label_is_dropped(world: World) -> None:
    world.add_scans(0, 5)
    world.store.request_training(PROJECT)
    world.run()
    world.label(1)
    world.run()
    assert world.store.models(PROJECT) == []


def _no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("when", ["before", "while the model is written"])
def test_a_full_disk_leaves_the_project_as_it_was(when: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.cold_started().label(COLD)
    with monkeypatch.context() as full:
        if when == "before":
            full.setattr("backend.records.artefacts.shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
        else:
            full.setattr(Segmenter, "save", _no_space)
            TRAINED.clear()
        with pytest.raises(StorageFull):
            world.reconciler().reconcile(PROJECT)
    TRAINED.clear()
    assert world.store.models(PROJECT) == []
    assert world.studio.model_version == "scanqueue-r0"
    assert set(world.status()["queue"]) == set(world.published()) - set(world.annotations)
    assert "Free disk space" in world.status()["trouble"]
    assert world.status()["job"] is None
    assert list(world.folder.rglob(".new-*")) == []
    world.run()
    assert world.studio.model_version == "scanqueue-r1"
    assert world.status()["trouble"] == ""


# -- other actions of annotators ------------------------------------------------------------------


def test_a_deleted_annotation_makes_the_scan_unlabelled_again(world: World) -> None:
    world.in_round_1()
    task, annotation = next(iter(world.annotations.items()))
    assert task not in world.order()
    before = world.order()
    world.studio.delete(annotation)
    world.run()
    assert world.status()["labelled"] == COLD - 1
    assert task not in {r["task"] for r in world.store.labels(PROJECT)}
    assert sorted(world.order()) == sorted([*before, task])
    served = list(world.published())
    assert [t for t in world.order() if t in served][:DEPTH] == before[:DEPTH]


def test_a_deleted_annotation_puts_the_scan_back_into_the_cold_start(world: World) -> None:
    world.cold_started()
    order = world.order()
    world.label(2)
    world.run()
    world.studio.delete(world.annotations[order[0]])
    world.run()
    assert world.order() == order
    assert world.status()["queue"][0] == order[0]
    assert world.studio.next_task() == order[0]


def test_a_skipped_scan_comes_last_and_is_not_counted_as_left(world: World) -> None:
    world.cold_started()
    order = world.order()
    skipped = [task for task in order[:2] if world.studio.skip(task)]
    world.run()
    assert set(world.published()) == set(order[: DEPTH + ROUND])  # 2 of the first 4 were left, fewer than a round
    assert world.status()["labelled"] == 0
    for task in order[2 : 2 + COLD]:
        world.submit(task)
    world.run()
    assert world.studio.model_version == "scanqueue-r1"
    latest = world.store.latest_round(PROJECT)
    assert latest is not None
    assert {p.task for p in latest["picks"][-2:]} == set(skipped)
    assert {p.reason for p in latest["picks"][-2:]} == {"skipped"}
    fresh = [t for t in world.order() if t not in skipped]
    assert world.label(len(fresh)) == fresh


def test_a_black_scan_is_served_last(world: World) -> None:
    black = world.studio.add_scans([png(np.zeros((SIZE, SIZE), np.uint8))])
    world.masks[black[0]] = {"Lung": np.zeros((SIZE, SIZE), bool)}
    world.cold_started()
    assert (world.picks()[-1].task, world.picks()[-1].reason) == (black[0], "blank")
    assert "comes last" in status.sentence(world.picks()[-1])
    served = world.label(COLD)
    world.run()
    assert world.studio.model_version == "scanqueue-r1"
    assert (world.picks()[-1].task, world.picks()[-1].reason) == (black[0], "blank")
    while task := world.studio.next_task():
        world.submit(task)
        served.append(task)
        world.run()
    assert (len(served), served[-1]) == (13, black[0])


def test_new_scans_do_not_move_published_ones(world: World) -> None:
    world.cold_started()
    order = world.order()
    late = world.add_scans(20, 3)
    world.run()
    assert world.order()[:DEPTH] == order[:DEPTH]
    assert sorted(world.order()) == sorted([*order, *late])
    assert world.published() == dict.fromkeys(order[:DEPTH], 1)
    world.label(COLD)
    world.run()
    first, published = world.order(), world.published()
    scores = {p["task"]: p["score"] for p in world.studio.predictions if p["model_version"] == "scanqueue-r1"}
    later = world.add_scans(30, 3)
    world.run()
    assert world.studio.model_version == "scanqueue-r1"
    assert world.order()[:DEPTH] == first[:DEPTH]
    assert published.items() <= world.published().items()
    assert sorted(world.order()) == sorted([*first, *later])
    now = {p["task"]: p["score"] for p in world.studio.predictions if p["model_version"] == "scanqueue-r1"}
    assert scores.items() <= now.items()


def test_another_alpha_opens_a_new_round_with_the_same_model(world: World) -> None:
    world.in_round_1()
    before = world.order()
    world.store.set_project(PROJECT, extra_params=json.dumps(PARAMS | {"strategy": "medoids+paper"}))
    world.run()
    world.set(strategy="medoids+paper", alpha=1.0)
    assert (world.status()["model"], world.studio.model_version) == ("scanqueue-r1", "scanqueue-r3")
    latest = world.store.latest_round(PROJECT)
    assert latest is not None
    entropy = [p.entropy for p in latest["picks"]]
    assert entropy == sorted(entropy, reverse=True)
    assert sorted(world.order()) == sorted(before)
    assert len(world.store.models(PROJECT)) == 1


def test_another_embedder_makes_a_new_map_and_a_new_round_and_keeps_the_old_map_labels_and_model(world: World) -> None:
    world.in_round_1()
    before, labels = world.order(), world.store.labels(PROJECT)
    old = world.store.arrays("maps", map_name(PROJECT, "pixels"))
    other = f"timm:local-dir:{timm_folder(world.folder.parent / 'tiny')}"
    world.settings = replace(world.settings, embedder=other)
    world.run()
    assert world.studio.model_version == "scanqueue-r2"
    assert world.status()["embedder"]["name"] == other
    assert world.status()["model"] == "scanqueue-r1"  # no new model was trained
    assert world.store.labels(PROJECT) == labels
    assert sorted(world.order()) == sorted(before)
    new = world.store.arrays("maps", map_name(PROJECT, other))
    assert sorted(new["digests"]) == sorted(old["digests"])
    assert not np.allclose(new["xy"], old["xy"])
    for name, kept in world.store.arrays("maps", map_name(PROJECT, "pixels")).items():
        np.testing.assert_array_equal(kept, old[name])

    world.run()
    assert world.studio.model_version == "scanqueue-r2"
    read = []
    world.studio.image = lambda url: read.append(url)  # type: ignore[method-assign,assignment]
    world.settings = replace(world.settings, embedder="pixels")
    world.run()
    assert world.studio.model_version == "scanqueue-r3"
    assert read == []  # the vectors of the first embedder were kept: no scan is read again


@pytest.mark.parametrize("measure", ["foreground", "boundary", "top"])
def test_another_uncertainty_measure_opens_a_round_without_predicting_the_pool_again(
    measure: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.in_round_1()
    with monkeypatch.context() as once:
        once.setattr(KeptLearner, "signals", None)  # all measures were stored when the pool was scored
        world.set(uncertainty=measure, strategy="medoids+entropy")
    assert (world.status()["model"], world.studio.model_version) == ("scanqueue-r1", "scanqueue-r2")
    said = world.store.uncertainty(world.store.models(PROJECT)[0]["fingerprint"])
    digests = {s["task"]: s["digest"] for s in world.store.scans(PROJECT)}
    values = [said[digests[t]][measure] for t in world.order()]
    assert values == sorted(values, reverse=True)


def test_rows_without_signals_count_as_scored_for_the_mean_only(world: World) -> None:
    world.in_round_1()
    model = world.store.models(PROJECT)[0]["fingerprint"]
    with world.store.write() as connection:
        connection.execute(uncertainty_table.update().values(more=""))
    world.run()
    assert all(said.keys() == {"image"} for said in world.store.uncertainty(model).values())
    world.set(uncertainty="top")
    open_ = {s["digest"] for s in world.store.scans(PROJECT) if not s["annotated"]}
    assert {d for d, said in world.store.uncertainty(model).items() if "top" in said} == open_


@pytest.mark.parametrize(("strategy", "signal"), [("clasp", "classes"), ("pairwise-dice", "disagreement")])
def test_scoring_computes_the_signals_that_the_strategy_needs(strategy: str, signal: str, tmp_path: Path) -> None:
    world = World(tmp_path / "data", strategy=strategy).in_round_1()
    model = world.store.models(PROJECT)[0]["fingerprint"]
    open_ = {s["digest"] for s in world.store.scans(PROJECT) if not s["annotated"]}
    assert {d for d, said in world.store.uncertainty(model).items() if signal in said} == open_
    latest = world.store.latest_round(PROJECT)
    assert latest is not None
    assert {p.reason for p in latest["picks"]} == {strategy}
    shown = status.queue(world.store, PROJECT)
    assert all(": " in q["reason"] and q["reason"] != f"{strategy}: {strategy}" for q in shown)


def test_a_strategy_that_needs_more_signals_scores_the_pool_again(world: World) -> None:
    world.in_round_1()
    model = world.store.models(PROJECT)[0]["fingerprint"]
    world.set(strategy="paper+clasp")
    assert world.studio.model_version == "scanqueue-r2"
    assert any("classes" in said for said in world.store.uncertainty(model).values())
    assert all("top" in said for said in world.store.uncertainty(model).values())


def test_another_model_strategy_leaves_the_cold_start_alone(world: World) -> None:
    world.cold_started()
    order, writes = world.order(), list(world.studio.writes)
    world.set(strategy="medoids+entropy", uncertainty="top")
    assert (world.order(), world.studio.writes) == (order, writes)
    world.set(strategy="random+entropy", uncertainty="top")
    assert world.studio.model_version == "scanqueue-r1"
    assert sorted(world.order()) == sorted(order)
    assert {p.reason for p in world.store.rounds(PROJECT)[-1]["picks"]} == {"random"}


# -- controls --------------------------------------------------------------------------------------


def controls(world: World) -> list[int]:
    """Places of the control scans in the latest order, counted from 0."""
    latest = world.store.latest_round(PROJECT)
    assert latest is not None
    return [i for i, p in enumerate(latest["picks"]) if p.reason == "control"]


def test_a_share_of_every_order_is_drawn_at_random_and_the_rest_keeps_its_order(tmp_path: Path) -> None:
    plain = World(tmp_path / "plain").cold_started()
    world = World(tmp_path / "data", control_share=0.25).cold_started()
    assert controls(world) == [1, 5, 9]
    drawn = [world.order()[i] for i in controls(world)]
    assert [t for t in world.order() if t not in drawn] == [t for t in plain.order() if t not in drawn]
    seen = {q["task"]: q for q in status.queue(world.store, PROJECT)}
    assert set(seen) == set(world.order()[:DEPTH]) == set(world.published())
    assert seen[drawn[0]]["kind"] == "control"
    assert seen[drawn[0]]["reason"].endswith("sampled at random for the control group")
    assert (seen[drawn[0]]["score"], seen[drawn[0]]["distance"]) == (None, None)
    assert world.label(2) == world.order()[:2]
    world.run()
    assert world.label(COLD - 2) == world.order()[2:COLD]
    world.run()
    assert world.studio.model_version == "scanqueue-r1"
    assert controls(world) == [1, 5]
    digests = {s["task"]: s["digest"] for s in world.store.scans(PROJECT)}
    rest = sorted(world.order()[1:], key=lambda t: control_draw(Scan(t, "", digests[t]), 0))
    assert world.order()[1] == rest[0]  # the next random draw, with or without a model
    assert world.label(ROUND) == world.order()[:ROUND]


def test_late_scans_may_become_controls_and_published_places_stay(tmp_path: Path) -> None:
    world = World(tmp_path / "data", control_share=0.5).cold_started()
    order = world.order()
    world.add_scans(20, 6)
    world.run()
    assert world.order()[:DEPTH] == order[:DEPTH]
    assert controls(world) == list(range(0, 18, 2))
    fresh = World(tmp_path / "fresh", control_share=0.5)
    fresh.add_scans(0, 12)
    fresh.add_scans(20, 6)
    fresh.run()
    drawn = {fresh.order()[i] for i in controls(fresh)}  # all at once: the same controls are drawn
    assert len(drawn & {world.order()[i] for i in controls(world)}) >= 7


def test_a_skipped_control_is_not_drawn_again(tmp_path: Path) -> None:
    world = World(tmp_path / "data", control_share=0.5).cold_started()
    first = world.order()[0]
    assert controls(world)[0] == 0
    world.studio.skip(first)
    world.run()
    for task in world.order()[1 : 1 + COLD]:
        world.submit(task)
    world.run()
    assert world.studio.model_version == "scanqueue-r1"
    latest = world.store.latest_round(PROJECT)
    assert latest is not None
    assert (latest["picks"][-1].task, latest["picks"][-1].reason) == (first, "skipped")


def test_another_seed_draws_other_controls(tmp_path: Path) -> None:
    drawn = set()
    for seed in range(4):
        world = World(tmp_path / str(seed), control_share=0.25, seed=seed).cold_started()
        drawn.add(tuple(world.order()[i] for i in controls(world)))
    assert len(drawn) == 4


CONTROLLED = {"control_share": 0.5, "cold_start_size": 18, "queue_depth": 18}


def compared(folder: Path, fuse: Fuse | None = None) -> World:
    """Eighteen labels, half of them on control scans, and a model; killed once where the fuse says, then restarted."""
    world = World(folder, **CONTROLLED)
    world.add_scans(0, 24)
    world.run()
    world.label(18)
    if fuse is not None:
        tools = world.reconciler()
        with suppress(Killed):
            replace(tools, store=Fused(tools.store, STORE_WRITES, fuse)).reconcile(PROJECT)  # type: ignore[arg-type]
    world.run()
    return world


def test_our_order_is_compared_with_chance_once_per_model_after_publishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = compared(tmp_path / "data", names := Fuse())
    (model,) = world.store.models(PROJECT)
    arms = model["details"]["arms"]
    latest = world.store.rounds(PROJECT)[0]
    chance = {p.task for p in latest["picks"] if p.reason == "control"}
    held = model["details"]["validation"]
    held_out = [one["task"] for one in model["details"]["held_out"]]
    assert 5 <= arms["labels"] <= len(chance & set(world.annotations))
    assert arms["ours"]["n"] == arms["control"]["n"] == held
    assert 0 <= arms["ours"]["dice"] <= 1
    assert arms["ours"].keys() == model["validation"].keys()
    left = [task in chance for task in world.annotations if task not in held_out]
    assert arms["of"] == {"ours": left.count(False), "control": left.count(True)}
    assert world.status()["control"] == {"version": "scanqueue-r1", **arms}
    assert [r["control"] for r in status.round_list(world.store, PROJECT)] == [None, world.status()["control"]]
    shown = CliRunner().invoke(cli.app, ["status", "--project", "1", "--data-dir", str(world.folder)], env={})
    assert "control trial" in shown.output
    assert (world.status()["model"], world.studio.model_version) == ("scanqueue-r1", "scanqueue-r1")
    assert list((world.folder / "arms").rglob("*.*")) == []
    assert names.names.index("add_details") > names.names.index("mark_published")
    with monkeypatch.context() as never:
        never.setattr(KeptLearner, "train", None)
        world.run()
    world.label(ROUND)
    world.run()
    assert ["arms" in m["details"] for m in world.store.models(PROJECT)] == [True, True]


def test_without_controls_nothing_is_compared(world: World) -> None:
    world.in_round_1()
    assert world.status()["control"] is None
    assert not (world.folder / "arms").exists()


def test_a_kill_during_the_comparison_does_not_change_it(tmp_path: Path) -> None:
    whole = compared(tmp_path / "whole", fuse := Fuse())
    last = len(fuse.names) - fuse.names[::-1].index("add_details")
    first = max(i for i, name in enumerate(fuse.names[: last - 1], start=1) if name == "put_folder") - 1
    details = whole.store.models(PROJECT)[0]["details"]["arms"]
    end = whole.end_state()
    for at in range(first, last + 2):
        world = compared(tmp_path / "data", Fuse(at))
        assert world.store.models(PROJECT)[0]["details"]["arms"] == details
        state = world.end_state()
        left = [f for f in state["files"] if f.startswith("arms/")]
        state["files"] = [f for f in state["files"] if f not in left]
        assert state == end, f"killed at write {at}, {fuse.names[at - 1]}"
        assert not left or at > last  # retention removes these after a day
        shutil.rmtree(world.folder)


def test_a_comparison_yields_to_training_and_uses_the_newest_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "data", **CONTROLLED)
    world.add_scans(0, 24)
    world.run()
    world.label(18)
    monkeypatch.setattr(tending, "TEND_EVERY", 0.0)
    monkeypatch.setattr(control_trial, "YIELD_EVERY", 0.0)
    report = LoopContext.report

    def label_meanwhile(self: LoopContext, project: int, step: str, done: int, total: int) -> None:
        report(self, project, step, done, total)
        if step.startswith("comparing") and len(world.annotations) == 18:
            world.label(ROUND)

    monkeypatch.setattr(LoopContext, "report", label_meanwhile)
    world.run()
    assert ["arms" in m["details"] for m in world.store.models(PROJECT)] == [False, True]
    assert world.studio.model_version == "scanqueue-r2"


def test_a_comparison_waits_for_another_projects_training_without_blocking_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "data", **CONTROLLED)
    world.add_scans(0, 24)
    world.run()
    world.label(18)
    real = ControlTrial.compare

    def beside_another(self: ControlTrial, *args: Any) -> None:
        with Store(world.folder).training_slot() as mine:
            assert mine
            real(self, *args)

    with monkeypatch.context() as busy:
        busy.setattr(ControlTrial, "compare", beside_another)
        plan = world.reconciler().reconcile(PROJECT)
    assert [type(s).__name__ for s in plan.steps] == ["CompareWithControl"]
    assert world.status()["control"] is None
    assert world.studio.model_version == "scanqueue-r1"
    assert world.status()["trouble"] == ""
    world.run()
    assert world.status()["control"]["version"] == "scanqueue-r1"


# -- strata ----------------------------------------------------------------------------------------


def strata(world: World, sites: Sequence[Any]) -> None:
    for task, site in zip(sorted(world.masks), sites, strict=True):
        world.studio.set_data(task, {"image": world.studio.reference(task), "site": site})


def test_every_prefix_of_a_stratified_order_has_its_share_of_each_site(tmp_path: Path) -> None:
    world = World(tmp_path / "data", strategy="stratified", stratify_by="site")
    tasks = world.add_scans(0, 12)
    strata(world, ["A"] * 6 + ["B"] * 4 + [3, None])
    world.run()
    assert [s["stratum"] for s in world.store.scans(PROJECT)] == ["A"] * 6 + ["B"] * 4 + ["3", ""]
    first = [tasks.index(t) for t in world.order()[:5]]
    assert sum(i < 6 for i in first) == 3
    assert sum(6 <= i < 10 for i in first) == 2
    assert status.queue(world.store, PROJECT)[0]["reason"].endswith(
        "the next scan of its group, so that every group gets its share"
    )
    strata(world, ["A"] * 12)
    world.run()
    assert {s["stratum"] for s in world.store.scans(PROJECT)} == {"A"}


def test_strata_are_read_when_the_setting_is_added_or_changed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add_scans(0, 12)
    strata(world, ["A", "B"] * 6)
    world.run()
    assert {s["stratum"] for s in world.store.scans(PROJECT)} == {""}
    world.set(strategy="stratified", stratify_by="site")
    assert [s["stratum"] for s in world.store.scans(PROJECT)] == ["A", "B"] * 6
    assert world.studio.model_version == "scanqueue-r1"
    world.set(strategy="stratified", stratify_by="scanner")
    assert {s["stratum"] for s in world.store.scans(PROJECT)} == {""}
    assert world.status()["trouble"].startswith("No scan has 'scanner' in its data, so the order is random.")
    again = world.reconciler()
    again.reconcile(PROJECT)
    monkeypatch.setattr(world.studio, "tasks_after", None)
    again.reconcile(PROJECT)  # not all of them at every reconciliation


def test_stratified_without_a_key_blocks_and_names_the_setting(world: World) -> None:
    world.cold_started()
    world.set(strategy="stratified")
    assert world.status()["phase"] == "blocked"
    assert "set stratify_by to a key of the task data" in world.status()["reason"]


def test_an_unusable_setting_blocks_with_the_reason_and_writes_nothing(world: World) -> None:
    world.cold_started()
    writes = list(world.studio.writes)
    world.store.set_project(PROJECT, extra_params='{"alfa": 1}')
    world.run()
    assert world.status()["phase"] == "blocked"
    assert "'alfa' is not a project setting" in world.status()["reason"]
    assert world.studio.writes == writes


def test_a_new_label_trains_a_model_that_has_it(world: World) -> None:
    world.in_round_1()
    world.studio.change_config(LARGER)
    world.run()
    assert [m["labels"] for m in world.store.models(PROJECT)] == [["Lung"], ["Lung", "Heart"]]
    assert world.status()["model"] == world.studio.model_version == "scanqueue-r2"


def test_a_task_that_one_listing_misses_keeps_its_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.cold_started()
    first, missed = world.order()[:2]
    audit.set_priorities(world.store, PROJECT, "x", [missed], "next")
    world.studio.delete_tasks([first])  # so that all tasks are listed
    complete, left_out = world.studio.tasks_after, []

    def incomplete(project: int, task: int, count: int) -> Any:
        rows, more = complete(project, task, count)
        left_out.extend(row.task for row in rows if row.task == missed)
        return [row for row in rows if row.task != missed], more

    monkeypatch.setattr(world.studio, "tasks_after", incomplete)
    world.run()
    assert left_out
    scans = {s["task"]: s for s in world.store.scans(PROJECT)}
    assert scans[missed]["priority"] == 1
    assert first not in scans


def test_a_config_without_masks_blocks_until_it_is_fixed(world: World) -> None:
    world.in_round_1()
    before = world.end_state()
    world.studio.change_config(NO_MASKS)
    world.run()
    assert world.status()["phase"] == "blocked"
    assert "no tag that draws masks" in world.status()["reason"]
    world.studio.change_config(CONFIG)
    world.run()
    assert world.end_state() == before


def test_deleted_tasks_leave_the_queue_and_the_records(world: World) -> None:
    world.in_round_1()
    gone = [world.order()[0], next(iter(world.annotations))]
    world.studio.delete_tasks(gone)
    world.run()
    assert world.status()["scans"] == 10
    assert world.status()["labelled"] == COLD - 1
    assert not set(gone) & set(world.status()["queue"])
    assert not set(gone) & {r["task"] for r in world.store.labels(PROJECT)}
    assert world.studio.next_task() == world.status()["queue"][0]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_smallest_projects_finish(count: int, tmp_path: Path) -> None:
    world = World(tmp_path / "data", cold_start_size=1, round_size=1)
    tasks = world.add_scans(0, count)
    world.run()
    assert sorted(world.order()) == tasks
    for _ in range(count):
        world.label(1)
        world.run()
    assert world.status()["phase"] == "done"
    assert len(world.store.models(PROJECT)) == count
    assert world.studio.next_task() is None


def test_the_same_image_twice_is_two_scans(world: World) -> None:
    tasks = world.add_scans(0, 8) + world.add_scans(0, 3)
    world.run()
    assert sorted(world.order()) == tasks
    world.label(COLD)
    world.run()
    assert sorted([*world.annotations, *world.order()]) == tasks


def test_gray_and_colour_scans_of_any_shape_share_a_project(world: World) -> None:
    world.add_scans(0, 6)
    world.run()
    world.label(COLD)
    odd = []
    for seed, shape in ((50, (48, 96, 3)), (51, (120, 40, 3)), (52, (33, 71))):
        image, masks = phantom(seed, shape[:2])
        odd += world.studio.add_scans([png(image if len(shape) == 2 else np.dstack([image, image // 2, 255 - image]))])
        world.masks[odd[-1]] = masks
    world.run()
    assert sorted(world.order()) == odd
    sizes = {
        (p["task"], r["original_height"], r["original_width"])
        for p in world.studio.predictions
        for r in p["result"]
        if p["model_version"] == "scanqueue-r1"
    }
    assert sizes <= {(odd[0], 48, 96), (odd[1], 120, 40), (odd[2], 33, 71)}
    assert world.label(3)
    world.run()
    assert world.status()["phase"] == "done"
    assert world.status()["problems"] == []
    assert len(world.store.models(PROJECT)) == 2


def test_a_broken_annotation_is_listed_until_it_is_deleted(world: World) -> None:
    world.cold_started()
    task = world.order()[0]
    region = world.truth(task)[0] | {"original_width": 999}
    annotation = world.studio.annotate(task, [region])
    world.run()
    (problem,) = world.status()["problems"]
    assert problem["task"] == task
    assert "was drawn on 999 x 64 pixels, but the image has 64 x 64" in problem["what"]
    world.studio.delete(annotation)
    world.run()
    assert world.status()["problems"] == []
    assert world.status()["queue"][0] == task


def test_an_unreadable_image_is_listed_and_read_once_it_is_fixed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = world.add_scans(0, 12)
    missing, broken = world.studio.reference(tasks[3]), world.studio.reference(tasks[5])
    kept = {r: world.studio.images[r] for r in (missing, broken)}
    del world.studio.images[missing]
    world.studio.images[broken] = kept[broken][:100]
    world.run()
    assert [p["task"] for p in world.status()["problems"]] == [tasks[3], tasks[5]]
    assert sorted(world.order()) == sorted(set(tasks) - {tasks[3], tasks[5]})
    world.studio.images |= kept
    world.run()
    assert len(world.status()["problems"]) == 2  # not requested at every reconciliation
    monkeypatch.setattr(attention, "PROBLEM_RETRY", 0.0)
    world.run()
    assert world.status()["problems"] == []
    assert sorted(world.order()) == sorted(tasks)


def lose_pixels(world: World) -> None:
    """Empty the cache, as eviction would; the next model becomes active however good it is."""
    world.set(tolerance=1.0)
    shutil.rmtree(world.folder / "pixels")


def test_an_image_replaced_at_the_same_address_is_read_again_and_served(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.in_round_1()
    task = world.order()[-1]
    world.studio.images[world.studio.reference(task)] = png(phantom(99, (SIZE, SIZE))[0])
    lose_pixels(world)
    world.label(ROUND)
    world.run()
    assert [p["task"] for p in world.status()["problems"]] == [task]
    assert task not in world.order()
    monkeypatch.setattr(attention, "PROBLEM_RETRY", 0.0)
    world.run()
    assert world.status()["problems"] == []
    assert task in world.order()


@pytest.mark.parametrize("asked", [True, False])
def test_a_mask_whose_image_was_replaced_by_one_of_another_size_is_a_problem_and_training_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    world.in_round_1()
    task = world.store.models(PROJECT)[0]["details"]["held_out"][0]["task"]
    world.studio.images[world.studio.reference(task)] = png(phantom(99, (SIZE + 32, SIZE + 32))[0])
    lose_pixels(world)
    world.label(ROUND)
    world.run()
    assert [p["task"] for p in world.status()["problems"]] == [task]
    if asked:
        world.store.retry(PROJECT, task)
    else:
        monkeypatch.setattr(attention, "PROBLEM_RETRY", 0.0)
    world.run()
    (problem,) = world.status()["problems"]
    assert (problem["task"], "was drawn on 64 x 64 pixels" in problem["what"]) == (task, True)
    world.label(ROUND)
    world.run()
    assert world.status()["model"] == "scanqueue-r3"
    assert world.status()["trouble"] == ""


def test_scans_that_can_be_fetched_again_are_no_longer_problems(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.in_round_1()
    lose_pixels(world)
    world.label(ROUND)
    open_ = [t for t in world.masks if t not in world.annotations]
    real = world.studio.image

    def away(reference: str) -> bytes:
        if reference in {world.studio.reference(t) for t in open_}:
            raise UnreadableScan("its server does not answer; it is asked again later.")
        return real(reference)

    with monkeypatch.context() as broken:
        broken.setattr(world.studio, "image", away)
        world.run()
        assert {p["task"] for p in world.status()["problems"]} == set(open_)
    monkeypatch.setattr(attention, "PROBLEM_RETRY", 0.0)
    world.run()
    assert world.status()["problems"] == []
    assert sorted(world.order()) == sorted(open_)


def test_a_dozen_copies_of_one_picture_are_learnt_from(world: World) -> None:
    image, masks = phantom(0, (SIZE, SIZE))
    for _ in range(12):
        (task,) = world.studio.add_scans([png(image)])
        world.masks[task] = masks
    world.run()
    world.label(COLD)
    world.run()
    assert world.status()["model"] == "scanqueue-r1"


def test_an_image_whose_task_changed_is_read_at_once(world: World) -> None:
    tasks = world.add_scans(0, 8)
    good = world.studio.reference(tasks[2])
    world.studio.set_data(tasks[2], {"image": "/data/upload/1/gone.png"})
    world.run()
    assert [p["task"] for p in world.status()["problems"]] == [tasks[2]]
    world.studio.set_data(tasks[2], {"image": good})
    world.run()
    assert world.status()["problems"] == []
    assert sorted(world.order()) == sorted(tasks)


def test_an_unreachable_label_studio_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.in_round_1()
    before = world.end_state()

    def away(*_: Any) -> Iterator[Any]:
        raise StudioUnavailable("Label Studio does not answer.")

    with monkeypatch.context() as broken:
        for name in ("project", "changed_tasks", "published"):
            broken.setattr(world.studio, name, away)
        with pytest.raises(ScanqueueError):
            world.reconciler().reconcile(PROJECT)
        assert world.status()["trouble"] == "Label Studio does not answer."
        assert world.status()["phase"] == "active"
    world.run()
    assert world.end_state() == before


def test_a_training_request_during_a_reconciliation_is_left_to_the_next_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may concern labels that this one has not seen: only the next one may decide that there is nothing to learn."""
    world.add_scans(0, 5)
    world.run()
    real = world.studio.project

    def while_looking(project: int) -> Any:
        page = real(project)
        world.store.request_training(PROJECT)
        return page

    monkeypatch.setattr(world.studio, "project", while_looking)
    world.run()
    monkeypatch.undo()
    row = world.store.project(PROJECT)
    assert row is not None
    assert row["training_requests"] >= 1
    world.run()
    row = world.store.project(PROJECT)
    assert row is not None
    assert row["training_requests"] == 0


def test_a_refused_token_blocks_with_the_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.cold_started()

    def refuse(*_: Any) -> None:
        raise StudioRefused("Label Studio refuses the token.")

    with monkeypatch.context() as broken:
        broken.setattr(world.studio, "project", refuse)
        with pytest.raises(StudioRefused):
            world.reconciler().reconcile(PROJECT)
    assert (world.status()["phase"], world.status()["reason"]) == ("blocked", "Label Studio refuses the token.")
    world.run()
    assert world.status()["phase"] == "cold_start"


def test_labels_behind_the_cursor_are_found_even_if_others_are_ahead_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label Studio's clock was set back between two submissions, and one reconciliation sees both."""
    world.cold_started()
    worker = world.reconciler()
    worker.reconcile(PROJECT)
    world.label(1)
    world.studio._now -= timedelta(hours=4)
    behind = world.label(2)
    monkeypatch.setattr(listing, "FULL_AGAIN", 3600.0)  # everything was listed a moment ago
    worker.reconcile(PROJECT)
    assert world.status()["labelled"] == 1
    monkeypatch.setattr(listing, "FULL_AGAIN", 0.0)
    worker.reconcile(PROJECT)
    assert world.status()["labelled"] == 3
    assert {r["task"] for r in world.store.labels(PROJECT)} >= set(behind)
    monkeypatch.setattr(world.studio, "tasks_after", None)  # no full listing
    worker.reconcile(PROJECT)


def test_a_failed_write_of_the_progress_does_not_stop_a_training(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.cold_started().label(COLD)

    def full(self: Store, project: int, step: str, done: int, total: int, spent: float | None = None) -> None:
        raise StorageFull("The disk is full. Free disk space.")

    monkeypatch.setattr(Store, "report", full)
    world.run()
    assert world.studio.model_version == "scanqueue-r1"


def test_a_constant_stream_of_labels_prevents_neither_training_nor_its_round(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty annotators submit faster than we read their annotations."""
    world.add_scans(0, 40)
    world.run()
    world.label(COLD)
    served: dict[str, int] = {}
    real = AnnotationReader.read

    def read_while_more_comes(self: AnnotationReader, project: int, seen: Any, step: Any, between: Any) -> None:
        real(self, project, seen, step)
        if "scanqueue-r1" not in served and len(world.annotations) < 30:
            world.label(1)

    monkeypatch.setattr(AnnotationReader, "read", read_while_more_comes)
    show = world.studio.show_round
    monkeypatch.setattr(
        world.studio, "show_round", lambda p, v: (served.setdefault(v, len(world.annotations)), show(p, v))[1]
    )
    world.run()
    assert served["scanqueue-r1"] <= COLD + 8  # one more for each read between the other steps
