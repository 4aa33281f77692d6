"""`scanqueue disconnect`."""

from __future__ import annotations

from typing import Annotated

import typer

from backend.commands.shared import DataDir, ProjectId, Wait, open_locking_records, say, settings_with_records


def disconnect(
    project: ProjectId,
    forget: Annotated[bool, typer.Option("--forget", help="Also delete the project's records here.")] = False,
    wait: Wait = 600.0,
    data_dir: DataDir = None,
) -> None:
    """Leave a project and restore its settings in Label Studio.

    Removes the backend, the webhook and the tab as well.
    """
    from backend.app import make_studio
    from backend.loop.disconnecting import disconnect as leave

    settings = settings_with_records(data_dir)
    store = open_locking_records(data_dir)
    leave(make_studio(settings), store, settings, project, forget=forget, wait=wait, say=say)
