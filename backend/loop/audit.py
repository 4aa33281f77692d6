"""What people change about a project, each written down with who did it and when, so that it can be taken back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from backend.errors import BadSetting
from backend.loop.project_settings import project_settings
from backend.records.audit import Change
from backend.records.scans import PRIORITY_EXCLUDED, PRIORITY_NEXT
from backend.records.store import Store, activate_model
from backend.settings import ProjectSettings

PRIORITIES = {"next": PRIORITY_NEXT, "out": PRIORITY_EXCLUDED, "none": 0}
PRIORITY_TEXTS = {
    PRIORITY_NEXT: "to be labelled next",
    PRIORITY_EXCLUDED: "left out of the order",
    0: "back in the usual order",
}
UNDOABLE = ("settings", "wishes", "activate")


def set_overrides(store: Store, project: int, user: str, given: Mapping[str, Any]) -> int:
    """Set settings of a project; None takes one back to what Label Studio says. Returns the number of the change.

    Raises BadSetting for a name or a value that cannot be used, and then changes nothing.
    """
    return _put_overrides(store, project, user, given, None)


def _overrides(store: Store, project: int) -> dict[str, Any]:
    row = store.project(project)
    found: dict[str, Any] = json.loads(row["overrides"] or "{}") if row else {}
    return found


def _put_overrides(store: Store, project: int, user: str, given: Mapping[str, Any], undoes: int | None) -> int:
    """Set these, and None takes one away."""
    if unknown := given.keys() - set(ProjectSettings.__dataclass_fields__):
        ProjectSettings.checked(dict.fromkeys(unknown))  # says so
    row = store.project(project)
    before = _overrides(store, project)
    after = {k: v for k, v in {**before, **given}.items() if v is not None}
    project_settings(row["extra_params"] if row else "", after)
    moved = sorted(k for k in given if before.get(k) != after.get(k))
    if not moved:
        raise BadSetting("Nothing was changed: these settings are in force already.")
    what = ", ".join(f"{k}: {_spelled(after.get(k))}" for k in moved)
    old, new = ({k: found.get(k) for k in moved} for found in (before, after))
    return store.add_change(project, Change(user, "settings", what, old, new, undoes), overrides=new)


def _spelled(value: Any) -> str:
    return "back to what Label Studio says" if value is None else str(value)


def set_priorities(store: Store, project: int, user: str, tasks: Sequence[int], priority: str) -> int:
    """Have scans labelled "next", left "out", or in the usual order again ("none"). Returns the change's number.

    Raises BadSetting when the wish is none of these or a task is not known; nothing is changed then.
    """
    if priority not in PRIORITIES:
        raise BadSetting(f"wish is {priority!r}; it must be one of {', '.join(PRIORITIES)}.")
    if not tasks:
        raise BadSetting("tasks is empty; name at least one scan.")
    known = dict(store.columns(project, "task", "priority"))
    if strange := sorted(set(tasks) - known.keys()):
        raise BadSetting(f"project {project} has no task {strange[0]}.")
    return _put_priorities(store, project, user, known, dict.fromkeys(tasks, PRIORITIES[priority]), None)


def _put_priorities(
    store: Store, project: int, user: str, known: Mapping[int, int], wanted: Mapping[int, int], undoes: int | None
) -> int:
    moved = {task: priority for task, priority in wanted.items() if task in known and known[task] != priority}
    if not moved:
        raise BadSetting("Nothing was changed: it is so already.")
    many: dict[int, int] = {}
    for priority in moved.values():
        many[priority] = many.get(priority, 0) + 1
    what = ", ".join(
        f"{n} scan{'s' if n > 1 else ''} {PRIORITY_TEXTS[priority]}"
        for priority, n in sorted(many.items(), reverse=True)
    )
    before = {str(task): known[task] for task in moved}
    after = {str(task): priority for task, priority in moved.items()}
    return store.add_change(project, Change(user, "wishes", what, before, after, undoes), priorities=moved)


def activate(store: Store, project: int, user: str, version: str) -> int:
    """`activate_model`, written down. Raises BadSetting as that does."""
    row = store.project(project)
    before = row["active"] if row else ""
    if version and version == before:
        raise BadSetting(f"Nothing was changed: {version} is active already.")
    change = Change(user, "activate", f"{version} made active", before, version)
    return activate_model(store, project, version, change)


def ask(store: Store, project: int, user: str) -> int:
    """Have a model trained now."""
    store.request_training(project)
    return store.add_change(project, Change(user, "train", "training asked for"))


def retry(store: Store, project: int, user: str, task: int) -> int:
    """Have a scan that has a problem, or its annotation, read again at once."""
    scan = store.scan(project, task)
    if scan is None:
        raise BadSetting(f"project {project} has no task {task}.")
    label = next((r for r in store.labels(project) if r["task"] == task), None)
    if not scan["problem"] and not (label and (label["problem"] or label["remark"])):
        raise BadSetting(f"Task {task} has no problem any more.")
    store.retry(project, task)
    return store.add_change(project, Change(user, "retry", f"task {task} to be read again"))


def undo(store: Store, project: int, user: str, number: int) -> int:
    """Take a change back. What somebody changed again since stays as they left it. Returns the new change's number.

    Raises BadSetting when there is no such change, or nothing of it is left to take back.
    """
    found = store.change(project, number)
    if found is None:
        raise BadSetting(f"project {project} has no change {number}.")
    if found["undone"]:
        raise BadSetting(f"Change {number} ({found['what']}) was taken back already.")
    before, after = found["before"], found["after"]
    if found["kind"] == "settings":
        now = _overrides(store, project)
        back = {k: before[k] for k in before if now.get(k) == after[k]}
        if not back:
            raise BadSetting(f"What change {number} set ({found['what']}) was changed again since, and stays.")
        return _put_overrides(store, project, user, back, number)
    if found["kind"] == "wishes":
        known = dict(store.columns(project, "task", "priority"))
        back = {int(t): priority for t, priority in before.items() if known.get(int(t)) == after[t]}
        if not back:
            raise BadSetting(f"What change {number} wished ({found['what']}) was changed again since, and stays.")
        return _put_priorities(store, project, user, known, back, number)
    if found["kind"] == "activate" and before:
        row = store.project(project)
        if row is None or row["active"] != after:
            raise BadSetting(f"{after} is not active any more, so there is nothing to take back.")
        change = Change(user, "activate", f"{before} made active again", after, before, number)
        return activate_model(store, project, before, change)
    raise BadSetting(f"Change {number} ({found['what']}) cannot be taken back.")


def listed(store: Store, project: int) -> list[dict[str, Any]]:
    """Newest first: {change, at, user, kind, what, undone, undoable}."""
    first = {a["change"] for a in store.activations(project) if not a["before"]}  # there is nothing to go back to
    return [
        {
            "change": c["n"],
            "at": c["at"],
            "user": c["user"],
            "kind": c["kind"],
            "what": c["what"],
            "undone": bool(c["undone"]),
            "undoable": not c["undone"] and c["kind"] in UNDOABLE and c["n"] not in first,
        }
        for c in store.changes(project)
    ]
