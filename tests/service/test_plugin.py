"""ScanqueueBackend in label-studio-ml 1.0.9's own Flask app, between a real Label Studio and a real service."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from service import Forwarder, Service

from backend.demo.child import Child, free_port
from backend.demo.label_studio import LabelStudio
from backend.doctor import examine
from backend.settings import Settings

pytestmark = pytest.mark.label_studio

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-label-studio-ml" / "bin" / "python"
CREDENTIALS = {"SCANQUEUE_USER": "plugin", "SCANQUEUE_PASSWORD": "open-sesame-2468"}
CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image"><Label value="Lung"/>'
    "</BrushLabels></View>"
)
HOST = """
import sys
from label_studio_ml.api import init_app
from backend.plugin import ScanqueueBackend
init_app(ScanqueueBackend, model_dir=sys.argv[2]).run(host="127.0.0.1", port=int(sys.argv[1]), threaded=True)
"""

if not PYTHON.exists():
    pytest.skip(
        f"label-studio-ml is not installed at {PYTHON.parent.parent}; run `make setup`", allow_module_level=True
    )


class Plugin:
    """A label-studio-ml server that hosts ScanqueueBackend."""

    def __init__(self, folder: Path, service_url: str, env: Mapping[str, str]) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.jobs = folder / "jobs"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SCANQUEUE_")}
        environment = {**kept, **env, "PYTHONPATH": str(ROOT), "SCANQUEUE_PUBLIC_URL": service_url}
        command = [str(PYTHON), "-c", HOST, self.url.rpartition(":")[2], str(self.jobs)]
        self.child = Child("label-studio-ml", command, env=environment, log=folder / "label-studio-ml.log")
        self.child.wait_healthy(f"{self.url}/health", timeout=60)

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, trust_env=False, timeout=100)


def wait_for(ready: Callable[[], Any], why: Callable[[], str], *, seconds: float = 120) -> Any:
    until = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < until, why()
        time.sleep(0.3)
    return found


@pytest.fixture(scope="module")
def hosted(
    label_studio: LabelStudio, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Plugin, Service, Forwarder]]:
    folder = tmp_path_factory.mktemp("plugin")
    between = Forwarder()
    with Service(label_studio, folder / "service", env=CREDENTIALS) as service:
        between.target = service.url
        plugin = Plugin(folder, f"http://127.0.0.1:{between.port}", CREDENTIALS)
        try:
            yield plugin, service, between
        finally:
            plugin.child.stop()
            between.close()


def test_label_studio_gets_predictions_through_the_plugin(
    hosted: tuple[Plugin, Service, Forwarder], label_studio: LabelStudio, phantom_folder: Path
) -> None:
    plugin, service, between = hosted
    project = label_studio.create_project("hosted by label-studio-ml", CONFIG)
    tasks = label_studio.import_files(project, sorted((phantom_folder / "images").glob("*.png"))[:6])
    params = {"cold_start_size": 3, "round_size": 2}
    backend = label_studio.connect_backend(project, plugin.url, extra_params=params)
    assert backend["readable_state"] == "Connected"
    assert "/setup" in between.paths

    # /setup registered the project, so the worker publishes the cold start
    status = service.wait(project, lambda seen: seen["round"] == 0 and len(seen["queue"]) == 6)
    wait_for(
        lambda: label_studio.get(f"/api/projects/{project}/")["model_version"] == "scanqueue-r0",
        plugin.child.tail,
    )
    assert "/predict" not in between.paths

    # the service answers Label Studio's requests to the plugin, task by task
    body = {"project": project, "selectedItems": {"all": True, "excluded": []}}
    label_studio.post(f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", body)
    assert "/predict" in between.paths
    stored = label_studio.get("/api/predictions/", project=project)
    assert {p["model_version"] for p in stored} == {"scanqueue-r0"}
    fetched = {p["task"]: p["score"] for p in sorted(stored, key=lambda p: p["id"])[-6:]}
    assert sorted(fetched, key=lambda t: fetched[t]) == status["queue"]
    assert sorted(fetched) == sorted(tasks)

    # events reach the service, including START_TRAINING, and leave no payload with tokens on disk
    between.paths.clear()
    label_studio.start_training(backend["id"])
    wait_for(lambda: "/webhook" in between.paths, plugin.child.tail, seconds=30)
    between.paths.clear()
    label_studio.patch(f"/api/projects/{project}/", {"title": "renamed"})
    wait_for(lambda: "/webhook" in between.paths, plugin.child.tail, seconds=30)
    wait_for(lambda: not list(plugin.jobs.rglob("*")), lambda: str(list(plugin.jobs.rglob("*"))), seconds=20)


def test_doctor_recognizes_the_host_of_the_plugin(
    hosted: tuple[Plugin, Service, Forwarder], label_studio: LabelStudio
) -> None:
    plugin, service, _ = hosted
    project = label_studio.create_project("hosted, examined", CONFIG)
    label_studio.connect_backend(project, plugin.url)
    settings = Settings(
        label_studio_url=label_studio.url,
        label_studio_api_key=label_studio.personal_access_token(),
        public_url=service.url,
        port=service.port,
        data_dir=service.folder,
        embedder="pixels",
    )
    found = [f for f in examine(settings, project) if f.check == "backend"]
    assert [f.level for f in found] == ["warning", "ok"]
    assert "correct if it hosts backend.plugin.ScanqueueBackend" in found[0].what


def test_predict_in_the_plugin_returns_one_item_per_task_and_never_null(
    hosted: tuple[Plugin, Service, Forwarder],
) -> None:
    plugin = hosted[0]
    plugin.post("/setup", {"project": "77001.5", "schema": CONFIG, "extra_params": None}).raise_for_status()
    tasks = [{"id": n, "project": 77001, "data": {"image": f"/data/upload/{n}.png"}} for n in (1, 2, 3)]
    answer = plugin.post("/predict", {"tasks": tasks, "project": "77001.5", "label_config": CONFIG, "params": {}})
    assert answer.status_code == 200
    assert answer.json()["results"] == [{"model_version": "scanqueue-pending", "score": 1.0, "result": []}] * 3


def test_an_unreachable_service_is_reported_and_nothing_is_predicted(tmp_path: Path) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    plugin = Plugin(tmp_path, away, {})
    try:
        asked = {"project": "5.1", "schema": CONFIG}
        setup = plugin.post("/setup", asked)
        assert setup.status_code == 500
        assert f"scanqueue does not answer at {away}" in setup.json()["detail"]
        assert "Start `scanqueue serve`, and set SCANQUEUE_PUBLIC_URL" in setup.json()["detail"]
        event = {"action": "PROJECT_UPDATED", "project": {"id": 5, "token": "secret-token"}}
        assert plugin.post("/webhook", event).status_code == 201
        wait_for(lambda: "was not handed on" in plugin.child.tail(40), plugin.child.tail, seconds=20)
        assert not [p for p in plugin.jobs.rglob("*") if p.is_file()]
    finally:
        plugin.child.stop()


def test_wrong_credentials_are_reported(hosted: tuple[Plugin, Service, Forwarder], tmp_path: Path) -> None:
    service = hosted[1]
    plugin = Plugin(tmp_path, service.url, {**CREDENTIALS, "SCANQUEUE_PASSWORD": "wrong"})
    try:
        answer = plugin.post("/setup", {"project": "5.1", "schema": CONFIG})
        assert answer.status_code == 500
        assert "401 to /setup. Check SCANQUEUE_USER and SCANQUEUE_PASSWORD." in answer.json()["detail"]
    finally:
        plugin.child.stop()


# label-studio-ml 2.x is not on the package index. This has its cache, which takes text only.
VERSION_2 = """
import json, sys, types
class Base:
    stored = {}
    def __init__(self, project_id="", label_config=None): self.setup()
    def setup(self): pass
    def set(self, key, value):
        if not isinstance(value, str): raise TypeError("the cache takes text only")
        self.stored[key] = value
    def set_extra_params(self, extra_params): self.set("extra_params", extra_params)
sys.modules["label_studio_ml"] = types.ModuleType("label_studio_ml")
sys.modules["label_studio_ml.model"] = types.ModuleType("label_studio_ml.model")
sys.modules["label_studio_ml.model"].LabelStudioMLBase = Base
from backend.plugin import ScanqueueBackend
for given in ({"round_size": 3}, '{"round_size": 3}'):
    ScanqueueBackend().set_extra_params(given)
    print(Base.stored["extra_params"])
"""


def test_extra_params_as_an_object_reach_the_cache_of_version_2_as_text() -> None:
    done = subprocess.run([PYTHON, "-c", VERSION_2], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ('{"round_size": 3}\n' * 2, 0), done.stderr
