"""Every value of an Image tag that Label Studio shows is read: on a real Label Studio, with a real worker."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from service import BRUSH, CONTROL, Service

from backend.demo.annotator import to_result
from backend.demo.label_studio import LabelStudio
from backend.label_studio.studio import Studio
from backend.records.store import Store

pytestmark = pytest.mark.label_studio

Scans = list[tuple[Path, Path]]
REPEATED = (
    '<View><Repeater on="$images" indexFlag="{{idx}}"><Image name="image_{{idx}}" value="$images[{{idx}}]"/>'
    '<BrushLabels name="tag_{{idx}}" toName="image_{{idx}}"><Label value="Lung"/></BrushLabels></Repeater></View>'
)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def host(scans60: Scans) -> Iterator[str]:
    """The scans on a web server of their own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(scans60[0][0].parent)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def service(label_studio: LabelStudio, host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("values") / "data"
    with Service(label_studio, folder, env={"SCANQUEUE_IMAGE_HOSTS": host}) as running:
        yield running


def inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def test_every_value_that_label_studio_shows_is_read(
    label_studio: LabelStudio, service: Service, host: str, scans60: Scans
) -> None:
    paths = [image for image, _ in scans60[:3]]
    cases: dict[str, list[dict[str, Any]]] = {
        "$image.url": [{"image": {"url": f"http://{host}/{p.name}"}} for p in paths],
        "$images[0]": [{"images": [f"http://{host}/{p.name}", "x.png"]} for p in paths],
        f"http://{host}/$name": [{"name": p.name} for p in paths],
        f"http://{host}/{paths[0].name}": [{"text": p.name} for p in paths],
        "$image": [{"image": inline(p)} for p in paths],
    }
    for value, rows in cases.items():
        config = BRUSH.replace("$image", value)
        project = label_studio.create_project(value, config)
        tasks = label_studio.import_tasks(project, rows)
        label_studio.connect_backend(project, service.public_url, extra_params={"cold_start_size": 50})
        status = service.wait(project, lambda s: s["phase"] == "cold_start" and s["job"] is None and len(s["queue"]))
        assert (status["embedded"], status["problems"]) == (3, []), value
        expected = [p.read_bytes() for p in paths]
        if "text" in rows[0]:
            expected = [expected[0]] * 3
        recorded = {s["task"]: s["image"] for s in Store(service.folder).scans(project)}
        ours = Studio(label_studio.url, label_studio.personal_access_token(), image_hosts=[host])
        assert [ours.image(recorded[t]) for t in tasks] == expected, value
        assert max(map(len, recorded.values())) < 200, value
    assert "base64" not in service.log()


def test_an_inline_image_that_was_replaced_is_read_again(
    label_studio: LabelStudio, service: Service, scans60: Scans
) -> None:
    project = label_studio.create_project("inline", BRUSH)
    (task, _) = label_studio.import_tasks(project, [{"image": inline(scans60[n][0])} for n in (0, 1)])
    label_studio.connect_backend(project, service.public_url, extra_params={"cold_start_size": 50})
    service.wait(project, lambda s: s["embedded"] == 2 and s["job"] is None)
    store = Store(service.folder)
    before = store.scan(project, task)
    assert before is not None
    ours = Studio(label_studio.url, label_studio.personal_access_token())
    label_studio.patch(f"/api/tasks/{task}/", {"data": {"image": "data:image/png;base64,????"}})
    found = service.wait(project, lambda s: s["problems"])["problems"]
    assert [p["task"] for p in found] == [task]
    assert "invalid; import the image again" in found[0]["what"]
    label_studio.patch(f"/api/tasks/{task}/", {"data": {"image": inline(scans60[2][0])}})
    service.wait(project, lambda s: s["embedded"] == 2 and not s["problems"])
    after = store.scan(project, task)
    assert after is not None
    assert after["digest"] not in ("", before["digest"])
    assert ours.image(after["image"]) == scans60[2][0].read_bytes()


def test_a_blocked_project_says_what_is_not_supported_and_what_it_contains(
    label_studio: LabelStudio, service: Service, host: str, scans60: Scans
) -> None:
    urls = [f"http://{host}/{p.name}" for p, _ in scans60[:4]]
    lists = BRUSH.replace('value="$image"', 'valueList="$images"')
    film = BRUSH.replace("<Image", "<Video")
    cases = {REPEATED: "inside a <Repeater>", lists: "valueList", film: "<Video>"}
    for config, words in cases.items():
        project = label_studio.create_project("blocked", config)
        tasks = label_studio.import_tasks(project, [{"images": [u], "image": u} for u in urls])
        for task in tasks[:2]:
            label_studio.post(f"/api/tasks/{task}/annotations/", {"result": []})
        label_studio.connect_backend(project, service.public_url)
        status = service.wait(project, lambda s: s["phase"] == "blocked" and s["scans"])
        assert words in status["reason"], config
        assert "not supported" in status["reason"]
        assert (status["scans"], status["labelled"], status["embedded"]) == (4, 2, 0)
        page = httpx.get(f"{service.url}/projects/{project}").text
        assert "<dt>Scans</dt><dd>4</dd>" in page
        assert words.replace("<", "&lt;").replace(">", "&gt;") in page
        if config == lists:  # once it is mended, everything is read
            label_studio.patch(f"/api/projects/{project}/", {"label_config": BRUSH})
            mended = service.wait(project, lambda s: s["embedded"] == 4)
            assert mended["labelled"] == 2


def test_label_studio_drops_predictions_for_repeated_tags(label_studio: LabelStudio) -> None:
    """The reason why a Repeater is not supported. If this fails, support it."""
    import numpy as np

    project = label_studio.create_project("repeated", REPEATED)
    (task,) = label_studio.import_tasks(project, [{"images": ["http://127.0.0.1:1/a.png"]}])
    (region,) = to_result({"Lung": np.ones((8, 8), bool)}, CONTROL)
    region |= {"from_name": "tag_0", "to_name": "image_0"}
    row = {"task": task, "score": 0.5, "model_version": "r", "result": [region]}
    assert label_studio.post(f"/api/projects/{project}/import/predictions", [row])["created"] == 0
