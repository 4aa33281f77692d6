"""Broken scans, annotations and a broken Label Studio are reported clearly; nothing is lost, the rest goes on."""

from __future__ import annotations

import io
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from service import CONTROL, Forwarder, Lab, Service

from backend.demo.annotator import to_result
from backend.demo.label_studio import LabelStudio

pytestmark = pytest.mark.label_studio

Scans = list[tuple[Path, Path]]
MIXED = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="tag" toName="image"><Label value="Lung"/><Label value="Heart"/></BrushLabels>'
    '<PolygonLabels name="poly" toName="image"><Label value="Lung"/></PolygonLabels></View>'
)

WITH_SPINE = MIXED.replace('<Label value="Heart"/>', '<Label value="Heart"/><Label value="Spine"/>')


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few bytes that claims side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def encoded(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def file_server(tmp_path_factory: pytest.TempPathFactory, scans60: Scans) -> Iterator[tuple[Path, str]]:
    """A folder of good and bad images on a separate HTTP server."""
    folder = tmp_path_factory.mktemp("files")
    gray = Image.open(scans60[0][0]).convert("L")
    wide = np.asarray(gray).astype(np.uint16) * 200
    files = {
        "rgba.png": encoded(gray.convert("RGBA"), "PNG"),
        "palette.png": encoded(gray.convert("P"), "PNG"),
        "cmyk.jpg": encoded(gray.convert("CMYK"), "JPEG"),
        "sixteen.png": encoded(Image.fromarray(wide), "PNG"),
        "empty.png": b"",
        "text.png": b"<html>not an image</html>",
        "truncated.png": scans60[1][0].read_bytes()[:2000],
        "bomb.png": bomb(),
        "vanishing.png": scans60[2][0].read_bytes(),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield folder, f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def by_task(status: dict[str, Any]) -> dict[int, str]:
    return {problem["task"]: problem["what"] for problem in status["problems"]}


@pytest.fixture(scope="module")
def bad(
    label_studio: LabelStudio,
    scans60: Scans,
    file_server: tuple[Path, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Any]]:
    """A connected project with ten good scans and one broken scan of every kind."""
    folder, host = file_server
    forwarder = Forwarder(label_studio.url)
    env = {"SCANQUEUE_IMAGE_HOSTS": host, "SCANQUEUE_LABEL_STUDIO_URL": f"http://127.0.0.1:{forwarder.port}"}
    service = Service(label_studio, tmp_path_factory.mktemp("bad") / "data", env=env)
    lab = Lab(label_studio, scans60[:10], config=MIXED, extra_params={"cold_start_size": 5, "round_size": 3})
    names = [*(p.name for p in sorted(folder.iterdir())), "missing.png"]
    urls = {name: f"http://{host}/{name}" for name in names} | {"elsewhere": "http://169.254.169.254/scan.png"}
    ids = label_studio.import_tasks(lab.project, [{"image": url} for url in urls.values()] + [{"image": ""}])
    odd = dict(zip([*urls, "nothing"], ids, strict=True))
    with service:
        lab.connect(service)
        service.wait(lab.project, lambda s: s["phase"] == "cold_start" and s["job"] is None and s["queue"])
        yield {"lab": lab, "service": service, "odd": odd, "forwarder": forwarder, "folder": folder}
    lab.close()
    forwarder.close()


def test_unreadable_scans_are_listed_with_advice_and_the_others_go_on(bad: dict[str, Any]) -> None:
    lab, service, odd = bad["lab"], bad["service"], bad["odd"]
    status = service.status(lab.project)
    problems = by_task(status)
    assert set(problems) == {
        odd[n] for n in ("empty.png", "text.png", "truncated.png", "bomb.png", "missing.png", "elsewhere", "nothing")
    }
    assert "empty" in problems[odd["empty.png"]]
    assert "not an image" in problems[odd["text.png"]]
    assert "3,600,000,000 pixels" in problems[odd["bomb.png"]]
    assert "the server answered 404" in problems[odd["missing.png"]]
    assert "add it to SCANQUEUE_IMAGE_HOSTS" in problems[odd["elsewhere"]]
    assert "import it again" in problems[odd["nothing"]]
    assert not set(status["queue"]) & set(problems)
    assert status["scans"] == 10 + len(odd)
    assert status["embedded"] == 10 + 5
    assert "Traceback" not in service.log()


def test_predict_answers_for_broken_scans_too(bad: dict[str, Any]) -> None:
    lab, service, odd = bad["lab"], bad["service"], bad["odd"]
    tasks = [{"id": odd["text.png"], "data": {"image": "http://127.0.0.1:1/x.png"}}, {"id": 10**9, "data": {}}]
    answer = service.http.post("/predict", json={"tasks": tasks, "project": f"{lab.project}.1"}).json()
    assert [r["result"] for r in answer["results"]] == [[], []]
    assert all(0 <= r["score"] <= 1 for r in answer["results"])


def test_broken_annotations_are_listed_and_the_good_ones_train(bad: dict[str, Any]) -> None:
    lab, service = bad["lab"], bad["service"]
    studio = lab.studio
    good = list(lab.names)
    mask = np.zeros((256, 256), bool)
    mask[60:200, 40:110] = True
    region = to_result({"Lung": mask}, CONTROL)[0]
    broken = {
        good[0]: [region | {"value": {"format": "rle", "rle": [0, 0, 0, 8, 11], "brushlabels": ["Lung"]}}],
        good[1]: [region | {"original_width": 999, "original_height": 7}],
        good[2]: [
            region
            | {
                "type": "polygonlabels",
                "from_name": "poly",
                "value": {"points": [[1, 1], [2, 2]], "closed": True, "polygonlabels": ["Lung"]},
            }
        ],
    }
    ids = {}
    for task, result in broken.items():
        ids[task] = studio.post(f"/api/tasks/{task}/annotations/?project={lab.project}", {"result": result})["id"]
    status = service.wait(lab.project, lambda s: set(broken) <= set(by_task(s)))
    problems = by_task(status)
    assert "does not fit its 256 x 256 pixels" in problems[good[0]]
    assert "was drawn on 999 x 7 pixels, but the image has 256 x 256" in problems[good[1]]
    assert "import the former one again" in problems[good[1]]
    assert good[2] in problems
    polygon = {
        "type": "polygonlabels",
        "from_name": "poly",
        "value": {
            "points": [[15, 20], [45, 20], [45, 80], [15, 80]],
            "closed": True,
            "polygonlabels": ["Lung"],
        },
    }
    for task in good[3:8]:  # brush and polygon mixed in one annotation
        result = [*lab.truth(task), region | polygon]
        studio.post(f"/api/tasks/{task}/annotations/?project={lab.project}", {"result": result})
    lab.wait_for_round(1)
    service.wait(lab.project, lambda s: s["phase"] == "active")
    # fixing one removes its problem
    studio.patch(f"/api/annotations/{ids[good[0]]}/", {"result": lab.truth(good[0])})
    service.wait(lab.project, lambda s: good[0] not in by_task(s))
    assert "Traceback" not in service.log()


def test_a_changed_label_config_takes_effect(bad: dict[str, Any]) -> None:
    lab, service = bad["lab"], bad["service"]
    before = service.status(lab.project)["round"]
    lab.studio.patch(
        f"/api/projects/{lab.project}/", {"label_config": "<View><Image name='image' value='$image'/></View>"}
    )
    blocked = service.wait(lab.project, lambda s: s["phase"] == "blocked")
    assert "has no tag that draws masks" in blocked["reason"]
    assert "Settings > Labeling Interface" in blocked["reason"]
    lab.studio.patch(f"/api/projects/{lab.project}/", {"label_config": WITH_SPINE})
    status = service.wait(lab.project, lambda s: s["phase"] == "active" and s["round"] > before and s["job"] is None)
    assert status["model_version"] == f"scanqueue-r{status['round']}"
    lab.wait_for_round(status["round"])


def test_tasks_deleted_in_the_middle_of_a_round_are_forgotten(bad: dict[str, Any]) -> None:
    lab, service = bad["lab"], bad["service"]
    before = service.status(lab.project)
    victim = before["queue"][0]
    lab.studio.delete(f"/api/tasks/{victim}/")
    status = service.wait(lab.project, lambda s: s["scans"] == before["scans"] - 1)
    assert victim not in status["queue"]
    assert service.wait(lab.project, lambda s: s["job"] is None)["trouble"] == ""


def test_a_deleted_image_is_a_problem_of_its_scan_alone(bad: dict[str, Any]) -> None:
    lab, service, folder = bad["lab"], bad["service"], bad["folder"]
    (folder / "vanishing.png").unlink()
    for cached in service.folder.glob("pixels/*/*"):
        cached.unlink()
    answer = service.http.post(
        "/predict",
        json={
            "project": f"{lab.project}.1",
            "tasks": [{"id": bad["odd"]["vanishing.png"], "data": {"image": "http://127.0.0.1:1/gone.png"}}],
        },
    )
    assert answer.json()["results"][0]["result"] == []
    assert service.status(lab.project)["phase"] in ("active", "done")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 500}, "Label Studio answered 500"),
        ({"status": 401}, "Label Studio refuses the token"),
        ({"hangs_up": True}, "does not answer"),
    ],
    ids=["500", "401", "down"],
)
def test_a_failing_label_studio_is_reported_and_survived(
    bad: dict[str, Any], fault: dict[str, Any], words: str
) -> None:
    lab, service, forwarder = bad["lab"], bad["service"], bad["forwarder"]
    for name, value in fault.items():
        setattr(forwarder, name, value)
    hook = {"action": "PROJECT_UPDATED", "project": {"id": lab.project}}
    service.http.post("/webhook", json=hook)
    service.wait(lab.project, lambda s: words in s["trouble"], seconds=60)
    assert service.http.get("/health").status_code == 200
    forwarder.status, forwarder.hangs_up = 0, False
    service.http.post("/webhook", json=hook)
    service.wait(lab.project, lambda s: s["trouble"] == "" and s["phase"] in ("active", "done"), seconds=90)
    assert "Traceback" not in service.log()


