"""What the commands share: options, output, settings and the records."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from backend.errors import BadSetting
from backend.settings import Settings

console = Console()
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder of records and models.")]
MOST = 10**15 - 1  # the largest project ID
ProjectId = Annotated[int, typer.Option("--project", min=0, max=MOST, help="Project ID in Label Studio.")]
Wait = Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait while a worker uses the project.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the JSON that GET /api/projects/ID returns.")]


def settings_from_env(**changes: Any) -> Settings:
    return Settings.from_env(os.environ).with_(**changes)


def say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def open_records(data_dir: Path | None, *, reading: bool = False) -> Any:
    """The records, which must exist. With `reading`, nothing needs to be writable."""
    from backend.records.store import Store

    settings = settings_with_records(data_dir)
    return Store(settings.data_dir, settings.database_url, reading=reading)


def have_records(settings: Settings) -> bool:
    """Whether there are records. Raises BadSetting if this user may not look."""
    file = settings.data_dir / "records.sqlite"
    try:
        return bool(settings.database_url) or file.exists()
    except OSError as error:
        raise BadSetting(
            f"{file} cannot be reached ({error.strerror}). Run the command as the user who runs `scanqueue serve`."
        ) from error


def image_setting(settings: Settings, project: int) -> str:
    """The project's setting `image`; "" if it has none, or if there are no records of it."""
    from backend.loop.project_settings import row_settings
    from backend.records.store import Store

    if not have_records(settings):
        return ""
    row = Store(settings.data_dir, settings.database_url, reading=True).project(project)
    return row_settings(dict(row)).image if row else ""


def open_locking_records(data_dir: Path | None) -> Any:
    """Open the records with the locks that workers on other machines share."""
    from backend.app import open_store

    return open_store(settings_with_records(data_dir))


def settings_with_records(data_dir: Path | None) -> Settings:
    settings = settings_from_env(data_dir=data_dir)
    if not have_records(settings):
        raise BadSetting(
            f"{settings.data_dir} contains no scanqueue records. Set --data-dir or SCANQUEUE_DATA_DIR to "
            "the folder that `scanqueue serve` uses."
        )
    return settings
