"""Changes that people make to a project, recorded with their author and time so that they can be undone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from backend.errors import BadSetting
from backend.label_config import LabelConfig, Renames
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
UNDOABLE = ("settings", "wishes", "activate", "labels")


def set_overrides(store: Store, project: int, user: str, given: Mapping[str, Any]) -> int:
    """Override settings of a project; None removes an override. Returns the number of the change.

    Raises BadSetting for an unknown name or an invalid value, without changing anything.
    """
    return _put_overrides(store, project, user, given, None)


def _overrides(store: Store, project: int) -> dict[str, Any]:
    row = store.project(project)
    found: dict[str, Any] = json.loads(row["overrides"] or "{}") if row else {}
    return found


def _put_overrides(store: Store, project: int, user: str, given: Mapping[str, Any], undoes: int | None) -> int:
    """Set these overrides; None removes one."""
    if unknown := given.keys() - set(ProjectSettings.__dataclass_fields__):
        ProjectSettings.checked(dict.fromkeys(unknown))  # raises
    row = store.project(project)
    before = _overrides(store, project)
    after = {k: v for k, v in {**before, **given}.items() if v is not None}
    project_settings(row["extra_params"] if row else "", after)
    changed = sorted(k for k in given if before.get(k) != after.get(k))
    if not changed:
        raise BadSetting("Nothing was changed: these settings already apply.")
    what = ", ".join(f"{k}: {_spelled(after.get(k))}" for k in changed)
    old, new = ({k: found.get(k) for k in changed} for found in (before, after))
    return store.add_change(project, Change(user, "settings", what, old, new, undoes), overrides=new)


def _spelled(value: Any) -> str:
    return "back to the setting in Label Studio" if value is None else str(value)


def set_priorities(store: Store, project: int, user: str, tasks: Sequence[int], priority: str) -> int:
    """Move scans "next", leave them "out", or restore the usual order ("none"). Returns the change's number.

    Raises BadSetting for an invalid priority or an unknown task, without changing anything.
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
        raise BadSetting("Nothing was changed: the scans already have this priority.")
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


def rename_labels(store: Store, project: int, user: str, given: Mapping[str, Any]) -> int:
    """Say what became of labels that the label config no longer has. Returns the number of the change.

    given  the present name of each; "" if it is no longer used, so that its regions are left out; None takes an answer
           back

    Raises BadSetting for a label that the config has or never had, and for a new name that it does not have.
    """
    row = store.project(project)
    config = LabelConfig.from_json(row["config"]) if row else None
    labels = config.labels if config else ()
    renames = store.renames(project)
    gone = [label for label in renames.seen if label not in labels]
    for old, new in given.items():
        if old not in gone:
            raise BadSetting(f"{old!r} is not a label that the label config lost. Lost: {', '.join(gone) or 'none'}.")
        if new is not None and new != "" and new not in labels:
            raise BadSetting(f"{new!r} is not a label of the label config. Its labels: {', '.join(labels)}.")
    return _put_renames(store, project, user, renames, given, None)


def _put_renames(
    store: Store, project: int, user: str, renames: Renames, given: Mapping[str, Any], undoes: int | None
) -> int:
    before = {old: renames.now.get(old) for old in given}
    changed = {old: new for old, new in given.items() if before[old] != new}
    if not changed:
        raise BadSetting("Nothing was changed: these labels already have these names.")
    now = {old: new for old, new in {**renames.now, **changed}.items() if new is not None}
    texts = {None: "unanswered again", "": "no longer used"}
    what = ", ".join(f"label {old}: {texts.get(new, f'now called {new}')}" for old, new in sorted(changed.items()))
    change = Change(user, "labels", what, {old: before[old] for old in changed}, changed, undoes)
    return store.add_change(project, change, renames=Renames(renames.seen, now))


def activate(store: Store, project: int, user: str, version: str) -> int:
    """`activate_model`, recorded as a change. Raises BadSetting."""
    row = store.project(project)
    before = row["active"] if row else ""
    if version and version == before:
        raise BadSetting(f"Nothing was changed: {version} is already active.")
    change = Change(user, "activate", f"{version} activated", before, version)
    return activate_model(store, project, version, change)


def request_training(store: Store, project: int, user: str) -> int:
    """Request training."""
    store.request_training(project)
    return store.add_change(project, Change(user, "train", "training requested"))


def retry(store: Store, project: int, user: str, task: int | None) -> int:
    """Read a scan with a problem, or its annotation, again at once; None: all of them.

    Raises BadSetting when there is no problem.
    """
    labels = {r["task"] for r in store.labels(project) if r["problem"] or r["remark"]}
    if task is None:
        number = len(labels | {t for t, _ in store.problems(project)})
        if not number:
            raise BadSetting("No scan has a problem any more.")
        what = f"{number} scan{'s' if number > 1 else ''} to be read again"
    else:
        scan = store.scan(project, task)
        if scan is None:
            raise BadSetting(f"project {project} has no task {task}.")
        if not scan["problem"] and task not in labels:
            raise BadSetting(f"Task {task} no longer has a problem.")
        what = f"task {task} to be read again"
    store.retry(project, task)
    return store.add_change(project, Change(user, "retry", what))


def undo(store: Store, project: int, user: str, number: int) -> int:
    """Undo a change, except for values changed again later. Returns the number of the new change.

    Raises BadSetting when there is no such change or nothing left to undo.
    """
    found = store.change(project, number)
    if found is None:
        raise BadSetting(f"project {project} has no change {number}.")
    if found["undone"]:
        raise BadSetting(f"Change {number} ({found['what']}) is already undone.")
    before, after = found["before"], found["after"]
    if found["kind"] == "settings":
        now = _overrides(store, project)
        back = {k: before[k] for k in before if now.get(k) == after[k]}
        if not back:
            raise BadSetting(
                f"Change {number} ({found['what']}) cannot be undone: its settings were changed again later."
            )
        return _put_overrides(store, project, user, back, number)
    if found["kind"] == "wishes":
        known = dict(store.columns(project, "task", "priority"))
        back = {int(t): priority for t, priority in before.items() if known.get(int(t)) == after[t]}
        if not back:
            raise BadSetting(
                f"Change {number} ({found['what']}) cannot be undone: its priorities were changed again later."
            )
        return _put_priorities(store, project, user, known, back, number)
    if found["kind"] == "labels":
        renames = store.renames(project)
        back = {old: before[old] for old in before if renames.now.get(old) == after[old]}
        if not back:
            raise BadSetting(
                f"Change {number} ({found['what']}) cannot be undone: its labels were changed again later."
            )
        return _put_renames(store, project, user, renames, back, number)
    if found["kind"] == "activate" and before:
        row = store.project(project)
        if row is None or row["active"] != after:
            raise BadSetting(f"{after} is no longer active, so there is nothing to undo.")
        change = Change(user, "activate", f"{before} activated again", after, before, number)
        return activate_model(store, project, before, change)
    raise BadSetting(f"Change {number} ({found['what']}) cannot be undone.")


def listed(store: Store, project: int) -> list[dict[str, Any]]:
    """The changes, newest first: {change, at, user, kind, what, undone, undoable}."""
    first = {
        a["change"] for a in store.activations(project) if not a["before"]
    }  # there is no earlier model to return to
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
