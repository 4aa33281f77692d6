"""Label Studio: one contract for the real one and the in-memory one, then the parts that only the real one has."""

from __future__ import annotations

import ast
import base64
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import cv2
import jwt
import numpy as np
import pytest
from memory_studio import MemoryStudio
from service import Forwarder

import backend.loop
from backend.demo.annotator import Annotator
from backend.demo.label_studio import LabelStudio
from backend.errors import ProjectGone, StudioRefused, StudioUnavailable, UnreadableScan
from backend.facts import SAMPLING, SECRET_HEADER
from backend.label_config import LabelConfig
from backend.label_studio import listing, queue
from backend.label_studio.client import limits
from backend.label_studio.drawing import draw_mask
from backend.label_studio.listing import Annotation
from backend.label_studio.masks import read_mask
from backend.label_studio.raster import encode_brush
from backend.label_studio.studio import Studio

CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="tag" toName="image"><Label value="Lung"/></BrushLabels></View>'
)
LARGER = CONFIG.replace('<Label value="Lung"/>', '<Label value="Lung"/><Label value="Heart"/>')
H, W = 24, 32


def png(shade: int) -> bytes:
    done, data = cv2.imencode(".png", np.full((H, W), shade, np.uint8))
    assert done
    return data.tobytes()


def region(label: str = "Lung", rows: int = 10) -> dict[str, Any]:
    """The upper `rows` rows, drawn with the brush."""
    mask = np.zeros((H, W), bool)
    mask[:rows] = True
    return {
        "id": "r1",
        "from_name": "tag",
        "to_name": "image",
        "type": "brushlabels",
        "original_width": W,
        "original_height": H,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": [label]},
    }


def row(task: int, version: str, score: float = 0.5, *regions: Mapping[str, Any]) -> dict[str, Any]:
    return {"task": task, "score": score, "model_version": version, "result": list(regions)}


class RealPeople:
    """The actions of annotators in `MemoryStudio`, in a separate project of a real Label Studio."""

    def __init__(self, label_studio: LabelStudio, folder: Path) -> None:
        self.studio = label_studio
        self.number = label_studio.create_project("contract", CONFIG)
        self._folder = folder
        self._annotator: Annotator | None = None

    def add_scans(self, images: Sequence[bytes]) -> list[int]:
        paths = []
        for number, data in enumerate(images):
            paths.append(self._folder / f"scan{number}.png")
            paths[-1].write_bytes(data)
        return self.studio.import_files(self.number, paths)

    def reference(self, task: int) -> str:
        return str(self.studio.get(f"/api/tasks/{task}/")["data"]["image"])

    def next_task(self) -> int | None:
        if self._annotator is None:
            self._annotator = Annotator(self.studio.url, self.studio.email, self.studio.password)
        task = self._annotator.next_task(self.number)
        return task["id"] if task else None

    def annotate(
        self, task: int, result: Sequence[Mapping[str, Any]], *, shown: int | None = None, ground_truth: bool = False
    ) -> int:
        body = {"result": list(result), "lead_time": 5.0, "parent_prediction": shown, "ground_truth": ground_truth}
        return self._annotate(task, body)

    def propagate(self, annotation: int, tasks: Sequence[int]) -> None:
        selected = {"selectedItems": {"all": False, "included": list(tasks)}, "project": str(self.number)}
        action = f"/api/dm/actions?id=propagate_annotations&project={self.number}"
        self.studio.post(action, {**selected, "source_annotation_id": annotation})

    def skip(self, task: int) -> int:
        return self._annotate(task, {"result": [], "was_cancelled": True})

    def _annotate(self, task: int, body: Mapping[str, Any]) -> int:
        return int(self.studio.post(f"/api/tasks/{task}/annotations/", dict(body))["id"])

    def edit(self, annotation: int, result: Sequence[Mapping[str, Any]]) -> None:
        self.studio.patch(f"/api/annotations/{annotation}/", {"result": list(result)})

    def delete(self, annotation: int) -> None:
        self.studio.delete(f"/api/annotations/{annotation}/")

    def delete_tasks(self, tasks: Sequence[int]) -> None:
        for task in tasks:
            self.studio.delete(f"/api/tasks/{task}/")

    def change_config(self, config: str) -> None:
        self.studio.patch(f"/api/projects/{self.number}/", {"label_config": config})

    @property
    def predictions(self) -> list[dict[str, Any]]:
        return list(self.studio.get("/api/predictions/", project=self.number))

    def prediction_of(self, task: int, version: str) -> int:
        return max(p["id"] for p in self.predictions if p["task"] == task and p["model_version"] == version)

    def add_webhook(self, url: str, headers: Mapping[str, str]) -> None:
        body = {"project": self.number, "url": url, "headers": dict(headers), "send_payload": True}
        self.studio.post("/api/webhooks/", body | {"send_for_all_actions": True, "is_active": True})

    def close(self) -> None:
        if self._annotator is not None:
            self._annotator.close()


