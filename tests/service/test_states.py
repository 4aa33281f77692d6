"""States of a project in a real Label Studio: without scans, without labels, done with a skipped scan, deleted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from service import Lab, Service

from backend.demo.label_studio import LabelStudio

pytestmark = pytest.mark.label_studio


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
