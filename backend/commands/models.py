"""`scanqueue models list | activate`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Column, Table

from backend.commands.shared import AsJson, DataDir, ProjectId, console, open_records, settings_from_env
from backend.commands.status import quality_text
from backend.web import status as project_status


def models_list(project: ProjectId, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the trained models of a project."""
    store = open_records(data_dir, reading=True)
    store.known_project(project)
    found = project_status.model_list(store, project)
    if as_json:
        typer.echo(json.dumps({"models": found}, indent=1))
        return
    if not found:
        console.print(f"Project {project} has no trained model yet.")
        return
    whole = (Column(name, no_wrap=True) for name in ("version", "active", "checkpoint", "labels"))
    table = Table(*whole, "validation")
    for m in found:
        mark = "active" if m["active"] else "" if m["accepted"] else "rejected"
        file = "kept" if m["kept"] else "removed"
        table.add_row(m["version"], mark, file, str(m["trained_on"]), quality_text(m["validation"]))
    console.print(table)
    for m in found:
        if m["remark"]:
            console.print(f"{m['version']}: {m['remark']}", markup=False)


def models_activate(
    version: Annotated[str, typer.Argument(help="For example scanqueue-r2.")],
    project: ProjectId,
    data_dir: DataDir = None,
) -> None:
    """Activate an earlier model. The worker publishes a new round with its masks."""
    from backend.loop import audit
    from backend.workers.worker import Queue

    settings, store = settings_from_env(data_dir=data_dir), open_records(data_dir)
    store.known_project(project)
    audit.activate(store, project, "command line", version)
    Queue(settings).request(project)
    console.print(f"{version} is now active for project {project}. The worker publishes a new round.")