@pytest.fixture(params=["memory", pytest.param("real", marks=pytest.mark.label_studio)])
def sides(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """(ours, theirs): a Studio, and the annotators who use it, in a new project `theirs.number`."""
    if request.param == "memory":
        memory = MemoryStudio(CONFIG)
        yield memory, memory
        return
    label_studio = request.getfixturevalue("label_studio")
    people = RealPeople(label_studio, tmp_path)
    yield Studio(label_studio.url, label_studio.personal_access_token()), people
    people.close()


# -- the contract -----------------------------------------------------------------------------


def test_the_in_memory_studio_has_every_method_that_the_loop_calls() -> None:
    called = {
        node.attr
        for path in Path(backend.loop.__path__[0]).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] == "studio"
    }
    assert {"published", "import_predictions", "show_round"} <= called
    for name in called:
        assert inspect.signature(getattr(MemoryStudio, name)) == inspect.signature(getattr(Studio, name)), name


def test_a_new_project_is_described(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    theirs.add_scans([png(1), png(2)])
    page = ours.project(theirs.number)
    assert (page.tasks, page.model_version, page.show_predictions) == (2, "", True)
    assert page.sampling == "Sequential sampling"
    assert LabelConfig.from_parsed(page.parsed_config, theirs.number).labels == ("Lung",)
    theirs.change_config(LARGER)
    config = LabelConfig.from_parsed(ours.project(theirs.number).parsed_config, theirs.number)
    assert config.labels == ("Lung", "Heart")


def test_a_project_that_does_not_exist_is_reported_as_gone(sides: tuple[Any, Any]) -> None:
    with pytest.raises(ProjectGone, match="no such project"):
        sides[0].project(987_654)


def test_the_listing_contains_exactly_the_changes_after_the_cursor(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    tasks = theirs.add_scans([png(i) for i in range(5)])

    def changed() -> list[tuple[int, bool, bool]]:
        nonlocal cursor
        rows = ours.changed_tasks(theirs.number, cursor, 9) if cursor else list(ours.each_task(theirs.number))
        cursor = max([cursor, *(r.updated_at for r in rows)])
        return sorted((r.task, r.annotated, r.skipped) for r in rows)

    cursor = ""
    assert changed() == [(t, False, False) for t in sorted(tasks)]
    assert changed() == []
    first = next(iter(ours.each_task(theirs.number)))
    assert first.data["image"] == theirs.reference(first.task)
    annotation = theirs.annotate(tasks[1], [region()])
    assert changed() == [(tasks[1], True, False)]
    theirs.edit(annotation, [])
    assert changed() == [(tasks[1], True, False)]
    theirs.delete(annotation)
    assert changed() == [(tasks[1], False, False)]
    theirs.skip(tasks[2])
    assert changed() == [(tasks[2], False, True)]
    ours.import_predictions(theirs.number, [row(t, "scanqueue-r0") for t in tasks])
    assert changed() == []


def test_the_counts_of_the_project_match_the_listing(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    tasks = theirs.add_scans([png(i) for i in range(4)])
    made = [theirs.annotate(t, [region()]) for t in (tasks[0], tasks[0], tasks[1], tasks[1])]
    theirs.annotate(tasks[2], [], ground_truth=True)
    theirs.skip(tasks[3])
    for count in (5, 4):
        rows, page = list(ours.each_task(theirs.number)), ours.project(theirs.number)
        assert (page.annotations, page.skips) == (count, 1)
        assert sum(r.annotated for r in rows) == count
        assert sum(r.skipped for r in rows) == 1
        if count == 5:
            theirs.delete(made[0])


def test_a_listing_in_parts_has_all_tasks_and_the_newest_change(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    assert ours.newest_change(theirs.number) == ""
    assert ours.tasks_after(theirs.number, 0, 2) == ([], False)
    tasks = sorted(theirs.add_scans([png(i) for i in range(3)]))
    rows, more = ours.tasks_after(theirs.number, 0, 2)
    assert ([r.task for r in rows], more) == (tasks[:2], True)
    rows, more = ours.tasks_after(theirs.number, tasks[1], 2)
    assert ([r.task for r in rows], more) == (tasks[2:], False)
    assert ours.tasks_after(theirs.number, tasks[2], 2) == ([], False)
    before = max(r.updated_at for r in ours.each_task(theirs.number))
    theirs.annotate(tasks[1], [region()])
    changed = {r.task: r.updated_at for r in ours.each_task(theirs.number)}
    assert ours.newest_change(theirs.number) == changed[tasks[1]]
    assert [[r.task for r in ours.tasks_on_page(theirs.number, page, 2)] for page in (1, 2)] == [tasks[:2], tasks[2:]]
    assert [r.task for r in ours.changed_tasks(theirs.number, before, 1)] == [tasks[1]]
    assert ours.changed_tasks(theirs.number, before, 0) is None


def test_deleted_tasks_are_not_present(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    tasks = theirs.add_scans([png(i) for i in range(3)])
    theirs.delete_tasks([tasks[1]])
    assert ours.present(theirs.number, tasks) == {tasks[0], tasks[2]}
    assert ours.project(theirs.number).tasks == 2


def test_the_latest_uncancelled_annotation_counts(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    task, other = theirs.add_scans([png(1), png(2)])

    def counting() -> Annotation:
        first, second = ours.annotations(theirs.number, [task, other])
        assert second == other
        assert isinstance(first, Annotation)
        assert first.task == task
        return first

    older = theirs.annotate(task, [region()])
    newer = theirs.annotate(task, [])
    theirs.skip(task)
    theirs.skip(other)
    found = counting()
    assert (found.id, list(found.result), found.shown_version) == (newer, [], "")
    theirs.edit(older, [region(rows=5)])
    found = counting()
    assert found.id == older
    assert found.result[0]["value"] == region(rows=5)["value"]
    theirs.delete(older)
    assert counting().id == newer
    theirs.delete(newer)
    assert list(ours.annotations(theirs.number, [other, task])) == [other, task]


def test_ground_truth_takes_precedence_over_later_annotations(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    (task,) = theirs.add_scans([png(1)])
    truth = theirs.annotate(task, [region()], ground_truth=True)
    theirs.annotate(task, [])
    (found,) = ours.annotations(theirs.number, [task])
    assert found.id == truth


def test_a_drawn_annotation_takes_precedence_over_a_later_copy_of_another_tasks(
    sides: tuple[Any, Any],
) -> None:
    ours, theirs = sides
    source, drawn, bare = theirs.add_scans([png(1), png(2), png(3)])
    copied = theirs.annotate(source, [region()])
    own = theirs.annotate(drawn, [region(rows=5)])
    before = {row.task: row.updated_at for row in ours.each_task(theirs.number)}
    theirs.propagate(copied, [drawn, bare])
    found, copy = ours.annotations(theirs.number, [drawn, bare])
    assert (found.id, found.copied, len(found.others)) == (own, False, 1)
    assert copy.copied
    # only the counts show the copies
    assert {row.task: row.updated_at for row in ours.each_task(theirs.number)} == before
    assert [row.annotated for row in ours.each_task(theirs.number)] == [1, 2, 1]


def test_an_annotation_has_its_submission_time_and_lists_the_others(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    (task,) = theirs.add_scans([png(1)])
    first = theirs.annotate(task, [region()])
    skip = theirs.skip(task)
    truth = theirs.annotate(task, [], ground_truth=True)
    last = theirs.annotate(task, [region()])
    theirs.edit(truth, [region(rows=5)])
    (found,) = ours.annotations(theirs.number, [task])
    assert (found.id, found.ground_truth) == (truth, True)
    assert "" < found.created_at < found.updated_at
    assert [(o.id, o.skipped, o.ground_truth) for o in found.others] == [
        (first, False, False),
        (skip, True, False),
        (last, False, False),
    ]
    assert {o.completed_by for o in found.others} == {found.completed_by}
    assert found.completed_by in ours.user_names()
    assert sorted(o.created_at for o in found.others) == [o.created_at for o in found.others]


def test_the_newest_prediction_of_the_given_versions_is_found(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    first, second, third = theirs.add_scans([png(1), png(2), png(3)])
    for version, rows in (("scanqueue-r1", 2), ("scanqueue-r2", 3), ("scanqueue-r3", 4)):
        ours.import_predictions(theirs.number, [row(first, version, 0.5, region(rows=rows))])
    ours.import_predictions(theirs.number, [row(second, "scanqueue-r1", 0.5)])
    found = list(ours.predicted_regions(theirs.number, [third, first, second], ["scanqueue-r1", "scanqueue-r2"]))
    assert [task for task, _ in found] == [third, first, second]
    assert found[0][1] is None
    assert [r["value"] for r in found[1][1]] == [region(rows=3)["value"]]
    assert list(found[2][1]) == []


def test_an_annotation_names_the_version_that_it_started_from(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    first, second = theirs.add_scans([png(1), png(2)])
    for version in ("scanqueue-r1", "scanqueue-r2"):
        ours.import_predictions(theirs.number, [row(t, version, 0.5, region()) for t in (first, second)])
    theirs.annotate(first, [region()], shown=theirs.prediction_of(first, "scanqueue-r1"))
    theirs.annotate(second, [region()])
    found = list(ours.annotations(theirs.number, [second, first]))
    assert [(a.task, a.shown_version) for a in found] == [(second, ""), (first, "scanqueue-r1")]


def test_the_published_predictions_of_a_version_are_exactly_its_own(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    a, b, c = theirs.add_scans([png(i) for i in range(3)])
    assert ours.published(theirs.number, "scanqueue-r1") == {}
    ours.import_predictions(theirs.number, [row(b, "scanqueue-r10"), row(c, "scanqueue-r10")])
    assert ours.published(theirs.number, "scanqueue-r1") == {}
    ours.import_predictions(theirs.number, [row(a, "scanqueue-r1"), row(b, "scanqueue-r1")])
    assert ours.published(theirs.number, "scanqueue-r1") == {a: 1, b: 1}
    assert ours.published(theirs.number, "scanqueue-r10") == {b: 1, c: 1}


def test_duplicate_predictions_are_counted_and_the_oldest_is_kept(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    a, b = theirs.add_scans([png(1), png(2)])
    ours.import_predictions(theirs.number, [row(a, "scanqueue-r1", 0.1), row(b, "scanqueue-r1", 0.2)])
    ours.import_predictions(theirs.number, [row(a, "scanqueue-r2", 0.3)])
    ours.import_predictions(theirs.number, [row(a, "scanqueue-r1", 0.4)])
    assert ours.published(theirs.number, "scanqueue-r1") == {a: 2, b: 1}
    assert ours.remove_duplicate_predictions(theirs.number, "scanqueue-r1") == 1
    assert ours.published(theirs.number, "scanqueue-r1") == {a: 1, b: 1}
    left = sorted((p["task"], p["model_version"], p["score"]) for p in theirs.predictions)
    assert left == [(a, "scanqueue-r1", 0.1), (a, "scanqueue-r2", 0.3), (b, "scanqueue-r1", 0.2)]
    assert ours.remove_duplicate_predictions(theirs.number, "scanqueue-r1") == 0


def test_regions_of_predictions_are_replaced_in_place_except_those_of_labelled_tasks(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    a, b, c, d = theirs.add_scans([png(i) for i in range(4)])
    ours.import_predictions(theirs.number, [row(task, "scanqueue-r0", task / 10_000) for task in (a, b, c, d)])
    ours.import_predictions(theirs.number, [row(a, "scanqueue-r9", 0.9)])
    theirs.annotate(c, [region()])
    asked = {a: [region()], b: [region()], c: [region()]}
    assert ours.replace_results(theirs.number, "scanqueue-r0", asked, (c, d, a, b), 1) == {a, b}
    found = {(p["task"], p["model_version"]): p for p in theirs.predictions}
    assert len(theirs.predictions) == len(found) == 5
    shown = {key: len(p["result"]) for key, p in found.items()}
    assert shown == {(a, "scanqueue-r0"): 1, (b, "scanqueue-r0"): 1, (c, "scanqueue-r0"): 0, (d, "scanqueue-r0"): 0,
                     (a, "scanqueue-r9"): 0}  # fmt: skip
    assert [found[task, "scanqueue-r0"]["score"] for task in (a, b)] == pytest.approx([a / 10_000, b / 10_000])
    assert ours.replace_results(theirs.number, "scanqueue-r0", {a: [], b: []}, (b, a), 1) == {a}  # b may be held
    assert [len(p["result"]) for p in theirs.predictions if p["task"] == a] == [0, 0]


def test_an_import_that_drops_a_row_is_refused(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    a, b = theirs.add_scans([png(1), png(2)])
    rows = [row(a, "scanqueue-r1", 0.5, region()), row(b, "scanqueue-r1", 0.5, region("Spleen"))]
    with pytest.raises(StudioRefused, match="stored 1 of 2 predictions"):
        ours.import_predictions(theirs.number, rows)
    assert ours.published(theirs.number, "scanqueue-r1") == {a: 1}


def test_an_import_for_a_deleted_task_stores_nothing(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    a, b = theirs.add_scans([png(1), png(2)])
    theirs.delete_tasks([b])
    with pytest.raises(StudioRefused, match="400"):
        ours.import_predictions(theirs.number, [row(a, "scanqueue-r1"), row(b, "scanqueue-r1")])
    assert ours.published(theirs.number, "scanqueue-r1") == {}


@pytest.mark.label_studio
def test_few_predictions_for_a_large_project_are_added_one_by_one(label_studio: LabelStudio, tmp_path: Path) -> None:
    people = RealPeople(label_studio, tmp_path)
    ours = Studio(label_studio.url, label_studio.personal_access_token())
    a, b, c = people.add_scans([png(i) for i in range(3)])
    people.delete_tasks([b])
    rows = [row(t, "scanqueue-r0", s, *(region(),) * (t == a)) for t, s in ((a, 0.2), (b, 0.3), (c, 0.1))]
    before = ours.requests
    with pytest.raises(StudioRefused, match="400"):
        ours.import_predictions(people.number, rows, 100_000)
    assert ours.requests - before == 3
    assert ours.published(people.number, "scanqueue-r0") == {a: 1, c: 1}
    ours.show_round(people.number, "scanqueue-r0")
    assert people.next_task() == c
    people.annotate(c, [])
    assert people.next_task() == a
    (prediction,) = (p for p in people.predictions if p["task"] == a)
    assert (prediction["score"], len(prediction["result"])) == (0.2, 1)


def test_a_round_is_served_by_ascending_score_before_the_rest(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    a, b, c, d = theirs.add_scans([png(i) for i in range(4)])
    ours.import_predictions(theirs.number, [row(t, "scanqueue-r0", s) for t, s in ((a, 0.1), (b, 0.2))])
    rows = [row(t, "scanqueue-r1", s) for t, s in ((a, 0.9), (b, 0.2), (d, 0.4))]
    ours.import_predictions(theirs.number, rows)
    ours.show_round(theirs.number, "scanqueue-r1")
    page = ours.project(theirs.number)
    assert (page.model_version, page.sampling, page.show_predictions) == ("scanqueue-r1", SAMPLING, True)
    served = []
    while (task := theirs.next_task()) is not None:
        assert theirs.next_task() == task  # an annotator who holds a task gets it again
        served.append(task)
        theirs.annotate(task, [])
    assert served == [b, d, a, c]


def test_a_skipped_scan_is_not_served_to_the_same_person_again(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    a, b = theirs.add_scans([png(1), png(2)])
    ours.import_predictions(theirs.number, [row(a, "scanqueue-r0", 0.2), row(b, "scanqueue-r0", 0.1)])
    ours.show_round(theirs.number, "scanqueue-r0")
    assert theirs.next_task() == b
    theirs.skip(b)
    assert theirs.next_task() == a
    theirs.annotate(a, [])
    assert theirs.next_task() is None


def test_a_version_without_predictions_cannot_be_served(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    theirs.add_scans([png(1)])
    with pytest.raises(StudioRefused, match="400"):
        ours.show_round(theirs.number, "scanqueue-r1")
    page = ours.project(theirs.number)
    assert (page.model_version, page.sampling) == ("", "Sequential sampling")


def test_the_queue_tab_is_added(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    assert not ours.has_view(theirs.number)
    ours.add_view(theirs.number)
    assert ours.has_view(theirs.number)


def test_the_webhook_is_created_with_our_header(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    url = "http://127.0.0.1:9090/webhook"
    assert not ours.has_webhook(theirs.number, url, "s3cret")
    ours.set_webhook(theirs.number, url, "s3cret")
    assert ours.has_webhook(theirs.number, url, "s3cret")
    assert not ours.has_webhook(theirs.number, url, "another")
    assert not ours.has_webhook(theirs.number, "http://127.0.0.1:9091/webhook", "s3cret")


def test_the_webhook_is_repaired_in_place_and_keeps_its_other_headers(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    url = "http://127.0.0.1:9090/webhook"
    theirs.add_webhook(url, {"X-Site": "north"})
    assert not ours.has_webhook(theirs.number, url, "s3cret")
    ours.set_webhook(theirs.number, url, "s3cret")
    (hook,) = ours.webhooks(theirs.number)
    assert hook["headers"] == {"X-Site": "north", SECRET_HEADER: "s3cret"}
    assert ours.has_webhook(theirs.number, url, "s3cret")


def test_a_webhook_address_without_a_dot_is_refused_with_advice(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    with pytest.raises(StudioRefused) as error:
        ours.set_webhook(theirs.number, "http://backend:9090/webhook", "s3cret")
    assert str(error.value).startswith("The webhook to http://backend:9090/webhook could not be set")
    assert str(error.value).endswith(
        "give 'backend' an alias with a dot (for example backend.internal) and use it in SCANQUEUE_PUBLIC_URL."
    )
    assert ours.webhooks(theirs.number) == []


def test_an_image_comes_back_byte_for_byte(sides: tuple[Any, Any]) -> None:
    ours, theirs = sides
    (task,) = theirs.add_scans([png(77)])
    assert ours.image(theirs.reference(task)) == png(77)
    with pytest.raises(UnreadableScan, match=r"the server answered (404|500)"):
        ours.image(theirs.reference(task) + ".gone")


# -- the real one only: tokens and pages -------------------------------------------------------


@pytest.mark.label_studio
def test_an_access_token_that_label_studio_no_longer_accepts_is_replaced(
    label_studio: LabelStudio, tmp_path: Path
) -> None:
    """By our clock it is valid for another hour: one of the two clocks has jumped."""
    theirs = RealPeople(label_studio, tmp_path)
    (task,) = theirs.add_scans([png(9)])
    ours = Studio(label_studio.url, label_studio.personal_access_token())
    reference = theirs.reference(task)
    for ask in (lambda: ours.image(reference) == png(9), lambda: ours.project(theirs.number).tasks == 1):
        tokens = ours._client()._client_wrapper._tokens_client
        tokens._set_access_token(jwt.encode({"exp": time.time() + 3600}, "not Label Studio's" * 4))
        assert ask()


@pytest.mark.label_studio
def test_listings_and_imports_in_parts_neither_lose_nor_duplicate_anything(
    label_studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PAGE", 2)
    monkeypatch.setattr(listing, "ANNOTATION_CHUNK", 2)
    monkeypatch.setattr(queue, "IMPORT_BYTES", 300)
    people = RealPeople(label_studio, tmp_path)
    tasks = people.add_scans([png(i) for i in range(5)])
    ours = Studio(label_studio.url, label_studio.personal_access_token())
    assert [r.task for r in ours.each_task(people.number)] == sorted(tasks)
    before = ours.requests
    ours.import_predictions(people.number, [row(t, "scanqueue-r1") for t in tasks])
    assert ours.requests - before > 1
    assert ours.published(people.number, "scanqueue-r1") == dict.fromkeys(tasks, 1)
    made = {t: people.annotate(t, []) for t in tasks[:4]}
    found = list(ours.annotations(people.number, tasks))
    assert [a if isinstance(a, int) else (a.task, a.id) for a in found] == [*made.items(), tasks[4]]
    rows = ours.each_task(people.number)
    first = [next(rows).task, next(rows).task]
    people.delete_tasks(tasks[:1])  # between two requests: the third task moves up
    assert first + [r.task for r in rows] == sorted(tasks)


@pytest.mark.label_studio
def test_more_uploaded_files_than_sqlite_looks_up_at_once_are_listed(label_studio: LabelStudio, tmp_path: Path) -> None:
    people = RealPeople(label_studio, tmp_path)
    tasks = people.add_scans([png(0)] * 1001)
    ours = Studio(label_studio.url, label_studio.personal_access_token())
    assert [r.task for r in ours.each_task(people.number)] == sorted(tasks)


# -- the real one only: masks -----------------------------------------------------------------

NAMES = ("Lung \"left\" 'x'", "<b>Heart</b> & more", "Bänderzerrung ß", "肺 右", "a,b;c=1%")


@pytest.mark.label_studio
@pytest.mark.parametrize("kind", ["Brush", "Polygon"])
def test_unusual_label_names_are_accepted_and_read_back(kind: str, label_studio: LabelStudio, tmp_path: Path) -> None:
    people = RealPeople(label_studio, tmp_path)
    labels = "".join(f"<Label value={quoteattr(name)}/>" for name in NAMES)
    tag = f'<{kind}Labels name="the tag" toName="img">{labels}</{kind}Labels>'
    people.change_config(f'<View><Image name="img" value="$image"/>{tag}</View>')
    ours = Studio(label_studio.url, label_studio.personal_access_token())
    config = LabelConfig.from_parsed(ours.project(people.number).parsed_config, people.number)
    assert config.labels == NAMES
    (task,) = people.add_scans([png(5)])
    mask = np.zeros((H, W), np.uint8)
    for i in range(len(NAMES)):
        mask[4:20, 1 + i * 6 : 6 + i * 6] = i + 1
    drawn = draw_mask(mask, NAMES, config, "scanqueue-r1")
    ours.import_predictions(people.number, [row(task, "scanqueue-r1", 0.5, *drawn)])
    (stored,) = people.predictions
    people.annotate(task, stored["result"], shown=stored["id"])
    (found,) = ours.annotations(people.number, [task])
    back, remarks = read_mask(found.result, config, H, W)
    assert remarks == []
    assert found.shown_version == "scanqueue-r1"
    if kind == "Brush":
        assert np.array_equal(back, mask)
    for i in range(1, len(NAMES) + 1):
        both, either = ((back == i) & (mask == i)).sum(), ((back == i) | (mask == i)).sum()
        assert both / either > 0.9, NAMES[i - 1]


# -- the real one only: tokens and images -----------------------------------------------------


@pytest.fixture(scope="module")
def local_project(label_studio: LabelStudio, served_folder: Path) -> int:
    """A project with one scan from a folder that Label Studio serves."""
    (served_folder / "set").mkdir()
    (served_folder / "set" / "a scan.png").write_bytes(png(11))
    (served_folder.parent / "outside.png").write_bytes(png(66))
    number = label_studio.create_project("local files", CONFIG)
    label_studio.local_files_storage(number, served_folder / "set")
    return number


@pytest.mark.label_studio
def test_a_legacy_token_works_while_enabled_and_is_refused_with_advice_when_disabled(
    label_studio: LabelStudio,
) -> None:
    legacy = label_studio.legacy_token()
    label_studio.legacy_tokens(True)
    try:
        assert Studio(label_studio.url, legacy).whoami() == label_studio.email
    finally:
        label_studio.legacy_tokens(False)
    with pytest.raises(StudioRefused) as error:
        Studio(label_studio.url, legacy).whoami()
    assert "legacy token authentication has been disabled for this organization" in str(error.value)
    assert "Create a personal access token (Account & Settings)" in str(error.value)


@pytest.mark.label_studio
def test_a_personal_access_token_reads_and_writes(label_studio: LabelStudio) -> None:
    assert Studio(label_studio.url, label_studio.personal_access_token()).whoami() == label_studio.email


@pytest.mark.parametrize("token", ["", "0" * 40])
@pytest.mark.label_studio
def test_no_token_and_a_wrong_token_are_refused_with_advice(label_studio: LabelStudio, token: str) -> None:
    with pytest.raises(StudioRefused, match="SCANQUEUE_LABEL_STUDIO_API_KEY"):
        Studio(label_studio.url, token).whoami()


def test_an_unreachable_label_studio_counts_as_temporary(free_port: int) -> None:
    with pytest.raises(StudioUnavailable, match="does not answer"):
        Studio(f"http://127.0.0.1:{free_port}", "0" * 40).project(1)


@pytest.mark.label_studio
def test_a_local_file_comes_back_byte_for_byte(label_studio: LabelStudio, local_project: int) -> None:
    ours = Studio(label_studio.url, label_studio.personal_access_token())
    (task,) = ours.each_task(local_project)
    reference = task.data["image"]
    assert reference.startswith("/data/local-files/?d=")
    assert ours.image(reference) == png(11)


@pytest.mark.label_studio
@pytest.mark.usefixtures("local_project")
@pytest.mark.parametrize("path", ["set/gone.png", "../../etc/passwd", "../outside.png", "/etc/passwd", "set"])
def test_a_local_file_that_is_missing_or_outside_is_a_problem_of_its_scan(label_studio: LabelStudio, path: str) -> None:
    ours = Studio(label_studio.url, label_studio.personal_access_token())
    with pytest.raises(UnreadableScan, match=r"the server answered (404|403|500)"):
        ours.image(f"/data/local-files/?d={path}")


@pytest.mark.label_studio
def test_a_file_that_label_studio_forbids_is_a_problem_of_its_scan_alone(
    default_studio: LabelStudio, tmp_path: Path
) -> None:
    """Serving local files is off, as it is by default: a 403 that is unrelated to the token."""
    people = RealPeople(default_studio, tmp_path)
    people.add_scans([png(5)])
    ours = Studio(default_studio.url, default_studio.personal_access_token())
    with pytest.raises(UnreadableScan, match=r"'a scan.png' may not be read.*403.*LOCAL_FILES_SERVING_ENABLED=true"):
        ours.image("/data/local-files/?d=set/a%20scan.png")
    (task,) = ours.each_task(people.number)
    assert ours.image(task.data["image"]) == png(5)


def test_an_upload_that_the_token_owner_may_not_see_is_a_problem_of_its_scan() -> None:
    forwarder = Forwarder()
    forwarder.status = 403
    try:
        with pytest.raises(UnreadableScan, match=r"'x.png' may not be read.*owner of our token.*Import"):
            Studio(f"http://127.0.0.1:{forwarder.port}", "0" * 40).image("/data/upload/7/x.png")
    finally:
        forwarder.close()


def test_requests_without_tls_do_not_wait_on_a_connection_that_is_used_again() -> None:
    """Label Studio's own server sends headers and body apart: on a kept connection, that takes 40 ms more."""
    ports = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # it would keep the connection

        def do_GET(self) -> None:
            ports.append(self.client_address[1])
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        ours = Studio(f"http://127.0.0.1:{server.server_address[1]}", "0" * 40)
        for _ in range(3):
            assert ours._call("GET", "/api/projects/") == {}
        server.shutdown()
    assert len(set(ports)) == 3
    kept = limits("https://label-studio.example.com").max_keepalive_connections
    assert kept  # a TLS handshake costs more


class Host:
    """A web server on the loopback address; `redirect` sends every request on."""

    def __init__(self, redirect: Callable[[str], str] | None = None) -> None:
        self.seen: list[tuple[str, bool]] = []  # path, whether it carried credentials
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append((self.path, "Authorization" in self.headers))
                self.send_response(302 if redirect else 200)
                if redirect:
                    self.send_header("Location", redirect(self.path))
                self.end_headers()
                if not redirect:
                    self.wfile.write(png(33))

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.name = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def own_studio(*hosts: str) -> Studio:
    """A Studio whose Label Studio need not run because it serves none of the images."""
    return Studio("http://127.0.0.1:1", "0" * 40, image_hosts=hosts)


def test_an_image_on_a_listed_host_is_fetched_without_our_token() -> None:
    with Host() as host:
        assert own_studio(host.name).image(f"http://{host.name}/scan.png") == png(33)
        assert host.seen == [("/scan.png", False)]


def test_a_redirect_between_listed_hosts_is_followed() -> None:
    with Host() as last, Host(lambda path: f"http://{last.name}{path}") as first:
        assert own_studio(first.name, last.name).image(f"http://{first.name}/scan.png") == png(33)
        assert last.seen == [("/scan.png", False)]


@pytest.mark.parametrize(
    "path",
    [
        "/api/projects/1/",
        "/api/token/",
        "/data/../api/token/",
        "/data/%2e%2e/api/token/",
        "/data/%252e%252e/api/token/",
        "//data/x.png",
        "/data//../../api/token/",
        "/data/..\\api/token/",
        "/tasks/1/resolve/../../../api/token/",
        "/data/",
        "/",
        "/user/login/?next=/data/x.png",
    ],
)
def test_a_task_cannot_make_us_send_our_token_to_the_rest_of_label_studio(path: str) -> None:
    with Host() as host:
        for sub_path in ("", "/studio"):
            ours = Studio(f"http://{host.name}{sub_path}", "0" * 40)
            with pytest.raises(UnreadableScan):
                ours.image(f"http://{host.name}{sub_path}{path}")
        assert host.seen == []


def test_files_of_a_label_studio_below_a_sub_path_are_fetched_with_our_token() -> None:
    with Host() as host:
        ours = Studio(f"http://{host.name}/studio", "0" * 40)
        for path in (
            "/data/upload/1/a%20b.png",
            "/studio/data/local-files/?d=a/../b.png",
            "/tasks/1/resolve/?fileuri=x",
        ):
            assert ours.image(path) == png(33)
        assert [authorized for _, authorized in host.seen] == [True] * 3
        assert all(seen.startswith("/studio/") for seen, _ in host.seen)


def test_a_redirect_into_the_rest_of_label_studio_is_not_followed() -> None:
    with Host(lambda _: "/api/token/") as host:
        with pytest.raises(UnreadableScan, match="not a file"):
            Studio(f"http://{host.name}", "0" * 40).image("/data/upload/1/a.png")
        assert [path for path, _ in host.seen] == ["/data/upload/1/a.png"]


def test_an_image_on_a_host_that_is_not_listed_is_never_requested() -> None:
    with Host() as host:
        with pytest.raises(UnreadableScan) as error:
            own_studio("example.com").image(f"http://{host.name}/scan.png")
        assert str(error.value) == (
            f"its image is on '{host.name}', which is neither Label Studio nor an allowed host. "
            "If you trust that host, add it to SCANQUEUE_IMAGE_HOSTS and restart scanqueue."
        )
        assert host.seen == []


@pytest.mark.parametrize("target", ["http://{}/secret", "//{}/secret"])
def test_a_redirect_to_a_host_that_is_not_listed_is_not_followed(target: str) -> None:
    with Host() as inside, Host(lambda _: target.format(inside.name)) as listed:
        with pytest.raises(UnreadableScan, match="neither Label Studio nor an allowed host"):
            own_studio(listed.name).image(f"http://{listed.name}/scan.png")
        assert [path for path, _ in listed.seen] == ["/scan.png"]
        assert inside.seen == []


def test_a_redirect_loop_ends() -> None:
    with Host(lambda path: path) as host:
        with pytest.raises(UnreadableScan, match="more than 5 redirects"):
            own_studio(host.name).image(f"http://{host.name}/scan.png")
        assert len(host.seen) == 5


@pytest.mark.parametrize(
    "reference",
    [
        "file:///etc/passwd",
        "s3://bucket/scan.png",
        "data:image/png;base64",
        "data:image/png;base64,*",
        "//169.254.169.254/latest",
        "http://127.0.0.1:1@169.254.169.254/latest",
        "http://127.0.0.1:99999/scan.png",
        "http://[127.0.0.1/scan.png",
        "/data/upload/1/scan\x00.png",
        "http://exa mple.com/scan.png",
        "",
    ],
)
def test_an_address_that_cannot_be_an_image_is_a_problem_of_its_scan(reference: str) -> None:
    with pytest.raises(UnreadableScan):
        own_studio("exa mple.com").image(reference)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        *(
            (path, "`scanqueue import`")
            for path in ("file:///home/x/a.png", "C:\\scans\\a.png", "c:/a.png", "\\\\nas\\a.png")
        ),
        *((f"{scheme}://scans/a.png", "bucket 'scans'.*Cloud Storage") for scheme in ("s3", "gs", "azure-blob", "S3")),
        *((f"{scheme}://host/a.png", "http or https, or upload") for scheme in ("ftp", "dicomweb", "blob")),
    ],
)
def test_a_cure_for_an_address_that_is_not_of_http_can_work(reference: str, words: str) -> None:
    with pytest.raises(UnreadableScan, match=words) as error:
        own_studio().image(reference)
    assert "IMAGE_HOSTS" not in str(error.value)


def test_an_inline_image_is_decoded() -> None:
    encoded = base64.b64encode(png(7)).decode()
    assert own_studio().image(f"data:image/png;base64,{encoded}") == png(7)
    assert own_studio().image("DATA:image/png;base64," + encoded.replace("=", "%3D").replace("+", "%2B")) == png(7)


@pytest.mark.parametrize("named", ["localhost", "127.0.0.1", "LOCALHOST"])
@pytest.mark.parametrize(
    "listed", ["localhost", "127.0.0.1", "::1", "localhost:{}", "127.0.0.1:{}", "[::1]:{}", "localhost!"]
)
def test_all_names_of_this_machine_are_one_host(named: str, listed: str) -> None:
    with Host() as host:
        port = host.name.partition(":")[2]
        assert own_studio(listed.format(port)).image(f"http://{named}:{port}/scan.png") == png(33)
        assert host.seen == [("/scan.png", False)]
        ours = Studio(f"http://{named}:{port}", "0" * 40)
        assert ours.image(
            f"http://{'localhost' if named != 'localhost' else '127.0.0.1'}:{port}/data/upload/1/a.png"
        ) == png(33)
        assert host.seen[1] == ("/data/upload/1/a.png", True)


def test_a_file_of_a_cloud_storage_is_fetched_from_label_studio_whatever_its_public_address_is() -> None:
    with Host() as host:
        ours = Studio(f"http://{host.name}/studio", "0" * 40)
        assert ours.image("https://labels.hospital.invalid/tasks/7/resolve/?fileuri=czM6Ly9h") == png(33)
        assert ours.image("https://labels.hospital.invalid/studio/projects/7/resolve/?fileuri=czM6Ly9h") == png(33)
        assert [path for path, _ in host.seen] == [
            "/studio/tasks/7/resolve/?fileuri=czM6Ly9h",
            "/studio/projects/7/resolve/?fileuri=czM6Ly9h",
        ]


def test_a_redirect_of_label_studio_names_what_to_set() -> None:
    with Host(lambda _: "https://bucket.invalid/a.png?X-Amz-Signature=secret") as host:
        with pytest.raises(UnreadableScan, match=r"'bucket\.invalid'.*SCANQUEUE_IMAGE_HOSTS.*pre-signed") as error:
            Studio(f"http://{host.name}", "0" * 40).image("/tasks/7/resolve/?fileuri=czM6Ly9h")
        assert "secret" not in str(error.value)
    with (
        Host(lambda path: f"https://127.0.0.1{path}") as host,
        pytest.raises(UnreadableScan, match="Set SCANQUEUE_LABEL_STUDIO_URL"),
    ):
        Studio(f"http://{host.name}", "0" * 40).image("/data/upload/1/a.png")
