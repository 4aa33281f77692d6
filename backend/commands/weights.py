"""`scanqueue weights list | fetch | verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from backend.commands.shared import console, say, settings_from_env
from backend.errors import BadSetting

SHOWN = ("embedder", "encoder", "files", "size", "licence", "preprocessing", "source", "sha256", "note")
WeightsDir = Annotated[
    Path | None, typer.Option("--weights-dir", help="Folder of weights. Default: SCANQUEUE_WEIGHTS_DIR.")
]


def weights_list(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False, weights_dir: WeightsDir = None
) -> None:
    """List the known weights: setting, file, licence, size."""
    from backend.learning.sam_library import lacking
    from backend.learning.weights import WEIGHTS, found_file, to_dict

    folder = weights_dir or settings_from_env().weights_dir
    rows = [
        to_dict(row) | {"there": found_file(row, folder) is not None, "lacks": lacking(row, folder)} for row in WEIGHTS
    ]
    if as_json:
        typer.echo(json.dumps({"weights_dir": str(folder) if folder else None, "weights": rows}, indent=1))
        return
    for row in rows:
        say(f"{row['name']}: {row['what']}" + (" (installed)" if row["there"] else ""))
        for label in (*SHOWN, "lacks"):
            if row[label]:
                say(f"    {label:14}{row[label]}")
    where = f"{folder}" if folder else "the folder that SCANQUEUE_WEIGHTS_DIR names, which is not set"
    say(f"Put the files below {where}.")


def weights_fetch(
    name: Annotated[str, typer.Argument(help="Name from `scanqueue weights list`.")],
    source: Annotated[Path | None, typer.Option("--from", help="Local file or folder to copy from.")] = None,
    weights_dir: WeightsDir = None,
) -> None:
    """Install weights from a local file or the model hub. Every file is verified first."""
    from backend.learning import model_hub
    from backend.learning.sam_library import lacking
    from backend.learning.weights import weights_called
    from backend.learning.weights_fetch import fetch

    row, folder = weights_called(name), _weights_dir(weights_dir)
    for verdict in fetch(row, folder, source, why_not=model_hub.unreachable):
        say(verdict.what)
    if lacks := lacking(row, folder):
        say(f"{lacks}.")
    for setting, value in (("SCANQUEUE_EMBEDDER", row.embedder), ("SCANQUEUE_ENCODER", row.encoder)):
        if value:
            say(f"To use them, set {setting}={value}")


def weights_verify(
    name: Annotated[
        str | None, typer.Argument(help="Name from `scanqueue weights list`. Default: all installed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    weights_dir: WeightsDir = None,
) -> None:
    """Verify installed files: name, size, checksum. The exit code is 1 if a file is invalid or missing."""
    from backend.learning.sam_library import lacking
    from backend.learning.weights import WEIGHTS, weights_called
    from backend.learning.weights_check import verify

    folder = _weights_dir(weights_dir)
    if not folder.is_dir():
        raise BadSetting(f"The weights folder {folder} does not exist. Create it or correct SCANQUEUE_WEIGHTS_DIR.")
    rows = [weights_called(name)] if name else WEIGHTS
    found = [v for row in rows for v in verify(row, folder)]
    lacks = [what for row in rows if (what := lacking(row, folder))]
    verdicts = found if name else [v for v in found if v.state != "missing" or v.path.parent.is_dir()]
    if as_json:
        typer.echo(
            json.dumps({"weights_dir": str(folder), "files": [v.to_dict() for v in verdicts], "lacks": lacks}, indent=1)
        )
    else:
        for v in verdicts:
            mark = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]"}.get(v.state, f"[red]{v.state}[/]")
            console.print(f"{mark} ", end="")
            say(v.what)
        for what in lacks:
            console.print("[yellow]unused[/] ", end="")
            say(f"{what}.")
        if not verdicts:
            say(f"{folder} contains no known weights. `scanqueue weights list` shows where each file belongs.")
    if any(v.bad or v.state == "missing" for v in verdicts):
        raise typer.Exit(1)


def _weights_dir(given: Path | None) -> Path:
    folder = given or settings_from_env().weights_dir
    if folder is None:
        raise BadSetting("SCANQUEUE_WEIGHTS_DIR is not set. Set it to the weights folder or use --weights-dir.")
    return folder
