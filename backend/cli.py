"""The command line: `scanqueue serve | worker | status | doctor | models | weights | import | export | ...`."""

from __future__ import annotations

from backend import loading

# isort: split
import os
import sys
from contextlib import suppress
from typing import NoReturn

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
    """Run the command line.

    A ScanqueueError, or an error of the operating system, is printed without a traceback; the exit code is then 1.
    """
    try:
        app()
    except ScanqueueError as error:
        _end(str(error))
    except OSError as error:
        _end(_refused(error))


def _end(text: str) -> NoReturn:
    with suppress(OSError):  # the output may be what cannot be written
        Console(stderr=True).print(f"scanqueue: {text}", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(1) from None


def _refused(error: OSError) -> str:
    """A sentence about a file, an output or a connection that the operating system refused."""
    what = error.strerror or type(error).__name__
    if error.filename is None:
        return f"The command was stopped by the operating system: {what}. Check the disk and where the output goes."
    where = f" ({error.filename})" if sys.stderr.isatty() else ""  # it may contain a patient's name
    return (
        f"A file or folder cannot be used: {what}{where}. Check the paths that were given, their rights and their disk."
    )


loading.finished()

if __name__ == "__main__":
    main()
