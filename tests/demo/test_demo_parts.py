"""The parts of the demo: a real Label Studio, its annotators, and synthetic scans."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from rich.console import Console

from backend.demo.annotator import (
    Annotator,
    Control,
    file_name,
    from_result,
    label_map_to_masks,
    shown_prediction,
    to_brush,
    to_polygons,
)
from backend.demo.child import Child
from backend.demo.label_studio import LabelStudio
from backend.demo.phantoms import LABELS, phantom, write_phantoms
from backend.demo.scans import ScanFolder, read_folder
from backend.demo.simulation import Round, Simulation, compare, hd95, head_lines
from backend.errors import ScanqueueError, StudioRefused
from backend.learning.clicks import dice
from backend.records.rounds import Pick
from backend.web.status import sentence

CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image">'
    '<Label value="Lung"/><Label value="Heart"/></BrushLabels></View>'
)
BRUSH = Control("mask", "image", "brushlabels")


def queue_up(studio: LabelStudio, project: int, scores: dict[int, float], result: list[Any]) -> None:
    rows = [{"task": task, "score": score, "model_version": "r1", "result": result} for task, score in scores.items()]
    assert studio.post(f"/api/projects/{project}/import/predictions", rows)["created"] == len(rows)
    studio.patch(f"/api/projects/{project}/", {"sampling": "Uncertainty sampling", "model_version": "r1"})


# Label Studio


@pytest.mark.label_studio
def test_a_personal_access_token_is_exchanged_for_access(label_studio: LabelStudio) -> None:
    refresh = label_studio.personal_access_token()
    with httpx.Client(base_url=label_studio.url, trust_env=False) as client:
        access = client.post("/api/token/refresh", json={"refresh": refresh}).json()["access"]
        me = client.get("/api/current-user/whoami", headers={"Authorization": f"Bearer {access}"})
    assert me.json()["email"] == label_studio.email


@pytest.mark.label_studio
def test_legacy_tokens_work_only_while_enabled(label_studio: LabelStudio) -> None:
    header = {"Authorization": f"Token {label_studio.legacy_token()}"}

    def who() -> int:
        with httpx.Client(base_url=label_studio.url, trust_env=False) as client:
            return client.get("/api/current-user/whoami", headers=header).status_code

    assert who() == 401
    label_studio.legacy_tokens(True)
    assert who() == 200
    label_studio.legacy_tokens(False)
    assert who() == 401


@pytest.mark.label_studio
def test_files_become_tasks_in_the_given_order_even_over_several_requests(
    label_studio: LabelStudio, tmp_path: Path
) -> None:
    paths = [tmp_path / f"scan {number:03}.png" for number in range(130)]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((8, 8), number, np.uint8))
    project = label_studio.create_project("many files", CONFIG)
    tasks = label_studio.import_files(project, paths)
    listed = label_studio.get("/api/tasks", project=project, page_size=1000, include="id,data")["tasks"]
    names = {task["id"]: file_name(task) for task in listed}
    assert [names[task] for task in tasks] == [path.name.replace(" ", "_") for path in paths]


@pytest.mark.label_studio
def test_two_annotators_are_served_different_tasks_in_score_order(label_studio: LabelStudio) -> None:
    project = label_studio.create_project("two annotators", CONFIG)
    tasks = label_studio.import_tasks(project, [{"image": f"http://127.0.0.1:9/{n}.png"} for n in range(8)])
    order = [tasks[row] for row in (5, 2, 7, 0, 3, 6)]
    label_studio.invite("second@example.com", "a-password")
    mask = np.zeros((16, 16), bool)
    mask[4:9, 3:12] = True
    shown = to_brush({"Lung": mask}, BRUSH)
    queue_up(label_studio, project, {task: (n + 1) / 9 for n, task in enumerate(order)}, shown)

    first = Annotator(label_studio.url, label_studio.email, label_studio.password)
    second = Annotator(label_studio.url, "second@example.com", "a-password")
    served: list[int] = []
    for _ in range(3):
        pair = []
        for annotator in (first, second):
            task = annotator.next_task(project)
            assert task is not None
            pair.append((annotator, task))
        for annotator, task in pair:
            served.append(task["id"])
            made = annotator.submit(task, shown)
            prediction = shown_prediction(task)
            assert prediction is not None
            assert made["parent_prediction"] == prediction["id"]
    first.close()
    second.close()
    assert served == order


@pytest.mark.label_studio
def test_a_submitted_mask_is_read_back_exactly_and_a_skip_is_marked(label_studio: LabelStudio) -> None:
    project = label_studio.create_project("round trip", CONFIG)
    label_studio.import_tasks(project, [{"image": f"http://127.0.0.1:9/{n}.png"} for n in range(2)])
    _, masks = phantom(3, (96, 128))
    annotator = Annotator(label_studio.url, label_studio.email, label_studio.password)
    task = annotator.next_task(project)
    assert task is not None
    annotator.submit(task, to_brush(masks, BRUSH))
    stored = label_studio.annotations(task["id"])[0]
    assert stored["parent_prediction"] is None
    back = from_result(stored["result"], (96, 128))
    assert set(back) == set(LABELS)
    assert all(np.array_equal(back[label], masks[label]) for label in LABELS)

    other = annotator.next_task(project)
    assert other is not None
    assert annotator.skip(other)["was_cancelled"] is True
    annotator.close()


@pytest.mark.label_studio
def test_next_task_is_none_when_nothing_is_left(label_studio: LabelStudio) -> None:
    project = label_studio.create_project("no tasks", CONFIG)
    annotator = Annotator(label_studio.url, label_studio.email, label_studio.password)
    assert annotator.next_task(project) is None
    annotator.close()


@pytest.mark.label_studio
def test_a_wrong_password_is_refused_in_label_studios_words(label_studio: LabelStudio) -> None:
    with pytest.raises(StudioRefused, match="email and password you entered"):
        Annotator(label_studio.url, label_studio.email, "wrong")


@pytest.mark.label_studio
def test_local_files_are_served_and_a_restart_keeps_everything(label_studio: LabelStudio, tmp_path: Path) -> None:
    # `label_studio` is requested only so that the migrated database exists
    write_phantoms(tmp_path / "root" / "set", 3, seed=5, size=(32, 32))
    with LabelStudio.start(tmp_path / "ls", local_files=tmp_path / "root") as studio:
        project = studio.create_project("local files", CONFIG)
        tasks = studio.local_files_storage(project, tmp_path / "root" / "set" / "images")
        assert len(tasks) == 3
        url, pid = studio.url, studio.pid
        studio.restart()
        assert studio.url == url
        assert studio.pid != pid
        assert studio.task_ids(project) == tasks
        image = studio.get(f"/api/tasks/{tasks[0]}")["data"]["image"]
        assert studio.browser.get(image).content.startswith(b"\x89PNG")


def test_the_error_for_a_missing_label_studio_says_where_it_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ScanqueueError, match=r"no-such-place.*make setup"):
        LabelStudio.start(tmp_path, executable=tmp_path / "no-such-place")


# child processes


def test_a_child_that_fails_at_once_shows_the_end_of_its_log(tmp_path: Path, free_port: int) -> None:
    command = [sys.executable, "-c", "print('no such setting: COLOUR'); raise SystemExit(3)"]
    child = Child("the service", command, env={}, log=tmp_path / "log")
    try:
        with pytest.raises(ScanqueueError, match=r"exit code 3(.|\n)*no such setting: COLOUR"):
            child.wait_healthy(f"http://127.0.0.1:{free_port}/", timeout=30)
    finally:
        child.stop()


def test_a_child_and_its_children_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    write_own_pid = "import os, pathlib; pathlib.Path('{}').write_text(str(os.getpid()))\n"
    sleep = "import time; time.sleep(600)\n"
    (tmp_path / "grandchild.py").write_text(write_own_pid.format("grandchild.pid") + sleep)
    (tmp_path / "child.py").write_text(
        write_own_pid.format("child.pid")
        + "import subprocess, sys; subprocess.run([sys.executable, 'grandchild.py'])\n"
    )
    (tmp_path / "parent.py").write_text(
        "import os, pathlib, sys\n"
        "from backend.demo.child import Child\n"
        "child = Child('child', [sys.executable, 'child.py'], env=os.environ, log=pathlib.Path('log'))\n" + sleep
    )
    parent = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path)
    notes = [tmp_path / "child.pid", tmp_path / "grandchild.pid"]
    wait_until(lambda: all(note.exists() and note.read_text() for note in notes))
    started = [int(note.read_text()) for note in notes]
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(alive(pid) for pid in started))


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether it is running, and not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


# scans and masks


def test_equal_seeds_give_equal_phantoms_and_different_seeds_different_ones() -> None:
    image, masks = phantom(7)
    again, masks_again = phantom(7)
    other, _ = phantom(8)
    assert np.array_equal(image, again)
    assert all(np.array_equal(masks[label], masks_again[label]) for label in LABELS)
    assert not np.array_equal(image, other)


@pytest.mark.parametrize("seed", range(12))
def test_a_phantom_has_two_dark_lungs_and_a_separate_heart(seed: int) -> None:
    image, masks = phantom(seed, (128, 160))
    assert image.shape == masks["Lung"].shape == (128, 160)
    assert not (masks["Lung"] & masks["Heart"]).any()
    pieces = {label: cv2.connectedComponents(masks[label].astype(np.uint8))[0] - 1 for label in LABELS}
    assert pieces == {"Lung": 2, "Heart": 1}
    assert 0.10 < masks["Lung"].mean() < 0.45
    assert 0.02 < masks["Heart"].mean() < 0.20
    assert image[masks["Lung"]].mean() < image[masks["Heart"]].mean() - 20


def test_written_phantoms_read_back_as_the_same_masks(tmp_path: Path) -> None:
    paths = write_phantoms(tmp_path, 2, seed=4, size=(64, 64))
    scans = read_folder(tmp_path)
    assert scans.images == tuple(paths)
    assert scans.labels == LABELS
    _, masks = phantom(4 * 100_003 + 1, (64, 64))
    truth = scans.truth(paths[1])
    assert all(np.array_equal(truth[label], masks[label]) for label in LABELS)


def test_the_error_for_a_folder_without_images_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ScanqueueError, match="has no folder images/"):
        read_folder(tmp_path)


def test_masks_of_0_and_255_are_one_label_and_images_alone_have_no_masks(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((4, 4), np.uint8))
    assert read_folder(tmp_path).masks == {}
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), np.eye(4, dtype=np.uint8) * 255)
    scans = read_folder(tmp_path, ["Lung"])
    assert np.array_equal(scans.truth(scans.images[0])["Lung"], np.eye(4, dtype=bool))
    assert read_folder(tmp_path).labels == ("Region",)


def test_a_polygon_drawn_around_a_mask_covers_the_same_pixels() -> None:
    _, masks = phantom(2, (128, 128))
    back = from_result(to_polygons(masks, Control("mask", "image", "polygonlabels")), (128, 128))
    assert all(dice(back[label], masks[label]) > 0.99 for label in LABELS)


def test_a_label_map_splits_into_its_labels() -> None:
    masks = label_map_to_masks(np.array([[0, 1], [2, 1]]), ["Lung", "Heart"])
    assert masks["Lung"].tolist() == [[False, True], [False, True]]
    assert masks["Heart"].tolist() == [[False, False], [True, False]]


def test_dice_and_hd95_of_two_squares_three_pixels_apart() -> None:
    one = np.zeros((40, 40), bool)
    one[10:20, 10:20] = True
    moved = np.roll(one, 3, axis=1)
    assert dice(one, moved) == pytest.approx(0.7)
    assert hd95(one, moved) == pytest.approx(3.0)
    assert hd95(one, np.zeros_like(one)) is None
    assert compare({}, {"Lung": one}) == (0.0, None)
    assert compare({"Lung": one}, {"Lung": np.zeros_like(one)}) == (None, None)  # in no mean of a round


# the simulation


def picked(task: int, sentence: str, cluster: int | None = None) -> dict[str, Any]:
    return {"task": task, "sentence": sentence, "cluster": cluster}


class SlowRecords:
    """Label Studio already serves round 1; the service records it some answers later, as after a slow webhook."""

    url = "http://127.0.0.1:9"

    def __init__(self, answers: int) -> None:
        self.answers = answers

    def get(self, path: str) -> dict[str, Any]:
        return {"model_version": "scanqueue-r1"}

    def ask(self, path: str) -> dict[str, Any]:
        known = self.answers <= 0
        if path.endswith("/queue"):
            return {"queue": [picked(7 if known else 3, "Sampled at random.")]}
        self.answers -= 1
        return {"phase": "active" if known else "publishing", "round": int(known), "labelled": 4, "job": None}


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Simulation:
    """One whose Label Studio and service are SlowRecords."""
    monkeypatch.setattr("backend.demo.simulation.time.sleep", lambda _: None)
    slow = SlowRecords(answers=2)
    made = Simulation(
        *(slow, 1, slow.url, ScanFolder((), {}, ("Lung",), 0), {}),  # type: ignore[arg-type]
        readers=[],
        labels=8,
        cold_start_size=4,
        round_size=2,
        console=Console(quiet=True),
        alive=lambda: None,
    )
    monkeypatch.setattr(made, "_ask", slow.ask)
    return made


def test_a_round_begins_once_the_service_knows_that_it_is_served(simulation: Simulation) -> None:
    simulation.rounds = [Round(0, 0, [picked(3, "Sampled at random.")], {})]
    simulation._wait_for_round(4)
    assert [(r.number, r.head[0]["task"]) for r in simulation.rounds] == [(0, 3), (1, 7)]


def test_scans_with_the_same_reason_share_a_line() -> None:
    central, cluster = "Typical of its cluster on the map", ", cluster {} on the map"
    head = [picked(101, f"{central}{cluster.format(4)}.", 3), picked(7, f"{central}{cluster.format(2)}.", 1)]
    other = picked(12, "Most representative of the scans not represented yet.")
    assert head_lines([*head, other]) == [
        "101, 7 (typical of its cluster on the map)",
        "12 (most representative of the scans not represented yet)",
    ]
    assert head_lines([]) == ["nothing"]


@pytest.mark.parametrize("reason", ["representative", "power-entropy"])
def test_the_reasons_of_the_default_strategies_fit_into_a_line(reason: str) -> None:
    (line,) = head_lines([picked(task, sentence(Pick(task, reason))) for task in (100, 101, 102)])
    assert len(f"  queue: {line}") <= 80
