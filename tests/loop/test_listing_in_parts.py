"""The tasks of a large project are listed in parts, while annotators work."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fuse import Fuse, check_kills, with_fuse
from world import COLD, CONFIG, LARGER, PROJECT, World

from backend.errors import StudioRefused
from backend.facts import version_name
from backend.loop import decide, listing, publication
from backend.loop.steps import ListTasks, Train, describe

POOL, FIRST = 40, 8


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 40 scans were a hundred thousand."""
    for module in (publication, listing):
        monkeypatch.setattr(module, "SMALL_POOL", 6)
    for module in (publication, decide):
        monkeypatch.setattr(module, "FIRST_SCANS", FIRST)
    monkeypatch.setattr(publication, "FIRST_ROUNDS", 1)
    monkeypatch.setattr(listing, "LARGE", 20)
    monkeypatch.setattr(listing, "PLACES", 8)
    monkeypatch.setattr(listing, "PAGE", 4)
    monkeypatch.setattr(listing, "PAGES", 2)


class Watched(World):
    """Notes the steps, and how many scans were recorded when each began."""

    def __init__(self, folder: Path, **params: Any) -> None:
        super().__init__(folder, queue_depth=12, **params)
        self.steps: list[tuple[str, int]] = []

    def watched(self, before: Callable[[Any], None] = lambda _: None) -> Any:
        tools = self.reconciler()
        run = tools._run

        def noted(project: int, seen: Any, done: Any, step: Any) -> None:
            self.steps.append((describe(step).split()[0], len(self.store.scans(PROJECT))))
            before(step)
            run(project, seen, done, step)

        tools._run = noted
        return tools

    def names(self) -> list[str]:
        return [name for name, _ in self.steps]


def all_recorded(world: World) -> bool:
    return {s["task"] for s in world.store.scans(PROJECT)} == world.studio.task_ids(PROJECT)


