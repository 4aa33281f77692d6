"""The queue in Label Studio: predictions with scores, the model version that is served, and the Data Manager tab."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backend.errors import StudioRefused
from backend.facts import SAMPLING
from backend.label_studio.listing import Listing, filters

IMPORT_BYTES = 32 * 2**20  # well below Label Studio's DATA_UPLOAD_MAX_MEMORY_SIZE of 250 MiB
TASKS_COUNTED = 500  # tasks whose predictions Label Studio counts in the time that adding a single prediction takes
VIEW_TITLE = "scanqueue"
HIDDEN_COLUMNS = [  # hidden in the "Default" tab that Label Studio's web page creates
    f"tasks:{name}"
    for name in (
        "inner_id",
        "annotations_results",
        "annotations_ids",
        "predictions_score",
        "predictions_model_versions",
        "predictions_results",
        "file_upload",
        "storage_filename",
        "created_at",
        "updated_at",
        "updated_by",
        "avg_lead_time",
        "draft_exists",
    )
]


def _chunks(rows: Sequence[bytes], limit: int) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for row in rows:
        if chunk and size + len(row) > limit:
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += len(row)
    if chunk:
        yield chunk


class PublishedQueue(Listing):
    """Reads and writes the predictions that order a project's tasks."""

    def model_versions(self, project: int) -> dict[str, int]:
        """The number of predictions of every model version in the project."""
        return dict(self._read(f"/api/projects/{project}/model-versions/", dict))

    def published(self, project: int, version: str, counts: Mapping[str, int] | None = None) -> dict[int, int]:
        """Number of predictions from exactly `version` per task; tasks without any are absent.

        counts  what `model_versions` returned, if that is known
        """
        counts = self.model_versions(project) if counts is None else counts
        if version not in counts:
            return {}
        query = filters(("predictions_model_versions", "contains", "List", [version]))
        rows = self._task_rows(project, "id,predictions_model_versions", query)
        tasks = [r["id"] for r in rows if version in str(r["predictions_model_versions"]).split(",")]
        if counts[version] <= len(tasks):
            return dict.fromkeys(tasks, 1)
        return Counter(task for task, _ in self._prediction_ids(project, version))

    def _prediction_ids(self, project: int, version: str) -> list[tuple[int, int]]:
        query = filters(("predictions_model_versions", "contains", "List", [version]))
        rows = self._task_rows(project, "id,predictions", query, fields="all")
        return [
            (row["id"], p["id"])
            for row in rows
            for p in row.get("predictions") or ()
            if p.get("model_version") == version
        ]

    def remove_duplicate_predictions(self, project: int, version: str) -> int:
        """Keep only the oldest prediction from `version` per task; returns how many were removed."""
        seen: set[int] = set()
        removed = 0
        for task, prediction in sorted(self._prediction_ids(project, version)):
            if task in seen:
                self._call("DELETE", f"/api/predictions/{prediction}/")
                removed += 1
            seen.add(task)
        return removed

    def import_predictions(self, project: int, rows: Sequence[Mapping[str, Any]], tasks: int = 0) -> None:
        """Add prediction rows {task, score, model_version, result}, split by size into few requests.

        tasks  number of tasks in the project. Few rows for a large project are added one by one: after an import,
               Label Studio counts the predictions of all tasks again

        Raises StudioRefused if Label Studio stored fewer than were sent: it drops invalid rows silently.
        """
        if len(rows) * TASKS_COUNTED < tasks:
            self._add_one_by_one(project, rows)
            return
        for chunk in _chunks([json.dumps(row, allow_nan=False).encode() for row in rows], IMPORT_BYTES):
            content = b"[" + b",".join(chunk) + b"]"
            answer = self._call("POST", f"/api/projects/{project}/import/predictions", content=content)
            created = int((answer or {}).get("created", 0))
            if created != len(chunk):
                raise StudioRefused(
                    f"Label Studio stored {created} of {len(chunk)} predictions and gave no reason. "
                    "The label config has probably just changed; scanqueue reads it and publishes again."
                )

    def _add_one_by_one(self, project: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add prediction rows in their order. Raises the first StudioRefused when the others are added."""
        refused: StudioRefused | None = None
        for row in rows:
            try:
                self._call("POST", "/api/predictions/", body={**row, "project": project})
            except StudioRefused as error:
                refused = refused or error
        if refused is not None:
            raise refused

    def replace_results(
        self,
        project: int,
        version: str,
        results: Mapping[int, Sequence[Mapping[str, Any]]],
        queue: Sequence[int],
        held: int,
    ) -> set[int]:
        """Give the predictions of `version` other regions, by task; returns the tasks for which that was done.

        The first ones of the queue that are not labelled yet are left alone, as somebody holds them, and so are those
        that were labelled meanwhile or have a draft. The next ones to be opened come first. A prediction stays the
        same row with the same score, so the order does not change.

        queue  the tasks of `results` and those before them, in order
        held   how many tasks may be held
        """
        query = filters(("id", "in_list", "List", list(queue)), ("total_annotations", "equal", "Number", 0))
        rows = {row["id"]: row for row in self._task_rows(project, "id,predictions", query, fields="all")}
        begun = set(self.tasks_with_drafts(project))
        done = set()
        for task in [task for task in queue if task in rows and task not in begun][held:]:
            for found in rows[task].get("predictions") or ():
                if task in results and found.get("model_version") == version:
                    body = {"task": task, "result": results[task]}
                    self._call("PATCH", f"/api/predictions/{found['id']}/", body=body)
                    done.add(task)
        return done

    def show_round(self, project: int, version: str) -> None:
        """Serve `version` to annotators, lowest score first. Its predictions must already exist."""
        body = {"sampling": SAMPLING, "model_version": version, "show_collab_predictions": True}
        self._call("PATCH", f"/api/projects/{project}/", body=body)

    def serve(self, project: int, *, sampling: str, model_version: str, show_predictions: bool) -> None:
        """Set what `show_round` sets to other values. Raises StudioRefused if `model_version` no longer exists."""
        body = {"sampling": sampling, "model_version": model_version, "show_collab_predictions": show_predictions}
        self._call("PATCH", f"/api/projects/{project}/", body=body)

    def _our_views(self, project: int) -> list[int]:
        views = self._read("/api/dm/views/", list, {"project": project})
        return [v["id"] for v in views if (v.get("data") or {}).get("title") == VIEW_TITLE]

    def has_view(self, project: int) -> bool:
        return bool(self._our_views(project))

    def remove_view(self, project: int) -> int:
        """Delete the tab that `add_view` added; returns how many there were."""
        views = self._our_views(project)
        for view in views:
            self._call("DELETE", f"/api/dm/views/{view}/", params={"project": project})
        return len(views)

    def add_view(self, project: int) -> None:
        """Add the Data Manager tab that shows the queue: unlabelled tasks, lowest score first.

        The web page creates its "Default" tab only in a project without tabs, and our tab hides labelled tasks. If
        nobody has opened the Data Manager yet, this creates "Default" first.
        """
        if not self._read("/api/dm/views/", list, {"project": project}):
            self._add_tab(project, {"title": "Default", "hiddenColumns": {"explore": HIDDEN_COLUMNS, "labeling": []}})
        score = ("tasks:predictions_score", "tasks:predictions_model_versions")
        shown = {
            "title": VIEW_TITLE,
            "ordering": ["tasks:predictions_score"],
            **filters(("total_annotations", "equal", "Number", 0)),
            "hiddenColumns": {"explore": [c for c in HIDDEN_COLUMNS if c not in score], "labeling": []},
        }
        self._add_tab(project, shown)

    def _add_tab(self, project: int, shown: Mapping[str, Any]) -> None:
        same = {"type": "list", "target": "tasks", "columnsDisplayType": {}, "columnsWidth": {}, "gridWidth": 4}
        self._call("POST", "/api/dm/views/", body={"project": project, "data": {**same, **shown}})
