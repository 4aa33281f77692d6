"""States of a project in a real Label Studio: from its connection to its deletion, and while Label Studio is away."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from service import Forwarder, Lab, Service

from backend.demo.label_studio import LabelStudio
from backend.web.studio_state import SLOW

pytestmark = pytest.mark.label_studio

VIEWS = ("", "/map", "/queue", "/activity", "/curve", "/models", "/compare", "/settings")


def refusal(service: Service, project: int) -> str:
    """Why `Train now` is disabled; the API refuses the request with the same words."""
    answer = service.http.post(f"/api/projects/{project}/train", json={})
    assert answer.status_code == 422
    assert service.status(project)["no_training"] == answer.json()["error"]
    page = service.http.get(f"/projects/{project}", headers={"Accept": "text/html"}).text
    assert 'data-send="train"' not in page
    return str(answer.json()["error"])


def test_a_project_from_its_connection_to_its_deletion(
    label_studio: LabelStudio, scans60: list[tuple[Path, Path]], tmp_path: Path
) -> None:
    lab = Lab(label_studio, scans60[:5], annotators=1, extra_params={"cold_start_size": 50})
    path = f"/api/projects/{lab.project}/"
    label_studio.patch(path, {"skip_queue": "IGNORE_SKIPPED"})
    empty = label_studio.create_project("empty", label_studio.get(path)["label_config"])
    with Service(label_studio, tmp_path / "data") as service:
        label_studio.connect_backend(empty, service.public_url)
        service.wait(empty, lambda s: s["reason"].startswith("No scans yet"), seconds=60)
        assert "no scans" in refusal(service, empty)

        lab.connect(service)
        lab.wait_for_round(0, seconds=120)
        assert "no scan is labelled" in refusal(service, lab.project)
        lab.label(4)
        (reader,) = lab.annotators
        task = reader.next_task(lab.project)
        assert task is not None
        reader.skip(task)
        status = service.wait(lab.project, lambda s: s["phase"] == "done", seconds=60)
        assert status["reason"] == "Every scan is labelled except 1 that annotators skipped."
        assert (status["queue"], status["trouble"]) == ([], "")
        assert reader.next_task(lab.project) is None
        assert status["no_training"] == ""

        label_studio.delete(path)
        service.http.post("/webhook", json={"action": "PROJECT_UPDATED", "project": {"id": lab.project}})
        status = service.wait(lab.project, lambda s: s["phase"] == "deleted", seconds=90)
        assert f"scanqueue disconnect --project {lab.project} --forget" in status["reason"]
        assert (status["trouble"], status["labelled"]) == ("", 4)
        assert "no such project" in refusal(service, lab.project)
        command = [sys.executable, "-m", "backend.cli", "disconnect", "--project", str(lab.project), "--forget"]
        subprocess.run([*command, "--data-dir", str(service.folder)], env=service.environment, check=True)
        assert [p["project"] for p in service.get("/api/projects")["projects"]] == [empty]
    lab.close()


def test_every_view_says_when_label_studio_is_down_or_slow(
    label_studio: LabelStudio, scans60: list[tuple[Path, Path]], tmp_path: Path
) -> None:
    forwarder = Forwarder(label_studio.url)
    env = {"SCANQUEUE_LABEL_STUDIO_URL": f"http://127.0.0.1:{forwarder.port}"}
    lab = Lab(label_studio, scans60[:2], annotators=0)
    views = [f"/projects/{lab.project}{view}" for view in VIEWS]

    def said(pattern: str, seconds: float = 60) -> None:
        """Wait until the notice says this; "" for no notice."""
        until = time.monotonic() + seconds
        while not re.search(pattern or r"<div data-filling></div>", text := service.http.get("/notice").text):
            assert time.monotonic() < until, text
            time.sleep(0.3)

    def every_view(pattern: str) -> None:
        """Check that the notice above every view matches."""
        for view in ["/?all", "/docs", *views]:
            answer = service.http.get(view, headers={"Accept": "text/html"})
            (notice,) = re.findall(r'<div class="studio-state"[^>]*>(.*?)</div>', answer.text)
            assert (answer.status_code, bool(re.search(pattern, notice))) == (200, True), (view, notice)

    with Service(label_studio, tmp_path / "data", env=env, workers=0) as service:
        lab.connect(service)
        said("")
        every_view("^$")
        forwarder.hangs_up = True
        said("does not answer")
        every_view("does not answer")
        forwarder.hangs_up, forwarder.delay = False, 2 * SLOW
        said("has not answered for")
        every_view("has not answered for|is slow")
        said("Label Studio is slow")
        every_view("has not answered for|is slow")
        forwarder.delay = 0.0
        said("")
    forwarder.close()
    lab.close()