def test_the_first_tasks_are_served_before_all_are_listed(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data")
    tasks = world.add_scans(0, POOL)
    assert world.watched().reconcile(PROJECT).steps == ()
    listed = world.steps[world.names().index("Publish")][1]
    assert 2 * FIRST <= listed < POOL
    assert world.names().index("Publish") < world.names().index("ListTasks")
    assert all_recorded(world)
    assert sorted(world.order()) == tasks
    scores = {p["task"]: p["score"] for p in world.studio.predictions}
    assert sorted(scores, key=lambda task: scores[task]) == world.order()[: len(scores)]
    assert world.store.progress(PROJECT) is None


def test_the_tasks_listed_first_are_from_the_whole_project(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data")
    tasks = world.add_scans(0, POOL)
    world.studio.delete_tasks(tasks[1:5])  # as after imports into other projects, ids have gaps
    left = sorted(world.studio.task_ids(PROJECT))
    rows = listing.random_part(world.studio, PROJECT, len(left), 16)  # type: ignore[arg-type]
    found = [left.index(row.task) for row in rows]
    assert rows == listing.random_part(world.studio, PROJECT, len(left), 16)  # type: ignore[arg-type]
    assert len(found) == len(set(found)) >= 16
    assert all(set(found) & set(range(start, start + len(left) // 4)) for start in range(0, len(left), len(left) // 4))


def test_a_project_is_trained_on_all_of_its_labels_and_not_before_they_are_listed(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data")
    tasks = world.add_scans(0, POOL)
    for task in (*tasks[:3], *tasks[-5:]):
        world.submit(task)
    seen: list[int] = []

    def before(step: Any) -> None:
        if isinstance(step, Train):
            seen.extend(step.tasks)

    assert world.watched(before).reconcile(PROJECT).steps == ()
    assert set(seen) == {*tasks[:3], *tasks[-5:]}
    assert world.names().index("Publish") < world.names().index("ListTasks") < world.names().index("Train")
    assert world.studio.model_version == version_name(1)


def test_a_model_is_trained_before_all_tasks_are_listed_if_the_others_have_no_label(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data")
    world.add_scans(0, POOL)
    recorded: list[int] = []

    def before(step: Any) -> None:
        if isinstance(step, ListTasks) and not world.annotations:
            world.label(COLD)
        if isinstance(step, Train):
            recorded.append(len(world.store.scans(PROJECT)))

    assert world.watched(before).reconcile(PROJECT).steps == ()
    assert recorded[0] < POOL
    assert all_recorded(world)
    assert world.studio.model_version == version_name(1)


def test_labels_submitted_meanwhile_are_read_and_the_queue_is_refilled(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data", retrain="button")
    world.add_scans(0, POOL)

    def submit(step: Any) -> None:
        if isinstance(step, ListTasks):
            world.label(1)

    assert world.watched(submit).reconcile(PROJECT).steps == ()
    at = world.names().index("ListTasks")
    assert world.names()[at + 1] == "ReadMasks"
    assert len(world.annotations) >= 3
    assert {r["task"] for r in world.store.labels(PROJECT)} == world.annotations.keys()
    assert all_recorded(world)


def test_a_large_import_into_a_project_is_listed_while_its_annotators_go_on(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data", retrain="button")
    world.add_scans(0, 12)
    tools = world.watched()
    tools.reconcile(PROJECT)
    world.steps.clear()
    new = world.add_scans(12, POOL)
    (task,) = world.label(1)
    assert tools.reconcile(PROJECT).steps == ()
    assert "ListTasks" in world.names()
    assert all_recorded(world)
    assert set(new) < set(world.order())
    assert task not in world.published() or task in world.annotations
    assert {r["task"] for r in world.store.labels(PROJECT)} == {task}


def test_an_import_that_goes_on_while_its_tasks_are_listed_is_listed_to_its_end(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data", retrain="button")
    tasks = world.add_scans(0, POOL)
    passed: list[int] = []

    def more(step: Any) -> None:
        """Another part of the import, and a change of a task that is listed already."""
        if isinstance(step, ListTasks) and step.after > tasks[4] and len(world.studio.task_ids(PROJECT)) < 3 * POOL:
            passed.append(step.after)
            world.add_scans(len(world.studio.task_ids(PROJECT)), POOL)
            first = world.studio._tasks[tasks[0]]
            first["data"] |= {"group": f"P{len(passed)}"}
            world.studio._touch(tasks[0])

    assert world.watched(more).reconcile(PROJECT).steps == ()
    assert len(passed) == 2
    assert passed[0] < passed[1]
    assert all_recorded(world)
    assert {s["task"]: s["patient"] for s in world.store.scans(PROJECT)}[tasks[0]] == "P2"


def test_new_tasks_instead_of_all_old_ones_are_listed(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data")
    world.add_scans(0, POOL)
    tools = world.watched()
    tools.reconcile(PROJECT)
    world.studio.delete_tasks(sorted(world.studio.task_ids(PROJECT)))
    new = world.add_scans(POOL, POOL)
    assert tools.reconcile(PROJECT).steps == ()
    assert all_recorded(world)
    assert set(new) <= set(world.order())
    assert world.studio.next_task() in new


def test_deleted_tasks_leave_the_beginning_of_the_order_at_once_and_the_records_later(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data")
    world.add_scans(0, POOL)
    tools = world.watched()
    tools.reconcile(PROJECT)
    order = world.order()
    recorded: list[set[int]] = []

    def before(step: Any) -> None:
        if isinstance(step, ListTasks) and not recorded:
            recorded.append({s["task"] for s in world.store.scans(PROJECT)})

    world.studio.delete_tasks([order[0], order[-1]])
    assert world.watched(before).reconcile(PROJECT).steps == ()
    assert order[0] not in recorded[0]
    assert all_recorded(world)
    assert world.studio.next_task() == order[1]


def test_what_is_deleted_behind_the_listing_is_forgotten_and_the_next_round_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "FULL_AGAIN", 0.0)
    monkeypatch.setattr(listing, "AGAIN_SHARE", 0)
    world = Watched(tmp_path / "data")
    tasks = world.add_scans(0, POOL)
    world.watched().reconcile(PROJECT)
    kept = set(world.order()[:14])
    gone: list[int] = []

    def before(step: Any) -> None:
        if isinstance(step, ListTasks) and step.after >= tasks[-10] and not gone:
            gone.extend(task for task in tasks[:-8] if task not in kept)
            world.studio.delete_tasks(gone)

    tools = world.watched(before)  # a new process lists all tasks
    tools.reconcile(PROJECT)
    assert gone
    world.label(COLD)
    for _ in range(3):
        tools.reconcile(PROJECT)
    assert all_recorded(world)
    assert world.studio.model_version == version_name(1)


def test_an_edit_behind_a_listing_in_one_go_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another annotator submits a minute later, ahead of the listing."""
    world = Watched(tmp_path / "data", retrain="button", unit="scan")
    tasks = world.add_scans(0, POOL)
    world.watched().reconcile(PROJECT)
    world.submit(tasks[0])
    world.watched().reconcile(PROJECT)
    listed, asked = world.studio.tasks_after, 0

    def slow(*request: Any) -> Any:
        nonlocal asked
        asked += 1
        found = listed(*request)
        if asked == 2:
            world.studio.edit(world.annotations[tasks[0]], [])
        if asked == 8:
            world.studio._now += timedelta(seconds=60)
            world.submit(tasks[-1])
        return found

    monkeypatch.setattr(world.studio, "tasks_after", slow)
    tools = world.watched()  # a new process lists all tasks
    for _ in range(2):
        tools.reconcile(PROJECT)
    assert asked > 8
    edited = world.studio._annotations[world.annotations[tasks[0]]]
    read = {r["task"]: r["key"] for r in world.store.labels(PROJECT)}
    assert read[tasks[0]] == f"{edited['id']}@{edited['updated_at']}"
    assert tasks[-1] in read


def test_the_newest_tasks_of_a_large_project_do_not_come_first(tmp_path: Path) -> None:
    """Those of its last seconds look changed at the second look, and are not read before the random ones."""
    world = Watched(tmp_path / "data")
    world.add_scans(0, POOL)
    world.watched().reconcile(PROJECT)
    assert world.names()[:2] == ["Listen", "ReadScans"]
    assert world.steps[0][1] == world.steps[1][1]


def test_a_deleted_task_of_the_queue_does_not_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a large project is first listed, and predictions are added one by one."""
    for module in (publication, decide):
        monkeypatch.setattr(module, "FIRST_SCANS", 30)
    monkeypatch.setattr(listing, "SMALL_POOL", 30)
    world = Watched(tmp_path / "data", retrain="button")
    tasks = world.add_scans(0, 6 * POOL)
    put = world.studio.import_predictions
    gone: list[int] = []
    ours: list[bool] = []

    def one_by_one(project: int, rows: Any, number: int = 0) -> None:
        refused = None
        for row in rows:
            try:
                put(project, [row])
            except StudioRefused as error:
                refused = refused or error
        if refused:
            raise refused

    def before(step: Any) -> None:
        if isinstance(step, ListTasks):
            if not gone:
                waiting = [task for task in world.order() if task not in world.published()]
                gone.append(waiting[0])
                world.studio.delete_tasks(gone)
            task = world.studio.next_task()
            assert task is not None
            ours.append(task in world.published())
            world.submit(task)

    monkeypatch.setattr(world.studio, "import_predictions", one_by_one)
    world.watched(before).reconcile(PROJECT)
    assert gone[0] in tasks
    assert len(ours) > 20
    assert sum(ours) / len(ours) > 0.75  # 0.27 where the refused predictions were left out until the next pass


def test_a_part_is_listed_before_each_training(tmp_path: Path) -> None:
    """Also if as many labels as a training needs are submitted during each."""
    world = Watched(tmp_path / "data")
    world.add_scans(0, POOL)
    tools = world.watched()
    tools.reconcile(PROJECT)
    world.label(COLD)
    tools.reconcile(PROJECT)
    world.add_scans(POOL, 2 * POOL)
    world.label(3)

    def before(step: Any) -> None:
        if isinstance(step, Train) and not all_recorded(world):
            world.label(3)

    world.steps.clear()
    world.watched(before).reconcile(PROJECT)
    between = "".join(name[0] for name in world.names() if name in {"Train", "ListTasks"}).split("T")
    assert len(between) > 4
    assert all(between[:-1])
    assert all_recorded(world)


def test_a_large_project_is_listed_while_it_waits_for_an_answer_about_its_labels(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data", retrain="button")
    world.studio.change_config(LARGER)
    world.add_scans(0, 12)
    world.run()
    for task in list(world.published())[:3]:
        world.submit(task, "Lung", "Heart")
    tools = world.watched()
    tools.reconcile(PROJECT)
    for task in world.add_scans(12, 2 * POOL)[-20:]:
        world.submit(task, "Lung", "Heart")
    world.studio.change_config(CONFIG)
    assert tools.reconcile(PROJECT).phase == "blocked"
    assert all_recorded(world)
    assert world.status()["labelled"] == 23


def test_a_label_behind_the_cursor_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Watched(tmp_path / "data")
    tasks = world.add_scans(0, POOL)
    tools = world.watched()
    tools.reconcile(PROJECT)
    world.submit(tasks[0])
    world.studio._tasks[tasks[0]]["updated_at"] = "2020-01-01T00:00:00.000000Z"
    monkeypatch.setattr(listing, "FULL_AGAIN", 0.0)
    tools.reconcile(PROJECT)
    assert {r["task"] for r in world.store.labels(PROJECT)} == {tasks[0]}
    world.steps.clear()
    tools.reconcile(PROJECT)
    assert "ListTasks" not in world.names()


def test_all_slices_are_listed_before_whole_scans_are_chosen(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data", unit="scan")
    world.add_scans(0, POOL)
    world.watched().reconcile(PROJECT)
    assert world.steps[0][1] == POOL
    assert "ListTasks" not in world.names()


def test_a_project_that_cannot_be_segmented_yet_shows_all_its_scans(tmp_path: Path) -> None:
    world = Watched(tmp_path / "data")
    config = world.studio.label_config
    world.add_scans(0, POOL)
    world.studio.change_config('<View><Image name="image" value="$image"/></View>')
    world.run()
    assert (world.status()["phase"], world.status()["scans"]) == ("blocked", POOL)
    world.studio.change_config(config)
    world.run()
    assert len(world.order()) == POOL


@pytest.mark.parametrize("first", [1, *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 20))])
def test_a_kill_at_any_write_leads_to_the_same_end_state(first: int, tmp_path: Path) -> None:
    def scenario(folder: Path, fuse: Fuse) -> World:
        world = World(folder, queue_depth=12)
        world.add_scans(0, 34)
        with_fuse(world, fuse)
        world.label(COLD)
        with_fuse(world, fuse)
        return world

    assert check_kills(tmp_path / "data", scenario, first, 19).count("put_tasks") >= 4