def test_a_slow_label_studio_slows_nothing_else(bad: dict[str, Any]) -> None:
    lab, service, forwarder = bad["lab"], bad["service"], bad["forwarder"]
    forwarder.delay = 2.0
    hook = {"action": "PROJECT_UPDATED", "project": {"id": lab.project}}
    for _ in range(5):
        began = time.monotonic()
        assert service.http.post("/webhook", json=hook).status_code == 201
        assert time.monotonic() - began < 1  # Label Studio hangs up after that
    forwarder.delay = 0.0


def test_two_connected_backends_are_reported(bad: dict[str, Any], label_studio: LabelStudio, scans60: Scans) -> None:
    service, lab = bad["service"], Lab(label_studio, scans60[:6])
    second = Forwarder(service.url)
    label_studio.connect_backend(lab.project, f"http://127.0.0.1:{second.port}", title="another")
    lab.connect(service)
    status = service.wait(lab.project, lambda s: "ML backends are connected" in s["trouble"], seconds=120)
    assert "Label Studio uses only the first" in status["trouble"]
    assert "Settings > Model" in status["trouble"]
    lab.close()
    second.close()


def test_a_deleted_project_is_reported_as_deleted(bad: dict[str, Any]) -> None:
    lab, service = bad["lab"], bad["service"]
    lab.studio.delete(f"/api/projects/{lab.project}/")
    hook = {"action": "PROJECT_UPDATED", "project": {"id": lab.project}}
    service.http.post("/webhook", json=hook)
    status = service.wait(lab.project, lambda s: s["phase"] == "deleted", seconds=90)
    assert "it was deleted" in status["reason"]
    assert status["trouble"] == ""
    assert status["scans"] > 0
