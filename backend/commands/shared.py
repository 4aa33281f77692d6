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
ProjectId = Annotated[int, typer.Option("--project", help="Project ID in Label Studio.")]
Wait = Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait while a worker uses the project.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the JSON that GET /api/projects/ID returns.")]


def settings_from_env(**changes: Any) -> Settings:
    return Settings.from_env(os.environ).with_(**changes)


def say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def open_records(data_dir: Path | None) -> Any:
    from backend.records.store import Store

    settings = settings_with_records(data_dir)
    return Store(settings.data_dir, settings.database_url)


def open_locking_records(data_dir: Path | None) -> Any:
    """Open the records with the locks that workers on other machines share."""
    from backend.app import open_store

    return open_store(settings_with_records(data_dir))


def settings_with_records(data_dir: Path | None) -> Settings:
    settings = settings_from_env(data_dir=data_dir)
    if not settings.database_url and not (settings.data_dir / "records.sqlite").exists():
        raise BadSetting(
            f"{settings.data_dir} contains no scanqueue records. Set --data-dir or SCANQUEUE_DATA_DIR to "
            "the folder that `scanqueue serve` uses."
        )
    return settings
