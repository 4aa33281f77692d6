"""A real Label Studio in which scanqueue is removed, replaced, and asked to leave."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service import Forwarder, Lab, Service

from backend.demo.label_studio import LabelStudio

pytestmark = pytest.mark.label_studio

SERVED = ("sampling", "model_version", "show_collab_predictions")
CHOSEN = {"sampling": "Sequential sampling", "show_collab_predictions": False}  # by the lab, after the removal
QUIET = 6.0  # seconds; the worker reconciles a second after a webhook


class Project:
    """A connected project; what a lab sees of it in Label Studio."""

    def __init__(self, studio: LabelStudio, lab: Lab, service: Service) -> None:
        self.studio, self.lab, self.service, self.id = studio, lab, service, lab.project

    def served(self) -> dict[str, Any]:
        found = self.studio.get(f"/api/projects/{self.id}/")
        return {name: found[name] for name in SERVED}

    def tabs(self) -> list[str]:
        return sorted(v["data"]["title"] for v in self.studio.get("/api/dm/views/", project=self.id))

    def webhooks(self) -> list[str]:
        return [hook["url"] for hook in self.studio.webhooks(self.id)]

    def remove_backends(self) -> None:
        """Settings > Model > Delete."""
        for backend in self.studio.get("/api/ml", project=self.id):
            self.studio.delete(f"/api/ml/{backend['id']}")

    def disturb(self) -> None:
        """What a webhook does that is still under way."""
        body = {"action": "PROJECT_UPDATED", "project": {"id": self.id}}
        assert self.service.http.post("/webhook", json=body).status_code == 201

    def assert_left_alone(self) -> None:
        """The lab changes the settings and labels a scan: nothing is overwritten or published, and no webhook stays."""
        self.studio.patch(f"/api/projects/{self.id}/", CHOSEN)
        status = self.service.wait(self.id, lambda s: s["phase"] == "disconnected", seconds=30)
        assert f"scanqueue disconnect --project {self.id}" in status["reason"]
        before, predictions = self.served(), len(self.lab.predictions())
        assert {name: before[name] for name in CHOSEN} == CHOSEN
        until = time.monotonic() + QUIET
        self.lab.label(1)
        while time.monotonic() < until:
            self.disturb()
            time.sleep(1)
        assert self.served() == before
        assert len(self.lab.predictions()) == predictions
        assert self.service.public_url + "/webhook" not in self.webhooks()

    def disconnect(self, *options: str) -> str:
        command = [sys.executable, "-m", "backend.cli", "disconnect", "--project", str(self.id), *options]
        command += ["--data-dir", str(self.service.folder)]
        done = subprocess.run(command, env=self.service.environment, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def project(
    label_studio: LabelStudio, scans60: list[tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    lab = Lab(label_studio, scans60[:12], annotators=1, extra_params={"cold_start_size": 9, "round_size": 3})
    label_studio.patch(f"/api/projects/{lab.project}/", {"sampling": "Uniform sampling"})
    with Service(label_studio, tmp_path_factory.mktemp("disconnect") / "data") as service:
        lab.connect(service)
        lab.wait_for_round(0, seconds=120)
        lab.label(2)
        yield Project(label_studio, lab, service)
    lab.close()


def test_a_removed_backend_overwrites_nothing_and_its_webhook_goes(project: Project) -> None:
    project.remove_backends()
    project.assert_left_alone()
    assert project.webhooks() == []


def test_a_project_that_is_connected_again_goes_on(project: Project) -> None:
    project.lab.connect(project.service)
    project.lab.wait_for_round(0, seconds=30)
    status = project.service.wait(project.id, lambda s: s["phase"] == "cold_start" and s["labelled"] == 3, seconds=30)
    assert status["trouble"] == ""
    assert project.webhooks() == [project.service.public_url + "/webhook"]


def test_a_second_connection_with_the_same_url_is_no_other_backend(project: Project) -> None:
    project.lab.connect(project.service)  # as Label Studio's own retry does when its database is locked
    assert len(project.studio.get("/api/ml", project=project.id)) == 2
    project.studio.patch(f"/api/projects/{project.id}/", {"sampling": "Sequential sampling"})  # makes us ask
    until = time.monotonic() + 30
    while project.served()["sampling"] != "Uncertainty sampling":
        assert time.monotonic() < until
        time.sleep(0.3)
    status = project.service.wait(project.id, lambda s: s["job"] is None and s["phase"] == "cold_start", seconds=30)
    assert status["trouble"] == ""


def test_another_backend_in_our_place_overwrites_nothing(project: Project) -> None:
    other = Forwarder()
    other.status = 200
    project.remove_backends()
    url = f"http://127.0.0.1:{other.port}"
    project.studio.connect_backend(project.id, url, title="another")
    project.assert_left_alone()
    assert project.webhooks() == [f"{url}/webhook"]
    assert url in project.service.status(project.id)["reason"]
    project.remove_backends()
    (hook,) = project.studio.webhooks(project.id)
    project.studio.delete(f"/api/webhooks/{hook['id']}/")
    other.close()


def test_disconnect_restores_label_studio_and_forget_removes_the_project(project: Project) -> None:
    project.lab.connect(project.service)
    project.lab.wait_for_round(0, seconds=30)
    assert "scanqueue" in project.tabs()
    predictions = len(project.lab.predictions())
    said = project.disconnect()
    assert project.served() == {"sampling": "Uniform sampling", "model_version": "", "show_collab_predictions": True}
    assert project.studio.get("/api/ml", project=project.id) == []
    assert (project.webhooks(), project.tabs()) == ([], ["Default"])
    assert len(project.lab.predictions()) == predictions
    assert "'Uniform sampling'" in said
    before = project.served()
    project.disturb()
    time.sleep(QUIET)
    assert project.served() == before
    assert project.service.status(project.id)["phase"] == "disconnected"

    assert "were deleted" in project.disconnect("--forget")
    assert project.service.get("/api/projects")["projects"] == []
    project.disturb()
    time.sleep(QUIET)
    assert project.service.get("/api/projects")["projects"] == []
    assert project.served() == before
