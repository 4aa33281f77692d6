"""`scanqueue labels list | rename | retire`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from backend.commands.shared import DataDir, ProjectId, console, open_records, say, settings_from_env

Old = Annotated[str, typer.Argument(help="The label's former name, as annotations have it.")]


def labels_list(project: ProjectId, data_dir: DataDir = None) -> None:
    """List the labels of a project, with those that the config lost."""
    from backend.web.status import describe

    store = open_records(data_dir, reading=True)
    store.known_project(project)
    found = describe(store, project) or {}
    table = Table("label", "state")
    for label in found["labels"]:
        table.add_row(label, "in the label config")
    for old, new in store.renames(project).now.items():
        table.add_row(old, f"now called {new}" if new else "no longer used")
    for lost in found["lost_labels"]:
        table.add_row(lost["label"], f"lost; {lost['annotations']} annotations have it")
    console.print(table)


def labels_rename(
    old: Old,
    new: Annotated[str, typer.Argument(help="Its name in the label config now.")],
    project: ProjectId,
    data_dir: DataDir = None,
) -> None:
    """Say that a label has another name now. Its annotations are read again, and work goes on."""
    _answer(project, data_dir, old, new)


def labels_retire(old: Old, project: ProjectId, data_dir: DataDir = None) -> None:
    """Say that a label is no longer used. Its regions are left out of what is learned."""
    _answer(project, data_dir, old, "")


def _answer(project: int, data_dir: DataDir, old: str, new: str) -> None:
    from backend.loop import audit
    from backend.workers.worker import Queue

    settings, store = settings_from_env(data_dir=data_dir), open_records(data_dir)
    store.known_project(project)
    audit.rename_labels(store, project, "command line", {old: new})
    Queue(settings).request(project)
    say(f"{old!r} is {f'now called {new!r}' if new else 'no longer used'} in project {project}.")
