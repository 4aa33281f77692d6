"""The contents of Label Studio, listed in bulk: projects, tasks, annotations, predictions and users."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backend.errors import NotSegmentable
from backend.label_config import LabelConfig, smart_tags
from backend.label_studio.client import Client

PAGE = 900  # tasks of a request; on SQLite, Label Studio fails to look up the files of 1,000 uploaded ones at once
ANNOTATION_CHUNK = 25
CHUNK = 200  # task ids in the address of a request, which servers limit to some kilobytes
TASK_FIELDS = "id,data,updated_at,total_annotations,cancelled_annotations"
# Label Studio also applies `include` to the annotations inside a task
ANNOTATION_FIELDS = (
    "id,annotations,predictions,result,created_at,updated_at,was_cancelled,ground_truth,lead_time,completed_by,"
    "parent_prediction,parent_annotation"
)


@dataclass(frozen=True)
class TaskRow:
    """One task in the listing; `updated_at` is Label Studio's own text.

    annotated  number of annotations, without skips
    skipped    number of skips
    """

    task: int
    data: Mapping[str, Any]
    updated_at: str
    annotated: int
    skipped: int


@dataclass(frozen=True)
class OtherAnnotation:
    """An annotation of a task besides the one that counts; `skipped`: the annotator pressed Skip."""

    id: int
    created_at: str
    completed_by: int | None
    ground_truth: bool
    skipped: bool


@dataclass(frozen=True)
class Annotation:
    """The annotation that counts for a task: the ground truth, else the latest one that was not cancelled.

    An `unseen` or `copied` one counts only if there is no other.

    shown_version  model version of the prediction it started from; "" if it started empty
    unseen         made by "Create Annotations From Predictions", and not opened by anybody since
    copied         made from another task's annotation by "Propagate annotations", and not opened by anybody since
    created_at     time of the first submission; like `updated_at` in Label Studio's own text
    others         the task's other annotations, oldest first
    predicted      the regions of the task's predictions, by model version; the newest of each
    """

    task: int
    id: int
    updated_at: str
    result: Sequence[Mapping[str, Any]]
    lead_time: float | None
    completed_by: int | None
    shown_version: str
    created_at: str = ""
    ground_truth: bool = False
    unseen: bool = False
    copied: bool = False
    others: tuple[OtherAnnotation, ...] = ()
    predicted: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Changes with every edit."""
        return f"{self.id}@{self.updated_at}"


@dataclass(frozen=True)
class ProjectPage:
    """The fields of `GET /api/projects/P` that we use.

    annotations, skips  their numbers over all tasks
    ignores_skipped     a skipped task is served to nobody again
    """

    title: str
    parsed_config: Mapping[str, Any]
    model_version: str
    sampling: str
    show_predictions: bool
    tasks: int
    maximum_annotations: int = 1
    annotations: int = 0
    skips: int = 0
    label_config: str = ""
    ignores_skipped: bool = False

    def masks_config(self, project: int, image: str = "") -> LabelConfig:
        """`LabelConfig.from_parsed` of this page; `image` is the setting of that name. Raises NotSegmentable."""
        return LabelConfig.from_parsed(self.parsed_config, project, image=image, smart=smart_tags(self.label_config))


def read_config(text: Any, project: int, image: str = "") -> LabelConfig:
    """`ProjectPage.masks_config` of the text of a label config. Raises NotSegmentable, also for invalid text."""
    from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config

    try:
        if "<!ENTITY" in text:  # no label config has one, and a few of them can fill the memory
            raise ValueError
        parsed, smart = parse_config(text), smart_tags(text)  # type: ignore[no-untyped-call]
    except Exception as error:  # many types: of the parser, and KeyError of tags without a name
        raise NotSegmentable(
            f"project {project}: the label config cannot be read ({type(error).__name__}). Correct it in Settings > "
            "Labeling Interface > Code."
        ) from error
    return LabelConfig.from_parsed(parsed, project, image=image, smart=smart)


