"""Adding tasks to a project, and the ways to store their images: uploads and local files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from backend.label_studio.client import WRITE_SECONDS, Client

UPLOAD_FILES = 100  # files per request; Label Studio answers 500 to more
UPLOAD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Upload:
    """An uploaded file: `name` as we sent it, `address` for task data, `size` in bytes."""

    number: int
    name: str
    address: str
    size: int


def _local_storage(project: int, folder: str) -> dict[str, Any]:
    return {
        "project": project,
        "path": folder,
        "title": "scanqueue import",
        "regex_filter": "^$",
        "use_blob_urls": True,
    }


class Importing(Client):
    """Write access to tasks, uploads and storages of local files."""

    def add_tasks(self, project: int, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Create one task per row of task data; returns their ids in the same order.

        After StudioUnavailable the tasks may exist: check with `task_data` before a retry.
        """
        answer = self._call(
            "POST",
            f"/api/projects/{project}/import",
            params={"return_task_ids": "true"},
            content=json.dumps([{"data": dict(row)} for row in rows], allow_nan=False).encode(),
            timeout=WRITE_SECONDS,
        )
        return [int(number) for number in answer["task_ids"]]

    def add_annotation(self, task: int, result: Sequence[Mapping[str, Any]], *, ground_truth: bool = False) -> int:
        """Add an annotation by the token's user, without a time spent on it; returns its id.

        After StudioUnavailable it may exist: check with `annotations` before a retry.
        """
        body = {"result": list(result), "ground_truth": ground_truth}
        return int(self._call("POST", f"/api/tasks/{task}/annotations/", body=body)["id"])

    def delete_task(self, task: int) -> None:
        """Delete one task with its annotations and predictions."""
        self._call("DELETE", f"/api/tasks/{task}/")

    def upload(self, project: int, files: Sequence[tuple[str, bytes]]) -> list[Upload]:
        """Upload PNG files (name, content) without creating tasks; returns the uploads in the same order.

        At most UPLOAD_FILES files and UPLOAD_BYTES in total. After StudioUnavailable some files may have arrived:
        check with `uploads` before a retry.
        """
        parts = [(f"file{number}", (name, data, "image/png")) for number, (name, data) in enumerate(files)]
        request = httpx.Request("POST", self.url, files=parts)
        answer = self._call(
            "POST",
            f"/api/projects/{project}/import",
            params={"commit_to_project": "false"},
            content=request.read(),
            content_type=request.headers["Content-Type"],
            timeout=WRITE_SECONDS,
        )
        numbers = [int(number) for number in answer["file_upload_ids"]]
        found = {one.number: one for one in self.uploads(project, numbers)}
        return [found[number] for number in numbers]

    def uploads(self, project: int, numbers: Sequence[int] | None = None) -> Iterator[Upload]:
        """Files that the token's user has uploaded to the project, whether or not tasks use them.

        numbers  ids of uploads; None: all
        """
        params = {"all": "true"} if numbers is None else {"ids": json.dumps(list(numbers))}
        root = urlsplit(self.url).path.rstrip("/")
        for row in self._call("GET", f"/api/projects/{project}/file-uploads", params=params):
            name = str(row["file"]).rsplit("/", 1)[-1]
            address = f"{root}/data/{row['file']}"
            yield Upload(int(row["id"]), name.partition("-")[2], address, int(row.get("size") or 0))

    def local_address(self, relative: str) -> str:
        """The image address in task data for a local file; `relative`: quoted path below the document root."""
        return f"{urlsplit(self.url).path.rstrip('/')}/data/local-files/?d={relative}"

    def local_storages(self, project: int) -> list[str]:
        """Folders of the project's local file storages, as paths on Label Studio's machine."""
        rows = self._call("GET", "/api/storages/localfiles/", params={"project": project}) or ()
        return [str(row.get("path") or "") for row in rows]

    def document_root(self, project: int) -> str:
        """Root of the local files that Label Studio may serve, as a path on its machine; "" if not reported."""
        objection = self._storage_objection(project, "/")
        found = re.search(r'LOCAL_FILES_DOCUMENT_ROOT="([^"]+)"', objection)
        return found[1] if found else ""

    def local_files_objection(self, project: int, folder: str) -> str:
        """Why Label Studio would refuse to serve files in `folder` (a path on its machine); "" if it would not."""
        return self._storage_objection(project, folder)

    def _storage_objection(self, project: int, folder: str) -> str:
        path = "/api/storages/localfiles/validate"
        status, answer = self._exchange("POST", path, body=_local_storage(project, folder))
        if status == 401 and self._with_new_token():
            status, answer = self._exchange("POST", path, body=_local_storage(project, folder))
        if status < 400:
            return ""
        faults = answer.get("validation_errors") if isinstance(answer, Mapping) else None
        if status != 400 or not isinstance(faults, Mapping):
            raise self._refusal(status, answer, path)
        return " ".join(str(text) for texts in faults.values() for text in texts)

    def add_local_storage(self, project: int, folder: str) -> None:
        """Let Label Studio serve the files in `folder` (a path on its machine) to all who can see the project.

        The filter matches no file, so "Sync" in Label Studio creates no duplicate tasks.
        """
        self._call("POST", "/api/storages/localfiles/", body=_local_storage(project, folder))
