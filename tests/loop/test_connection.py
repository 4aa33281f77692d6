"""A project is written to only while Label Studio is connected to us; on leaving, it is as it was before us."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from memory_studio import MemoryStudio
from world import COLD, PROJECT, ROUND, Ready, World

from backend.errors import BadSetting, ProjectGone, StudioRefused
from backend.facts import SAMPLING
from backend.label_studio.webhooks import same_address
from backend.loop import connection
from backend.loop.disconnecting import disconnect
from backend.records.store import Store

OURS = {"id": 1, "title": "scanqueue", "url": "http://127.0.0.1:9090"}
OTHER = {"id": 7, "title": "another", "url": "http://127.0.0.1:9999"}

pytestmark = pytest.mark.usefixtures("miniature")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return Ready(tmp_path / "data")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "GRACE", 0.02)
    monkeypatch.setattr(connection, "POLL", 0.01)


def touched(studio: MemoryStudio) -> tuple[Any, ...]:
    """What scanqueue sets in a project of Label Studio."""
    return (studio.sampling, studio.model_version, studio.show_predictions, list(studio.views))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://localhost:9090", "http://127.0.0.1:9090/", True),
        ("http://lab:secret@ML.example:9090", "http://ml.example:9090", True),
        ("https://ml.example/scanqueue", "http://ml.example:80/scanqueue/", True),
        ("http://localhost:9090", "http://localhost:9091", False),
        ("http://ml.example/scanqueue", "http://ml.example/other", False),
        ("http://ml.example:9090", "http://ml2.example:9090", False),
        ("http://[", "http://127.0.0.1:9090", False),
    ],
)
def test_two_addresses_of_one_server_are_equal(one: str, other: str, same: bool) -> None:
    assert same_address(one, other) is same


@pytest.mark.parametrize("instead", [[], [OTHER]])
def test_a_removed_backend_writes_nothing_and_leaves_no_webhook(world: World, instead: list[dict[str, Any]]) -> None:
    world.cold_started()
    going_on = world.reconciler()  # the process that has seen the connection a moment ago
    going_on.reconcile(PROJECT)
    studio = world.studio
    studio.add_webhook("http://hospital.example/hook", {})
    studio.connected = instead
    studio.sampling, studio.model_version, studio.show_predictions, studio.views = "Uniform sampling", "", False, []
    before, writes = touched(studio), list(studio.writes)
    for _ in range(3):
        assert going_on.reconcile(PROJECT).phase == "disconnected"
    assert (touched(studio), studio.writes) == (before, writes)
    assert [hook["url"] for hook in studio.hooks] == ["http://hospital.example/hook"]
    seen = world.status()
    assert (seen["phase"], seen["trouble"]) == ("disconnected", "")
    assert "Connect scanqueue again in Settings > Model" in seen["reason"]
    assert f"scanqueue disconnect --project {PROJECT}" in seen["reason"]
    assert ("http://127.0.0.1:9999" in seen["reason"]) is bool(instead)

    studio.connected = [OURS | {"id": 8}]
    world.run()
    assert (studio.sampling, studio.model_version) == (SAMPLING, "scanqueue-r0")
    assert len(studio.hooks) == 2
    assert world.status()["phase"] == "cold_start"


def test_labels_after_a_removal_publish_nothing(world: World) -> None:
    world.cold_started()
    going_on = world.reconciler()
    going_on.reconcile(PROJECT)
    world.label(COLD)
    world.studio.connected = [OTHER]
    predictions = len(world.studio.predictions)
    going_on.reconcile(PROJECT)
    assert len(world.studio.predictions) == predictions
    assert world.studio.model_version == "scanqueue-r0"


def test_a_removal_during_a_long_step_stops_the_refilling_of_the_queue(world: World) -> None:
    world.cold_started()
    going_on = world.reconciler()
    going_on.reconcile(PROJECT)
    world.label(ROUND)
    world.studio.connected = []
    writes = list(world.studio.writes)
    with pytest.raises(connection.Replan):
        going_on.tender.tend(PROJECT)
    assert world.studio.writes == writes


def test_of_two_scanqueues_the_one_that_was_connected_first_has_the_project(world: World, tmp_path: Path) -> None:
    world.cold_started()
    studio, second = world.studio, World(tmp_path / "second")
    second.studio, second.masks = studio, world.masks
    second.store.set_project(PROJECT, backend_url="http://127.0.0.1:9091")
    studio.connected = [OURS, {"id": 2, "title": "scanqueue", "url": "http://127.0.0.1:9091"}]
    served, predictions = touched(studio), list(studio.predictions)
    for _ in range(2):  # before, each of them published a round above that of the other, for ever
        second.run()
        world.run()
    assert (touched(studio), studio.predictions) == (served, predictions)
    status = second.status()
    assert status["phase"] == "disconnected"
    assert (
        "Another scanqueue manages the project: http://127.0.0.1:9090 is connected before this one" in status["reason"]
    )
    assert world.status()["phase"] == "cold_start"

    studio.connected = studio.connected[1:]
    second.run()
    world.run()
    assert studio.model_version == "scanqueue-r1"
    assert (second.status()["phase"], world.status()["phase"]) == ("cold_start", "disconnected")

    studio.connected = [studio.connected[0] | {"id": 3}, OURS | {"id": 2}]  # again first, by its number
    world.run()
    second.run()
    assert (second.status()["phase"], world.status()["phase"]) == ("disconnected", "cold_start")


@pytest.mark.parametrize(
    "rows",
    [
        [OURS, OURS | {"id": 2}],
        [OURS, OURS | {"id": 2, "url": "http://localhost:9090/"}],
        [{"id": 3, "title": "scanqueue", "url": "https://scanqueue.example"}],
    ],
    ids=["twice", "two names", "public URL"],
)
def test_every_address_of_ours_is_ours(world: World, rows: list[dict[str, Any]]) -> None:
    world.settings = replace(world.settings, public_url="https://scanqueue.example")
    world.studio.connected = rows
    world.cold_started().label(COLD)
    world.run()
    assert world.studio.model_version == "scanqueue-r1"
    assert world.status()["trouble"] == ""


def test_another_backend_next_to_ours_is_reported_and_the_loop_goes_on(world: World) -> None:
    world.studio.connected = [OTHER, OURS]
    world.add_scans(0, 12)
    world.run()
    assert world.studio.model_version == "scanqueue-r0"
    assert "2 ML backends are connected (another, scanqueue)" in world.status()["trouble"]


def test_a_backend_behind_a_proxy_is_ours_if_label_studio_calls_us_through_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxied = {"id": 4, "title": "scanqueue", "url": "https://proxy.example/al"}

    def call(project: int) -> list[dict[str, Any]]:
        row = world.store.project(project)
        assert row is not None
        if row["connected"] == connection.CALL_EXPECTED:  # as /setup does
            world.store.set_project(project, connected=connection.CONNECTED)
        return [proxied]

    monkeypatch.setattr(world.studio, "backends", call)
    world.add_scans(0, 12)
    world.run()
    assert world.studio.model_version == "scanqueue-r0"
    monkeypatch.setattr(world.studio, "backends", lambda project: [proxied])  # somebody else's, at the same proxy
    world.run()
    assert world.status()["phase"] == "disconnected"


def test_a_project_that_was_never_connected_is_not_written_to(world: World) -> None:
    world.studio.connected = []
    world.add_scans(0, 12)
    world.reconciler().reconcile(PROJECT)
    assert world.studio.writes == []
    assert world.status()["phase"] == "disconnected"
    world.studio.connected = [OURS]
    world.run()
    assert world.studio.model_version == "scanqueue-r0"


def test_nothing_to_write_asks_for_no_backends(world: World) -> None:
    world.cold_started()
    going_on = world.reconciler()
    going_on.reconcile(PROJECT)
    asked = world.studio.asked
    for _ in range(5):
        going_on.reconcile(PROJECT)
    assert world.studio.asked == asked


# leaving


def leave(world: World, *, forget: bool = False) -> str:
    said: list[str] = []
    disconnect(world.studio, world.store, world.settings, PROJECT, forget=forget, wait=1, say=said.append)  # type: ignore[arg-type]
    return " ".join(said)


def test_disconnecting_restores_what_was_there_before_us(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    studio = world.studio
    tasks = world.add_scans(0, 12)
    studio.predictions = [{"id": 1, "task": tasks[0], "score": 0.5, "model_version": "v7", "result": []}]
    studio.sampling, studio.model_version, studio.show_predictions = "Uniform sampling", "v7", True
    studio.views = ["Ours"]
    studio.add_webhook("http://hospital.example/hook", {})
    before, hooks = touched(studio), list(studio.hooks)
    world.run()
    world.label(COLD)
    world.run()
    assert studio.model_version == "scanqueue-r1"
    assert touched(studio) != before
    predictions = list(studio.predictions)

    said = leave(world)
    assert touched(studio) == before
    assert (studio.hooks, studio.connected, studio.predictions) == (hooks, [], predictions)
    assert "Uniform sampling" in said
    assert "Kept: its tasks, annotations and predictions" in said
    world.reconciler().reconcile(PROJECT)
    assert touched(studio) == before
    assert leave(world).startswith("Project 1 is disconnected")  # nothing is left to undo

    studio.connected = [OURS]  # connected again: what was there is remembered again
    studio.sampling = "Sequential sampling"
    world.run()
    leave(world)
    assert touched(studio) == ("Sequential sampling", "v7", True, ["Ours"])


def test_the_title_that_label_studio_selects_on_connecting_is_not_restored(world: World) -> None:
    world.studio.model_version = "scanqueue"
    world.add_scans(0, 12)
    world.run()
    leave(world)
    assert world.studio.model_version == ""


def test_settings_that_somebody_changed_since_stay(world: World) -> None:
    world.cold_started()
    world.studio.connected = []
    world.studio.sampling, world.studio.model_version = "Uniform sampling", ""
    leave(world)
    assert touched(world.studio)[:2] == ("Uniform sampling", "")


def test_unknown_settings_before_us_become_the_defaults_of_label_studio(world: World) -> None:
    world.cold_started()
    world.store.set_project(PROJECT, settings_before="")  # as in the records of an older version
    world.label(COLD)
    world.run()
    row = world.store.project(PROJECT)
    assert row is not None
    assert row["settings_before"] == ""
    assert "not recorded" in leave(world)
    assert touched(world.studio)[:3] == ("Sequential sampling", "", True)


def test_a_model_version_that_is_gone_is_not_restored(world: World) -> None:
    world.cold_started()
    before = {"sampling": "Uniform sampling", "model_version": "v7", "show_predictions": True}
    world.store.set_project(PROJECT, settings_before=json.dumps(before))
    assert "'v7' no longer exists" in leave(world)
    assert touched(world.studio)[:2] == ("Uniform sampling", "")


def test_a_forgotten_project_leaves_the_lists_and_its_files(world: World) -> None:
    world.in_round_1()
    assert "Kept: its tasks" in leave(world, forget=True)
    store = Store(world.folder)
    assert (store.projects(), store.project(PROJECT)) == ([], None)
    assert [store.scans(PROJECT), store.labels(PROJECT), store.models(PROJECT), store.rounds(PROJECT)] == [[]] * 4
    for kind in ("models", "labels", "maps"):
        assert not [p for p in (world.folder / kind).rglob("*") if p.is_file()]
    assert world.reconciler().reconcile(PROJECT).steps == ()
    assert store.projects() == []
    with pytest.raises(BadSetting, match="not known here"):
        leave(world)


def test_forgetting_keeps_what_another_project_uses(world: World) -> None:
    world.in_round_1()
    model = world.store.models(PROJECT)[0]
    world.store.add_project(2)
    world.store.put_model(2, {k: model[k] for k in model if k != "project"}, active="", training_requests=0)
    scan = world.store.scans(PROJECT)[0]
    named = {name: scan[name] for name in ("task", "image", "updated_at", "annotated", "skipped")}
    world.store.put_tasks(2, [named], "")
    world.store.set_scans(2, [{"task": scan["task"], "digest": scan["digest"]}])
    leave(world, forget=True)
    assert world.store.has("models", model["fingerprint"])
    assert world.store.projects() == [2]
    assert world.store.embedded("pixels") == {scan["digest"]}


def test_a_deleted_project_can_be_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.cold_started()

    def gone(*_: Any) -> None:
        raise ProjectGone("Label Studio has no such project for this token.")

    def missing(*_: Any) -> None:
        raise StudioRefused("Label Studio answered 404 to /api/ml: No Project matches the given query.")

    monkeypatch.setattr(world.studio, "project", gone)
    for name in ("backends", "webhooks", "remove_webhooks"):
        monkeypatch.setattr(world.studio, name, missing)
    assert world.reconciler().reconcile(PROJECT).phase == "deleted"
    assert (world.status()["phase"], world.status()["trouble"]) == ("deleted", "")
    assert f"scanqueue disconnect --project {PROJECT} --forget" in world.status()["reason"]
    with pytest.raises(ProjectGone, match="--forget"):
        leave(world)
    leave(world, forget=True)
    assert world.store.projects() == []


# skipped scans


@pytest.mark.parametrize("ignored", [True, False])
def test_with_ignore_skipped_a_project_whose_last_scan_is_skipped_is_done(tmp_path: Path, ignored: bool) -> None:
    world = World(tmp_path / "data")
    world.studio.ignores_skipped = ignored
    world.add_scans(0, COLD + 1)
    world.run()
    world.label(COLD)
    last = world.studio.next_task()
    assert last is not None
    world.studio.skip(last)
    world.run()
    seen = world.status()
    if ignored:
        assert world.studio.next_task("another reader") is None
        assert (seen["phase"], seen["queue"]) == ("done", [])
        assert seen["reason"] == "Every scan is labelled except 1 that annotators skipped."
    else:  # another annotator is served it
        assert (seen["phase"], seen["queue"]) == ("active", [last])
    world.submit(last)
    world.run()
    assert (world.status()["phase"], world.status()["reason"]) == ("done", "Every scan is labelled.")