def _select_annotation(annotations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    valid = [a for a in annotations if not a.get("was_cancelled")]
    return max(
        valid, key=lambda a: (bool(a.get("ground_truth")), not _unopened(a), a["updated_at"], a["id"]), default=None
    )


def _unopened(annotation: Mapping[str, Any]) -> bool:
    """Whether Label Studio copied it from a prediction or another task, and nobody has pressed Update since."""
    return annotation.get("lead_time") is None and any(
        annotation.get(key) is not None for key in ("parent_prediction", "parent_annotation")
    )


def _user_id(annotation: Mapping[str, Any]) -> int | None:
    user = annotation.get("completed_by")
    number = user.get("id") if isinstance(user, Mapping) else user
    return None if number is None else int(number)


def filters(*items: tuple[str, str, str, Any]) -> dict[str, Any]:
    names = ("filter", "operator", "type", "value")
    rows = [dict(zip(names, (f"filter:tasks:{i[0]}", *i[1:]), strict=True)) for i in items]
    return {"filters": {"conjunction": "and", "items": rows}}


def _items(*items: tuple[str, str, str, Any]) -> Sequence[Any]:
    found: Sequence[Any] = filters(*items)["filters"]["items"]
    return found


def _task_row(row: Mapping[str, Any]) -> TaskRow:
    return TaskRow(
        task=row["id"],
        data=row.get("data") or {},
        updated_at=row["updated_at"],
        annotated=int(row.get("total_annotations") or 0),
        skipped=int(row.get("cancelled_annotations") or 0),
    )


class Listing(Client):
    """Read access to projects and tasks."""

    def project(self, project: int) -> ProjectPage:
        page = self._read(f"/api/projects/{project}/", ("id", "title"))
        return ProjectPage(
            title=page.get("title") or "",
            parsed_config=page.get("parsed_label_config") or {},
            model_version=page.get("model_version") or "",
            sampling=page.get("sampling") or "",
            show_predictions=bool(page.get("show_collab_predictions")),
            tasks=int(page.get("task_number") or 0),
            maximum_annotations=int(page.get("maximum_annotations") or 1),
            annotations=int(page.get("total_annotations_number") or 0),
            skips=int(page.get("skipped_annotations_number") or 0),
            label_config=page.get("label_config") or "",
            ignores_skipped=page.get("skip_queue") == "IGNORE_SKIPPED",
        )

    def _pages(
        self,
        project: int,
        include: str,
        items: Sequence[Any] = (),
        size: int | None = None,
        order: str = "tasks:id",
        page: int = 1,
        **more: Any,
    ) -> Iterator[Any]:
        """The answers with the tasks that match, by ascending id, which `include` must contain.

        Each request asks for ids above the last one. With page numbers, a task that is deleted meanwhile would move
        another one onto a page that was already read. With another `order` or `page`, only the first answer is of use.
        """
        last = 0
        while True:
            above = _items(("id", "greater", "Number", last)) if last else ()
            found = {"filters": {"conjunction": "and", "items": [*items, *above]}} if items or above else {}
            params = {
                "project": project,
                "page": page,
                "page_size": size or PAGE,
                "include": include,
                "query": json.dumps({**found, "ordering": [order]}),
                **more,
            }
            answer = self._read("/api/tasks", ("tasks", "total"), params)
            yield answer
            # Label Studio may be configured to return fewer than requested
            if len(answer["tasks"]) >= answer["total"] or not answer["tasks"]:
                return
            last = max(row["id"] for row in answer["tasks"])

    def _task_rows(self, project: int, include: str, query: Mapping[str, Any], **more: Any) -> Iterator[Any]:
        """The rows of all tasks that match, by ascending id, which `include` must contain."""
        items = query.get("filters", {}).get("items", ())
        return (row for answer in self._pages(project, include, items, **more) for row in answer["tasks"])

    def each_task(self, project: int) -> Iterator[TaskRow]:
        """All tasks by id, with one page of the listing in memory at a time."""
        return map(_task_row, self._task_rows(project, TASK_FIELDS, {}))

    def changed_tasks(self, project: int, since: str, most: int) -> list[TaskRow] | None:
        """Tasks changed after `since`, an `updated_at` from Label Studio; None if there are more than `most`."""
        rows: list[TaskRow] = []
        for answer in self._pages(project, TASK_FIELDS, _items(("updated_at", "greater", "Datetime", since))):
            if not rows and answer["total"] > most:
                return None
            rows += map(_task_row, answer["tasks"])
        return rows

    def tasks_after(self, project: int, task: int, count: int) -> tuple[list[TaskRow], bool]:
        """The first tasks, at most `count`, with ids above `task`, and whether there are more."""
        items = _items(("id", "greater", "Number", task)) if task else ()
        answer = next(self._pages(project, TASK_FIELDS, items, count))
        return [_task_row(row) for row in answer["tasks"]], 0 < len(answer["tasks"]) < answer["total"]

    def tasks_on_page(self, project: int, page: int, size: int) -> list[TaskRow]:
        """The tasks of one page of the listing by id, from 1 up to the one with the last task."""
        return [_task_row(row) for row in next(self._pages(project, TASK_FIELDS, (), size, page=page))["tasks"]]

    def newest_change(self, project: int) -> str:
        """The newest `updated_at` of all tasks; "" without tasks."""
        rows = next(self._pages(project, "id,updated_at", (), 1, "-tasks:updated_at"))["tasks"]
        return str(rows[0]["updated_at"]) if rows else ""

    def present(self, project: int, tasks: Sequence[int]) -> set[int]:
        """Those of `tasks` that exist."""
        found: set[int] = set()
        for start in range(0, len(tasks), CHUNK):
            query = filters(("id", "in_list", "List", list(tasks[start : start + CHUNK])))
            found.update(row["id"] for row in self._task_rows(project, "id", query))
        return found

    def annotated(self, project: int, tasks: Sequence[int]) -> set[int]:
        """Those of `tasks` that have an annotation, skips not counted."""
        found: set[int] = set()
        for start in range(0, len(tasks), CHUNK):
            query = filters(("id", "in_list", "List", list(tasks[start : start + CHUNK])))
            rows = self._task_rows(project, "id,total_annotations", query)
            found.update(row["id"] for row in rows if row.get("total_annotations"))
        return found

    def annotations(self, project: int, tasks: Sequence[int]) -> Iterator[Annotation | int]:
        """For each of `tasks` the annotation that counts, or the bare task id without one."""
        for start in range(0, len(tasks), ANNOTATION_CHUNK):
            chunk = list(tasks[start : start + ANNOTATION_CHUNK])
            query = filters(("id", "in_list", "List", chunk))
            rows = self._task_rows(project, ANNOTATION_FIELDS, query, fields="all")
            found = {row["id"]: row for row in rows}
            for task in chunk:
                row = found.get(task, {})
                best = _select_annotation(row.get("annotations") or ())
                if best is None:
                    yield task
                    continue
                predictions = sorted(row.get("predictions") or (), key=lambda p: int(p["id"]))
                versions = {p["id"]: p.get("model_version") or "" for p in predictions}
                rest = sorted((a for a in row["annotations"] if a is not best), key=lambda a: int(a["id"]))
                yield Annotation(
                    task=task,
                    id=best["id"],
                    updated_at=best["updated_at"],
                    result=best.get("result") or (),
                    lead_time=best.get("lead_time"),
                    completed_by=_user_id(best),
                    shown_version=versions.get(best.get("parent_prediction") or 0, ""),
                    created_at=best.get("created_at") or "",
                    ground_truth=bool(best.get("ground_truth")),
                    unseen=best.get("parent_prediction") is not None and best.get("lead_time") is None,
                    copied=best.get("parent_annotation") is not None and best.get("lead_time") is None,
                    others=tuple(
                        OtherAnnotation(
                            id=a["id"],
                            created_at=a.get("created_at") or "",
                            completed_by=_user_id(a),
                            ground_truth=bool(a.get("ground_truth")),
                            skipped=bool(a.get("was_cancelled")),
                        )
                        for a in rest
                    ),
                    predicted={versions[p["id"]]: p.get("result") or () for p in predictions},
                )

    def predicted_regions(
        self, project: int, tasks: Sequence[int], versions: Sequence[str]
    ) -> Iterator[tuple[int, Sequence[Mapping[str, Any]] | None]]:
        """For each of `tasks` the regions of its newest prediction from one of `versions`; None if it has none."""
        for start in range(0, len(tasks), ANNOTATION_CHUNK):
            chunk = list(tasks[start : start + ANNOTATION_CHUNK])
            query = filters(("id", "in_list", "List", chunk))
            found = {row["id"]: row for row in self._task_rows(project, "id,predictions", query, fields="all")}
            for task in chunk:
                shown = [p for p in found.get(task, {}).get("predictions") or () if p.get("model_version") in versions]
                newest = max(shown, key=lambda p: int(p["id"]), default=None)
                yield task, None if newest is None else newest.get("result") or ()

    def user_names(self) -> dict[int, str]:
        """Name, or else e-mail address, of every user visible to this token, by user id."""
        rows = self._read("/api/users/", list | dict)
        rows = rows.get("results", []) if isinstance(rows, Mapping) else rows
        named = {u["id"]: f"{u.get('first_name') or ''} {u.get('last_name') or ''}".strip() for u in rows}
        return {u["id"]: named[u["id"]] or str(u.get("email") or u["id"]) for u in rows}

    def tasks_with_drafts(self, project: int) -> list[int]:
        """Tasks with a draft that was not submitted. Label Studio does not report whose."""
        query = filters(("draft_exists", "equal", "Boolean", True))
        return [row["id"] for row in self._task_rows(project, "id", query)]

    def task_count(self, project: int) -> int:
        """Number of tasks in the project; the cheapest request of all."""
        page = self._read(f"/api/projects/{project}/", ("task_number",), {"include": "id,task_number"})
        return int(page["task_number"])

    def task_data(self, project: int, after: int = 0) -> Iterator[tuple[int, Mapping[str, Any], int]]:
        """Id, data, and number of annotations and skips of every task with an id above `after`, ascending."""
        query = filters(("id", "greater", "Number", after)) if after else {}
        include = "id,data,total_annotations,cancelled_annotations"
        for row in self._task_rows(project, include, query):
            touched = int(row.get("total_annotations") or 0) + int(row.get("cancelled_annotations") or 0)
            yield int(row["id"]), row.get("data") or {}, touched
