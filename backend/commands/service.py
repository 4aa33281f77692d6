"""`scanqueue serve | worker | doctor | demo`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from backend.commands.shared import MOST, AsJson, DataDir, console, settings_from_env
from backend.logs import log_to


def serve(
    host: Annotated[str | None, typer.Option(help="Listening address.")] = None,
    port: Annotated[int | None, typer.Option(help="Listening port.")] = None,
    data_dir: DataDir = None,
    worker: Annotated[bool, typer.Option(help="Also run a worker process.")] = True,
) -> None:
    """Serve Label Studio and the web page, with one worker process."""
    settings = settings_from_env(host=host, port=port, data_dir=data_dir)
    log_to(settings)
    from backend.app import run_server
    from backend.web.address import check_address

    check_address(settings.host, settings.port)
    if settings.log_format == "json":
        logging.getLogger("scanqueue").info("listening on http://%s:%s", settings.host, settings.port)
    else:
        console.print(f"scanqueue listens on http://{settings.host}:{settings.port}", highlight=False)
    if not settings.label_studio_api_key:
        logging.getLogger("scanqueue").warning(
            "no token for Label Studio is set, so no project can be read. Set SCANQUEUE_LABEL_STUDIO_API_KEY"
        )
    run_server(settings, worker=worker)


def worker(
    data_dir: DataDir = None,
    alive: Annotated[Path | None, typer.Option(help="File to touch every few seconds, for health checks.")] = None,
    parent: Annotated[int, typer.Option(help="Stop when this process ends.", hidden=True)] = 0,
    heartbeat: Annotated[int | None, typer.Option(help="File descriptor for heartbeats.", hidden=True)] = None,
) -> None:
    """Run a worker: embed, rank, train, publish. Any number of workers can share one data folder."""
    settings = settings_from_env(data_dir=data_dir)
    log_to(settings)
    from backend.app import run_worker, supervise_worker

    if parent:
        run_worker(settings, parent=parent, heartbeat=heartbeat)
    else:
        supervise_worker(settings, alive=alive)


def doctor(
    project: Annotated[
        int | None, typer.Option("--project", min=0, max=MOST, help="Project ID to check as well.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Check the connection to Label Studio and suggest fixes."""
    from backend.doctor import examine

    findings = examine(settings_from_env(data_dir=data_dir), project)
    if as_json:
        typer.echo(json.dumps({"checks": [f.to_dict() for f in findings]}, indent=1))
    else:
        for f in findings:
            mark = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "error": "[red]error[/]"}[f.level]
            console.print(f"{mark:18} ", end="")
            console.print(f.what, markup=False, highlight=False)
            if f.cure:
                console.print(f"         fix: {f.cure}", markup=False, highlight=False, style="bold")
    if any(f.level == "error" for f in findings):
        raise typer.Exit(1)


def demo(
    data: Annotated[Path | None, typer.Option(help="Folder with images/ and, for --simulate, masks/.")] = None,
    simulate: Annotated[bool, typer.Option(help="Let two simulated annotators label the scans.")] = False,
    labels: Annotated[int, typer.Option(help="Number of scans that the simulated annotators label.")] = 40,
    label: Annotated[list[str] | None, typer.Option(help="Label name for a mask value. Repeatable, in order.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder for the demo's files.")] = Path("demo-data"),
    port: Annotated[int | None, typer.Option(help="Port of Label Studio. Default: 8080, or a free port.")] = None,
    service_port: Annotated[int | None, typer.Option(help="Port of scanqueue. Default: 9090, or a free port.")] = None,
) -> None:
    """Start a real Label Studio with scanqueue connected."""
    log_to(level="WARNING")
    from backend.demo.run import run_demo

    run_demo(data, simulate, labels, folder, port=port, service_port=service_port, label_names=label or ())
