"""TODO: what this module promises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from backend.label_studio.client import WRITE_SECONDS, Client

UPLOAD_FILES = 100  # Label Studio answers 500 to more in one request
UPLOAD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Upload:
    """A file that was uploaded: `name` as we gave it, `address` for a task's data, `size` in bytes."""

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
    """TODO"""

    def add_tasks(self, project: int, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Make a task of each data; their numbers, in this order.

        After StudioUnavailable nobody knows whether they were made: ask with `task_data` before trying again.
        """
        answer = self._call(
            "POST",
            f"/api/projects/{project}/import",
            params={"return_task_ids": "true"},
            content=json.dumps([{"data": dict(row)} for row in rows], allow_nan=False).encode(),
            timeout=WRITE_SECONDS,
        )
        return [int(number) for number in answer["task_ids"]]

    def delete_task(self, task: int) -> None:
        """Remove one task with all it holds."""
        self._call("DELETE", f"/api/tasks/{task}/")

    def upload(self, project: int, files: Sequence[tuple[str, bytes]]) -> list[Upload]:
        """Give Label Studio PNG files (name, content) without making tasks of them; in this order.

        At most UPLOAD_FILES and UPLOAD_BYTES together. After StudioUnavailable nobody knows which of them arrived:
        ask with `uploads` before trying again.
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
        """Files that the token's user has uploaded to the project, whether tasks show them or not.

        numbers  these only; None: all of them
        """
        params = {"all": "true"} if numbers is None else {"ids": json.dumps(list(numbers))}
        root = urlsplit(self.url).path.rstrip("/")
        for row in self._call("GET", f"/api/projects/{project}/file-uploads", params=params):
            name = str(row["file"]).rsplit("/", 1)[-1]
            address = f"{root}/data/{row['file']}"
            yield Upload(int(row["id"]), name.partition("-")[2], address, int(row.get("size") or 0))

    def local_address(self, relative: str) -> str:
        """What task data say for a local file; `relative` to the document root, quoted."""
        return f"{urlsplit(self.url).path.rstrip('/')}/data/local-files/?d={relative}"

    def local_storages(self, project: int) -> list[str]:
        """The folders, as Label Studio names them, of the project's storages of local files."""
        rows = self._call("GET", "/api/storages/localfiles/", params={"project": project}) or ()
        return [str(row.get("path") or "") for row in rows]

    def document_root(self, project: int) -> str:
        """The folder, as Label Studio names it, below which it may serve local files; "" when it does not say."""
        said = self._storage_objection(project, "/")
        found = re.search(r'LOCAL_FILES_DOCUMENT_ROOT="([^"]+)"', said)
        return found[1] if found else ""

    def local_files_objection(self, project: int, folder: str) -> str:
        """Why Label Studio would not serve files of `folder` (its own name for it); "" when it would."""
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
            raise self.refusal(status, answer, path)
        return " ".join(str(text) for texts in faults.values() for text in texts)

    def add_local_storage(self, project: int, folder: str) -> None:
        """Let Label Studio serve the files of `folder` (its own name for it) to whoever sees the project.

        Its pattern fits no file: "Sync" in Label Studio makes no tasks of the same pictures.
        """
        self._call("POST", "/api/storages/localfiles/", body=_local_storage(project, folder))
