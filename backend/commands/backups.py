"""`scanqueue backup | restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.commands.shared import DataDir, ProjectId, Wait, open_locking_records, say, settings_from_env

if TYPE_CHECKING:
    from backend.records.backup_format import Summary


def backup(
    file: Annotated[Path, typer.Argument(help="Output file, for example chest.zip.")],
    project: ProjectId,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    wait: Wait = 600.0,
    data_dir: DataDir = None,
) -> None:
    """Write one project, with its records and models, to one file."""
    from backend.records.backup import backup as write_backup

    made = write_backup(open_locking_records(data_dir), project, file, force=force, wait=wait, say=say)
    say(f"{_backed_up(made)} was written to {file}, {file.stat().st_size / 2**20:.1f} MiB.")
    say("The file contains the webhook secret and data derived from the scans. Protect it as you protect the scans.")


def restore(
    file: Annotated[Path, typer.Argument(help="Backup file from `scanqueue backup`.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace the existing project.")] = False,
    wait: Wait = 600.0,
    data_dir: DataDir = None,
) -> None:
    """Restore a project from a backup, here or on another machine.

    The file is checked first.
    """
    from backend.app import open_store
    from backend.records.restore import restore as restore_backup
    from backend.workers.worker import Queue

    settings = settings_from_env(data_dir=data_dir)
    made = restore_backup(lambda: open_store(settings), file, replace=replace, wait=wait, say=say)
    say(f"{_backed_up(made)}, backed up at {made.made_at}, was restored to {settings.data_dir}.")
    Queue(settings).request(made.project)  # may fail, but the project is restored
    say("The worker processes it next.")


def _backed_up(made: Summary) -> str:
    counts = made.counts
    title = f" ({made.title})" if made.title else ""
    return (
        f"Project {made.project}{title} with {counts.get('scan', 0)} scans, {counts.get('label', 0)} labels and "
        f"{counts.get('model', 0)} models, {counts.get('models', 0)} of them with their checkpoint,"
    ).rstrip(",")
