"""A project whose scans are in a cloud storage: a real Label Studio, a real worker, and an S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import S3Server
from service import BRUSH, CONTROL, Service, phantom_scans

from backend.demo.annotator import Annotator, to_result
from backend.demo.label_studio import LabelStudio
from backend.formats.pixels import decode_image

pytestmark = pytest.mark.label_studio

SCANS = 10


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, bytes]]:
    """Name: the image, and the mask of its lungs."""
    pairs = phantom_scans(tmp_path_factory.mktemp("phantoms"), SCANS, seed=5, side=96)
    return {image.name: (image.read_bytes(), mask.read_bytes()) for image, mask in pairs}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory, scans: dict[str, tuple[bytes, bytes]]) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        server.put("scans", {f"ward/{name}": image for name, (image, _) in scans.items()})
        yield server


@pytest.fixture(scope="module")
def service(label_studio: LabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """It may contact no host but Label Studio."""
    few = {"SCANQUEUE_TRAINING_STEPS": "5", "SCANQUEUE_IMAGE_SIZE": "32"}
    with Service(label_studio, tmp_path_factory.mktemp("cloud") / "data", env=few) as running:
        yield running


def stored_project(studio: LabelStudio, s3: S3Server, *, presign: bool) -> tuple[int, int]:
    """A project with one task per file of the bucket, and its source storage."""
    project = studio.create_project("cloud", BRUSH)
    where = {"bucket": "scans", "prefix": "ward", "s3_endpoint": s3.url, "region_name": "us-east-1"}
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
    options = {"regex_filter": r".*\.png$", "use_blob_urls": True, "presign": presign, "presign_ttl": 15}
    storage = studio.post("/api/storages/s3", {"project": project, "title": "ward"} | where | keys | options)["id"]
    assert studio.post(f"/api/storages/s3/{storage}/sync")["status"] == "completed"
    assert len(studio.task_ids(project)) == SCANS
    return project, storage


def read(service: Service, project: int) -> dict[str, Any]:
    return service.wait(project, lambda s: s["embedded"] == SCANS and s["job"] is None and s["queue"])


def test_scans_behind_label_studios_proxy_go_through_the_whole_loop(
    label_studio: LabelStudio, service: Service, s3: S3Server, scans: dict[str, tuple[bytes, bytes]]
) -> None:
    project, _ = stored_project(label_studio, s3, presign=False)
    label_studio.connect_backend(project, service.public_url, extra_params={"cold_start_size": 6, "round_size": 50})
    assert read(service, project)["problems"] == []
    email = f"reader-of-{project}@example.com"
    label_studio.invite(email, "reading-room")
    reader = Annotator(label_studio.url, email, "reading-room")
    for _ in range(6):
        task = reader.next_task(project)
        assert task is not None
        plain = label_studio.get(f"/api/tasks/{task['id']}/", resolve_uri="false")["data"]["image"]
        assert plain.startswith("s3://scans/ward/")
        mask = decode_image(scans[plain.rsplit("/", 1)[-1]][1]) > 127
        reader.submit(task, list(to_result({"Lung": mask}, CONTROL)))
    reader.close()
    status = service.wait(project, lambda s: s["round"] == 1 and s["job"] is None, seconds=400)
    assert (status["labelled"], status["problems"]) == (6, [])


def test_presigned_scans_have_one_problem_and_one_cure_for_the_whole_project(
    label_studio: LabelStudio, service: Service, s3: S3Server, tmp_path: Path
) -> None:
    project, storage = stored_project(label_studio, s3, presign=True)
    label_studio.connect_backend(project, service.public_url, extra_params={"cold_start_size": 50})
    status = service.wait(project, lambda s: len(s["problems"]) == SCANS)
    (group,) = status["problem_groups"]
    assert (group["count"], group["same"], len(group["tasks"])) == (SCANS, True, 5)
    assert group["what"] == (
        f"its image is in a cloud storage, whose host '{s3.host}' scanqueue may not contact. Add the host to "
        'SCANQUEUE_IMAGE_HOSTS and restart scanqueue, or turn "Use pre-signed URLs" off in the storage\'s settings in '
        "Label Studio."
    )
    page = httpx.get(f"{service.url}/projects/{project}", trust_env=False).text
    assert page.count("whose host") == 1
    assert "Try all again" in page
    assert "Signature" not in service.log()

    # the second cure: nothing restarts, and everything is read at once
    label_studio.patch(f"/api/storages/s3/{storage}", {"presign": False})
    service.http.post(f"/api/projects/{project}/retry", json={"all": True}).raise_for_status()
    assert read(service, project)["problems"] == []
    (change,) = service.get(f"/api/projects/{project}/changes")["changes"]
    assert (change["kind"], change["what"]) == ("retry", f"{SCANS} scans to be read again")

    # the first cure
    other, storage = stored_project(label_studio, s3, presign=True)
    with Service(label_studio, tmp_path / "listed", env={"SCANQUEUE_IMAGE_HOSTS": s3.host}) as allowed:
        label_studio.connect_backend(other, allowed.public_url, extra_params={"cold_start_size": 50})
        assert read(allowed, other)["problems"] == []


def test_what_the_storage_refuses_is_said_with_the_name_of_the_file(
    label_studio: LabelStudio, service: Service, s3: S3Server, scans: dict[str, tuple[bytes, bytes]]
) -> None:
    project, _ = stored_project(label_studio, s3, presign=False)
    gone = sorted(scans)[0]
    s3.delete("scans", f"ward/{gone}")
    (stray,) = label_studio.import_tasks(project, [{"image": "gs://elsewhere/a.png"}])
    label_studio.connect_backend(project, service.public_url, extra_params={"cold_start_size": 50})
    status = service.wait(project, lambda s: s["embedded"] == SCANS - 1 and len(s["problems"]) == 2)
    told = {p["task"]: p["what"] for p in status["problems"]}
    assert "in the bucket 'elsewhere' (gs)" in told.pop(stray)
    (what,) = told.values()
    assert f"its image '{gone}' is not available: Label Studio's cloud storage answered 4" in what
    assert "credentials in Settings > Cloud Storage" in what
