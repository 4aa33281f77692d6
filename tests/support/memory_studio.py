"""An in-memory Label Studio with one project: the `Studio` interface on one side, an annotator on the other.

It behaves like Label Studio 1.23 where the loop depends on it, and `test_studio.py` verifies that:
imports are never de-duplicated, bad rows are dropped, the `updated_at` of a task moves with its annotations
and not with imports, a version can be served only once it has a prediction, and "Label All Tasks" gives the
lowest score of the served version first, then anything that is left.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config

from backend.errors import ProjectGone, StudioRefused, UnreadableScan
from backend.facts import SAMPLING, SECRET_HEADER
from backend.label_studio.listing import Annotation, OtherAnnotation, ProjectPage, TaskRow
from backend.label_studio.webhooks import webhook_advice

DRAWN = {"BrushLabels": "brushlabels", "PolygonLabels": "polygonlabels"}
SECOND = timedelta(seconds=1)


class MemoryStudio:
    """One project. Its clock advances by one second with each action of a person and stands still otherwise.

    url     its pretended address
    writes  the name of every write from our side, in order
    """

    def __init__(self, config: str, project: int = 1) -> None:
        self.url = "http://memory.invalid/"
        self.number = project
        self.title = "memory"
        self.label_config = config
        self.parsed: dict[str, Any] = parse_config(config)
        self.model_version = ""
        self.sampling = "Sequential sampling"
        self.show_predictions = True
        self.ignores_skipped = False
        self.views: list[str] = []
        self.hooks: list[dict[str, Any]] = []
        self.connected: list[dict[str, Any]] = [{"id": 1, "title": "scanqueue", "url": "http://127.0.0.1:9090"}]
        self.images: dict[str, bytes] = {}
        self.predictions: list[dict[str, Any]] = []
        self.writes: list[str] = []
        self.drafts: set[int] = set()  # tasks that somebody has begun
        self.asked = 0  # requests for the ML backends
        self._tasks: dict[int, dict[str, Any]] = {}
        self._annotations: dict[int, dict[str, Any]] = {}
        self._locks: dict[int, str] = {}
        self._numbers = itertools.count(1)
        self._now = datetime(2026, 1, 1, tzinfo=UTC)

    # -- actions of people --------------------------------------------------------------------

    def add_scans(self, images: Sequence[bytes]) -> list[int]:
        """Import images; returns the new tasks."""
        added = []
        for data in images:
            task = next(self._numbers)
            reference = f"/data/upload/{self.number}/{task:08x}-scan.png"
            self.images[reference] = data
            self._tasks[task] = {"data": {"image": reference}}
            self._touch(task)
            added.append(task)
        return added

    def set_data(self, task: int, data: Mapping[str, Any]) -> None:
        self._tasks[task]["data"] = dict(data)
        self._touch(task)

    def reference(self, task: int) -> str:
        return str(self._tasks[task]["data"]["image"])

    def next_task(self, user: str = "reader") -> int | None:
        """ "Label All Tasks": the task held already, else the lowest score, else any; None when all are labelled."""
        done = {
            a["task"]
            for a in self._annotations.values()
            if not a["was_cancelled"] or a["user"] == user or self.ignores_skipped
        }
        waiting = [t for t in self._tasks if t not in done]
        held = [t for t in waiting if self._locks.get(t) == user]
        free = [t for t in waiting if t not in self._locks]
        if held:
            return held[0]
        if not free:
            return None
        chosen = free[0]
        if self.sampling == SAMPLING:
            scores: dict[int, float] = {}
            for row in self.predictions:
                if row["model_version"] == self.model_version and row["task"] in free:
                    scores[row["task"]] = min(row["score"], scores.get(row["task"], 1.0))
            rest = random.Random(len(waiting)).choice(free)
            chosen = min(scores, key=lambda t: (scores[t], t)) if scores else rest
        self._locks[chosen] = user
        return chosen

    def annotate(
        self, task: int, result: Sequence[Mapping[str, Any]], *, shown: int | None = None, ground_truth: bool = False
    ) -> int:
        """Submit; `shown` is the prediction that the annotation started from."""
        return self._annotate(task, result, shown, "reader", ground_truth=ground_truth, was_cancelled=False)

    def annotate_by_program(self, task: int, result: Sequence[Mapping[str, Any]]) -> int:
        """Add an annotation through the API, without a time spent on it."""
        made = self.annotate(task, result)
        self._annotations[made]["lead_time"] = None
        return made

    def annotations_from_predictions(self, predictions: Sequence[Mapping[str, Any]]) -> list[int]:
        """ "Create Annotations From Predictions": like submitting what is shown, but without a time spent on it."""
        made = [self.annotate(p["task"], p["result"], shown=p["id"]) for p in predictions]
        for annotation in made:
            self._annotations[annotation]["lead_time"] = None
        return made

    def propagate(self, annotation: int, tasks: Sequence[int]) -> None:
        """ "Propagate annotations": Label Studio does not change the tasks' `updated_at`."""
        for task in tasks:
            before = self._tasks[task]["updated_at"]
            copy = self.annotate(task, self._annotations[annotation]["result"])
            self._annotations[copy] |= {"lead_time": None, "parent_annotation": annotation}
            self._tasks[task]["updated_at"] = before

    def skip(self, task: int, user: str = "reader") -> int:
        return self._annotate(task, [], None, user, ground_truth=False, was_cancelled=True)

    def edit(self, annotation: int, result: Sequence[Mapping[str, Any]]) -> None:
        found = self._annotations[annotation]
        found |= {"result": list(result), "updated_at": self._touch(found["task"]), "lead_time": 5.0}

    def delete(self, annotation: int) -> None:
        self._touch(self._annotations.pop(annotation)["task"])

    def delete_tasks(self, tasks: Sequence[int]) -> None:
        for task in tasks:
            del self._tasks[task]
        self.predictions = [p for p in self.predictions if p["task"] in self._tasks]
        self._annotations = {i: a for i, a in self._annotations.items() if a["task"] in self._tasks}

    def change_config(self, config: str) -> None:
        self.label_config, self.parsed = config, parse_config(config)

    def prediction_of(self, task: int, version: str) -> int:
        """The id of the newest prediction of `version`."""
        return max(p["id"] for p in self.predictions if p["task"] == task and p["model_version"] == version)

    def add_webhook(self, url: str, headers: Mapping[str, str]) -> None:
        """Add a webhook as Label Studio does when a backend is connected."""
        hook = {"project": self.number, "url": url, "headers": dict(headers), "is_active": True, "actions": []}
        self.hooks.append(hook | {"send_payload": True, "send_for_all_actions": True})

    def _annotate(
        self, task: int, result: Sequence[Mapping[str, Any]], shown: int | None, user: str, **flags: bool
    ) -> int:
        number = next(self._numbers)
        at = self._touch(task)
        row = {"id": number, "task": task, "result": list(result), "parent_prediction": shown, "user": user}
        row |= {"lead_time": 5.0, "parent_annotation": None}
        self._annotations[number] = row | {"created_at": at, "updated_at": at} | flags
        self._locks.pop(task, None)
        return number

    def _touch(self, task: int) -> str:
        self._now += SECOND
        self._tasks[task]["updated_at"] = self._now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return str(self._tasks[task]["updated_at"])

    # -- backend.label_studio.studio.Studio: reading --------------------------------------------------------

    def project(self, project: int) -> ProjectPage:
        if project != self.number:
            raise ProjectGone("Label Studio has no such project for this token.")
        return ProjectPage(
            title=self.title,
            parsed_config=self.parsed,
            label_config=self.label_config,
            model_version=self.model_version,
            sampling=self.sampling,
            show_predictions=self.show_predictions,
            tasks=len(self._tasks),
            annotations=sum(1 for a in self._annotations.values() if not a["was_cancelled"]),
            skips=sum(1 for a in self._annotations.values() if a["was_cancelled"]),
            ignores_skipped=self.ignores_skipped,
        )

    def each_task(self, project: int) -> Iterator[TaskRow]:
        for task, row in list(self._tasks.items()):
            cancelled = [a["was_cancelled"] for a in self._annotations.values() if a["task"] == task]
            yield TaskRow(task, row["data"], row["updated_at"], cancelled.count(False), cancelled.count(True))

    def changed_tasks(self, project: int, since: str, most: int) -> list[TaskRow] | None:
        rows = [row for row in self.each_task(project) if _moment(row.updated_at) > _moment(since)]
        return rows if len(rows) <= most else None

    def tasks_after(self, project: int, task: int, count: int) -> tuple[list[TaskRow], bool]:
        rows = [row for row in self.each_task(project) if row.task > task]
        return rows[:count], len(rows) > count

    def tasks_on_page(self, project: int, page: int, size: int) -> list[TaskRow]:
        return list(self.each_task(project))[(page - 1) * size : page * size]

    def newest_change(self, project: int) -> str:
        return max((row["updated_at"] for row in self._tasks.values()), key=_moment, default="")

    def present(self, project: int, tasks: Sequence[int]) -> set[int]:
        return set(tasks) & self._tasks.keys()

    def task_count(self, project: int) -> int:
        return len(self._tasks)

    def task_ids(self, project: int) -> set[int]:
        return set(self._tasks)

    def annotations(self, project: int, tasks: Sequence[int]) -> Iterator[Annotation | int]:
        versions = {p["id"]: p["model_version"] for p in self.predictions}
        for task in tasks:
            valid = [a for a in self._annotations.values() if a["task"] == task and not a["was_cancelled"]]
            if not valid:
                yield task
                continue
            best = max(valid, key=lambda a: (a["ground_truth"], not _unopened(a), a["updated_at"], a["id"]))
            shown = versions.get(best["parent_prediction"], "")
            others = tuple(
                OtherAnnotation(a["id"], a["created_at"], 1, a["ground_truth"], a["was_cancelled"])
                for a in self._annotations.values()
                if a["task"] == task and a is not best
            )
            unseen, copied = (
                best["lead_time"] is None and best[key] is not None
                for key in ("parent_prediction", "parent_annotation")
            )
            predicted = {p["model_version"]: p["result"] for p in self.predictions if p["task"] == task}
            about = best["created_at"], best["ground_truth"], unseen, copied, others, predicted
            yield Annotation(task, best["id"], best["updated_at"], best["result"], best["lead_time"], 1, shown, *about)

    def predicted_regions(
        self, project: int, tasks: Sequence[int], versions: Sequence[str]
    ) -> Iterator[tuple[int, Sequence[Mapping[str, Any]] | None]]:
        for task in tasks:
            found = [p for p in self.predictions if p["task"] == task and p["model_version"] in versions]
            yield task, max(found, key=lambda p: p["id"])["result"] if found else None

    def user_names(self) -> dict[int, str]:
        return {1: "Rita Reader"}

    def image(self, reference: str) -> bytes:
        if reference not in self.images:
            raise UnreadableScan(f"its image {reference!r} is not available: the server answered 404.")
        return self.images[reference]

    # -- backend.label_studio.studio.Studio: the queue ------------------------------------------------------

    def model_versions(self, project: int) -> dict[str, int]:
        return dict(Counter(p["model_version"] for p in self.predictions))

    def published(self, project: int, version: str, counts: Mapping[str, int] | None = None) -> dict[int, int]:
        return dict(Counter(p["task"] for p in self.predictions if p["model_version"] == version))

    def remove_duplicate_predictions(self, project: int, version: str) -> int:
        self.writes.append("remove_duplicate_predictions")
        seen: set[int] = set()
        kept = []
        for row in self.predictions:
            if row["model_version"] != version or row["task"] not in seen:
                kept.append(row)
            if row["model_version"] == version:
                seen.add(row["task"])
        removed = len(self.predictions) - len(kept)
        self.predictions = kept
        return removed

    def import_predictions(self, project: int, rows: Sequence[Mapping[str, Any]], tasks: int = 0) -> None:
        self.writes.append("import_predictions")
        if any(row["task"] not in self._tasks for row in rows):
            raise StudioRefused("Label Studio answered 400 to the import: a task does not exist. Nothing was stored.")
        good = [row for row in rows if 0 <= row["score"] <= 1 and all(map(self._fits, row["result"]))]
        self.predictions += [{"id": next(self._numbers), **row} for row in good]
        if len(good) != len(rows):
            raise StudioRefused(f"Label Studio stored {len(good)} of {len(rows)} predictions and gave no reason.")

    def replace_results(
        self,
        project: int,
        version: str,
        results: Mapping[int, Sequence[Mapping[str, Any]]],
        queue: Sequence[int],
        held: int,
    ) -> set[int]:
        self.writes.append("replace_results")
        labelled = {a["task"] for a in self._annotations.values() if not a["was_cancelled"]}
        free = [task for task in queue if task not in labelled and task not in self.drafts][held:]
        done = set()
        for row in self.predictions:
            if row["model_version"] == version and row["task"] in results and row["task"] in free:
                assert all(map(self._fits, results[row["task"]]))
                row["result"] = list(results[row["task"]])
                done.add(row["task"])
        return done

    def _fits(self, region: Mapping[str, Any]) -> bool:
        tag = self.parsed.get(region["from_name"])
        if tag is None or DRAWN[tag["type"]] != region["type"] or region["to_name"] not in tag["to_name"]:
            return False
        return set(region["value"][region["type"]]) <= set(tag["labels"])

    def show_round(self, project: int, version: str) -> None:
        self.writes.append("show_round")
        titles = [b["title"] for b in self.connected]
        if version not in titles and all(p["model_version"] != version for p in self.predictions):
            raise StudioRefused(f"Label Studio answered 400: the project has no predictions of {version!r}.")
        self.sampling, self.model_version, self.show_predictions = SAMPLING, version, True

    def serve(self, project: int, *, sampling: str, model_version: str, show_predictions: bool) -> None:
        self.writes.append("serve")
        known = {"", *(b["title"] for b in self.connected), *(p["model_version"] for p in self.predictions)}
        if model_version not in known:
            raise StudioRefused("Label Studio answered 400: Model version doesn't exist.")
        self.sampling, self.model_version, self.show_predictions = sampling, model_version, show_predictions

    def remove_view(self, project: int) -> int:
        self.writes.append("remove_view")
        before = len(self.views)
        self.views = [view for view in self.views if view != "scanqueue"]
        return before - len(self.views)

    def has_view(self, project: int) -> bool:
        return "scanqueue" in self.views

    def add_view(self, project: int) -> None:
        self.writes.append("add_view")
        if not self.views:
            self.views.append("Default")
        self.views.append("scanqueue")

    def webhooks(self, project: int) -> list[dict[str, Any]]:
        return self.hooks

    def has_webhook(self, project: int, url: str, secret: str) -> bool:
        needed = ("is_active", "send_for_all_actions", "send_payload")
        return any(
            hook["url"] == url and all(hook[n] for n in needed) and hook["headers"].get(SECRET_HEADER) == secret
            for hook in self.hooks
        )

    def set_webhook(self, project: int, url: str, secret: str) -> None:
        self.writes.append("set_webhook")
        host = urlsplit(url).hostname or ""
        if "." not in host and host != "localhost":
            raise StudioRefused(f"The webhook to {url} could not be set up. {webhook_advice(url)}")
        if all(hook["url"] != url for hook in self.hooks):
            self.add_webhook(url, {})
        hook = next(hook for hook in self.hooks if hook["url"] == url)
        hook |= {"is_active": True, "send_payload": True, "send_for_all_actions": True}
        hook["headers"] = {**hook["headers"], SECRET_HEADER: secret}

    def remove_webhooks(self, project: int, urls: Collection[str], secret: str) -> int:
        before = len(self.hooks)
        self.hooks = [h for h in self.hooks if h["url"] not in urls and h["headers"].get(SECRET_HEADER) != secret]
        return before - len(self.hooks)

    def backends(self, project: int) -> list[dict[str, Any]]:
        self.asked += 1
        return self.connected

    def remove_backend(self, backend: int) -> None:
        self.writes.append("remove_backend")
        gone = [b["title"] for b in self.connected if b["id"] == backend]
        self.connected = [b for b in self.connected if b["id"] != backend]
        self.model_version = "" if self.model_version in gone else self.model_version


def _unopened(annotation: Mapping[str, Any]) -> bool:
    parents = annotation["parent_prediction"], annotation["parent_annotation"]
    return annotation["lead_time"] is None and parents != (None, None)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
