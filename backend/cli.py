"""The command line: `scanqueue serve | worker | status | doctor | models | weights | import | export | ...`."""

from __future__ import annotations

import os

import typer
from rich.console import Console

from backend.commands import backups, disconnect, export, intake, labels, models, service, simulate, status, weights
from backend.errors import ScanqueueError

# Waiting threads must sleep, not spin: next to a busy Label Studio, a training step would otherwise take ten times as
# long. torch reads these variables when it is loaded later; the worker that `serve` starts inherits them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

app = typer.Typer(
    help="Decides which medical scan to segment next in Label Studio.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich boxes cut option names off at 80 columns
)
models_app = typer.Typer(help="List the models of a project or activate one.", no_args_is_help=True)
app.add_typer(models_app, name="models")
labels_app = typer.Typer(help="Say what became of labels that were renamed or removed.", no_args_is_help=True)
app.add_typer(labels_app, name="labels")
weights_app = typer.Typer(help="List, install or verify pretrained weights.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")

app.command()(service.serve)
app.command()(service.worker)
app.command()(status.status)
models_app.command("list")(models.models_list)
models_app.command("activate")(models.models_activate)
labels_app.command("list")(labels.labels_list)
labels_app.command("rename")(labels.labels_rename)
labels_app.command("retire")(labels.labels_retire)
app.command("import")(intake.import_)
weights_app.command("list")(weights.weights_list)
weights_app.command("fetch")(weights.weights_fetch)
weights_app.command("verify")(weights.weights_verify)
app.command()(backups.backup)
app.command()(backups.restore)
app.command()(disconnect.disconnect)
app.command(cls=export.ExportCommand)(export.export)
app.command()(service.doctor)
app.command()(simulate.simulate)
app.command()(service.demo)


def main() -> None:
    """Run the command line. A ScanqueueError is printed without a traceback; the exit code is then 1."""
    try:
        app()
    except ScanqueueError as error:
        Console(stderr=True).print(f"scanqueue: {error}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
