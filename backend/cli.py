"""The command line: `scanqueue serve | worker | status | doctor | models | weights | import | export | ...`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from typer.core import TyperCommand

from backend.errors import BadSetting, ScanqueueError
from backend.logs import log_to
from backend.settings import Settings
from backend.web import status as project_status

if TYPE_CHECKING:
    from backend.export import Summary as Exported
    from backend.records.backup_format import Summary

# Threads that wait must sleep, not spin: beside a busy Label Studio a training step would take ten times as
# long. It is read when torch is loaded, which happens after this line, and by the worker that serve starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

app = typer.Typer(
    help="Decides which medical scan to segment next, for Label Studio.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # in boxes the names of options are cut off at 80 columns
)
models_app = typer.Typer(help="List the models of a project, or make one of them active.", no_args_is_help=True)
app.add_typer(models_app, name="models")
weights_app = typer.Typer(help="List pretrained weights, put them in place, or check them.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
console = Console()


class Panel(StrEnum):
    """What a plot shows."""

    map = "map"
    curve = "curve"
    both = "both"


DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where records and models are kept.")]
ProjectId = Annotated[int, typer.Option("--project", help="The project's number in Label Studio.")]
Wait = Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for a worker that is at the project.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, as GET /api/projects/ID does.")]


def _settings(**changes: Any) -> Settings:
    return Settings.from_env(os.environ).with_(**changes)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    data_dir: DataDir = None,
    worker: Annotated[bool, typer.Option(help="Also run a worker process beside the server.")] = True,
) -> None:
    """Answer Label Studio; a process beside it does the work."""
    settings = _settings(host=host, port=port, data_dir=data_dir)
    log_to(settings)
    from backend.app import run_server

    if settings.log_format == "json":
        logging.getLogger("scanqueue").info("listening on http://%s:%s", settings.host, settings.port)
    else:
        console.print(f"scanqueue listens on http://{settings.host}:{settings.port}", highlight=False)
    run_server(settings, worker=worker)


@app.command()
def worker(
    data_dir: DataDir = None,
    alive: Annotated[Path | None, typer.Option(help="Touch this file every few seconds, for health checks.")] = None,
    parent: Annotated[int, typer.Option(help="End with this process.", hidden=True)] = 0,
    heartbeat: Annotated[int | None, typer.Option(help="Give signs of life here.", hidden=True)] = None,
) -> None:
    """Do the work only: embed, rank, train, publish. Any number may run on one data folder."""
    settings = _settings(data_dir=data_dir)
    log_to(settings)
    from backend.app import run_worker, supervise_worker

    if parent:
        run_worker(settings, parent=parent, heartbeat=heartbeat)
    else:
        supervise_worker(settings, alive=alive)


@app.command()
def status(
    project: Annotated[int | None, typer.Option("--project", help="One project; without it, all.")] = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show progress until Ctrl-C.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the project into this file, .svg or .png.")] = None,
    panel: Annotated[Panel, typer.Option("--panel", help="What --plot draws.")] = Panel.both,
    data_dir: DataDir = None,
) -> None:
    """Show where projects stand: labels, quality, queue, problems."""
    kind = _plottable(plot, project) if plot is not None else ""
    store = _store(data_dir)
    if watch and plot is None:
        _watch(store, project)
        return
    wanted = [project] if project is not None else store.projects()
    found = [project_status.describe(store, p) for p in wanted]
    if project is not None and found == [None]:
        raise BadSetting(f"Project {project} is not known here. Connect it in Label Studio, Settings > Model.")
    if plot is not None and project is not None:
        _plot(store, project, plot, kind, panel)
        return
    if as_json:
        typer.echo(json.dumps(found[0] if project is not None else {"projects": found}, indent=1))
        return
    if not found:
        console.print("No project yet. Connect scanqueue in Label Studio, Settings > Model.")
    for one in found:
        if one is not None:
            _print_status(one)


def _plottable(file: Path, project: int | None) -> str:
    """The kind of a plot by the ending of its file. Raises BadSetting before anything is read."""
    kind = file.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise BadSetting(f"--plot: got {str(file)!r}, wanted a file that ends in .svg or .png, as project.svg.")
    if project is None:
        raise BadSetting("--plot draws one project: give its number in Label Studio too, as --project 1.")
    return kind


def _plot(store: Any, project: int, file: Path, kind: str, panel: Panel) -> None:
    from backend.web import learning_curve as curve
    from backend.web import map_view as atlas
    from backend.web import plots

    if panel is Panel.map:
        drawn = plots.map_plot(atlas.atlas(store, project), kind=kind)
    elif panel is Panel.curve:
        drawn = plots.curve_plot(curve.curve(store, project), kind=kind)
    else:
        drawn = plots.both(atlas.atlas(store, project), curve.curve(store, project), kind=kind)
    try:
        file.write_bytes(drawn)
    except OSError as error:
        raise BadSetting(
            f"--plot: {file} cannot be written ({error.strerror or error}); give a file in a folder that exists."
        ) from error
    what = {"both": "The map and the learning curve", "map": "The map", "curve": "The learning curve"}[panel.value]
    _say(f"{what} of project {project} {'are' if panel is Panel.both else 'is'} in {file}.")


def _watch(store: Any, project: int | None) -> None:
    """One progress bar per project, with the time left of what runs."""
    columns = (
        TextColumn("project {task.fields[project]}: {task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f}"),
        TextColumn("{task.fields[left]}"),
    )
    with contextlib.suppress(KeyboardInterrupt), Progress(*columns, console=console) as progress:
        bars: dict[int, Any] = {}
        while True:
            for number in [project] if project is not None else store.projects():
                one = project_status.describe(store, number)
                if one is None:
                    continue
                if number not in bars:
                    bars[number] = progress.add_task("", total=1, project=number, left="")
                job = one["job"] or {"step": one["phase"], "done": one["labelled"], "total": one["scans"]}
                seconds = job.get("seconds_left")
                left = f"{seconds:.0f} s left" if seconds is not None else "labelled" if not one["job"] else ""
                text = f"{job['step']} (round {one['round'] if one['round'] is not None else '-'})"
                progress.update(bars[number], description=text, completed=job["done"], total=job["total"], left=left)
            time.sleep(1)


def _print_status(one: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    job, validation, shown = one["job"], one["validation"], one["shown"]
    rows = [
        ("project", f"{one['project']}  {one['title']}"),
        ("phase", f"{one['phase']}  {one['reason']}"),
        ("round", f"{one['model_version'] or '-'}  (masks by {one['model'] or 'nobody yet'})"),
        ("scans", f"{one['scans']}, embedded {one['embedded']}, labelled {one['labelled']}"),
        ("embedder", f"{one['embedder']['name'] or '-'}  {one['embedder']['why']}"),
        ("validation", _quality(validation)),
        ("shown masks", _quality(shown)),
        ("queue", " ".join(map(str, one["queue"][:12])) + (" ..." if len(one["queue"]) > 12 else "")),
    ]
    if one["control"]:
        arms = one["control"]
        both = f"{_quality(arms['ours'])} with {arms['labels']} of our labels, {_quality(arms['control'])} with as many"
        rows.append(("our order", f"{both} drawn at random"))
    if one["stopping"]:
        rows.append(("more labels?", one["stopping"]["sentence"]))
    if job:
        left = f", about {job['seconds_left']:.0f} s left" if job["seconds_left"] is not None else ""
        rows.append(("now", f"{job['step']}: {job['done']} of {job['total']}{left}"))
    if one["trouble"]:
        rows.append(("trouble", one["trouble"]))
    for name, text in rows:
        table.add_row(name, text)
    console.print(table, markup=False, highlight=False)
    for problem in one["problems"]:
        console.print(f"  task {problem['task']}: {problem['what']}", markup=False, highlight=False)


def _quality(found: dict[str, Any]) -> str:
    if not found["n"]:
        return "-"
    far = f", HD95 {found['hd95']:.1f} {found['unit']}" if found["hd95"] is not None else ""
    if found["unit"] == "mixed":
        far = ", HD95 without a mean: in mm and in px"
    return f"Dice {found['dice']:.3f}{far} ({found['n']} scans)"


@models_app.command("list")
def models_list(project: ProjectId, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the trained models of a project."""
    found = project_status.model_list(_store(data_dir), project)
    if as_json:
        typer.echo(json.dumps({"models": found}, indent=1))
        return
    if not found:
        console.print(f"Project {project} has no trained model yet.")
        return
    table = Table("version", "active", "checkpoint", "labels", "validation", "remark")
    for m in found:
        mark = "active" if m["active"] else "" if m["accepted"] else "not taken"
        file = "kept" if m["kept"] else "gone"
        table.add_row(m["version"], mark, file, str(m["trained_on"]), _quality(m["validation"]), m["remark"])
    console.print(table)


@models_app.command("activate")
def models_activate(
    version: Annotated[str, typer.Argument(help="For example scanqueue-r2.")],
    project: ProjectId,
    data_dir: DataDir = None,
) -> None:
    """Let a model draw the masks again. A new round is published with it."""
    from backend.loop import audit as changes
    from backend.workers.worker import Queue

    settings = _settings(data_dir=data_dir)
    changes.activate(_store(data_dir), project, "command line", version)
    Queue(settings).request(project)
    console.print(f"{version} is active for project {project}; a new round is published by the worker.")


@app.command("import")
def import_(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders of scans.")],
    project: ProjectId,
    axis: Annotated[str, typer.Option(help="Cut along: acquisition, axial, coronal or sagittal.")] = "acquisition",
    every: Annotated[int | None, typer.Option(min=1, help="Only each N-th slice.")] = None,
    best: Annotated[int | None, typer.Option(min=1, help="Only the N most informative slices of a scan.")] = None,
    time: Annotated[int | None, typer.Option(min=0, help="Which volume of several over time, from 0.")] = None,
    window: Annotated[str, typer.Option(help="CENTER,WIDTH, the name of a preset, percentile, or auto.")] = "auto",
    site: Annotated[str, typer.Option(help="Name of the site in the tasks; else a pseudonym of it.")] = "",
    modality: Annotated[str, typer.Option(help="Modality in the tasks, instead of the header's.")] = "",
    group_by: Annotated[str, typer.Option(help="Keep plain files together by: none, folder or file.")] = "none",
    local_files: Annotated[
        Path | None, typer.Option(help="Write the pictures below this folder, which Label Studio reads; no upload.")
    ] = None,
    local_root: Annotated[
        Path | None, typer.Option(help="Where this machine has Label Studio's LOCAL_FILES_DOCUMENT_ROOT.")
    ] = None,
    skip_burnt_in: Annotated[
        bool, typer.Option("--skip-burnt-in", help="Leave out scans that seem to have text in their pixels.")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes that read; default: one per core.")] = None,
    identities: Annotated[
        Path | None, typer.Option(help="The file that knows who is who; default: identities.sqlite in the data folder.")
    ] = None,
    other_identities: Annotated[
        bool, typer.Option("--other-identities", help="Go on though the project was filled with another such file.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    show_paths: Annotated[
        bool, typer.Option("--show-paths", help="Name files also where the output is no terminal.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Make tasks of DICOM, NIfTI, PNG, JPEG and TIFF files. No name, id or date leaves this machine.

    Given again, it goes on where it was interrupted; what is there already is not made twice.
    """
    from backend.intake.command import import_scans
    from backend.intake.identities import NAME
    from backend.intake.plan import Wanted
    from backend.intake.run import Request

    settings = _settings(data_dir=data_dir)
    log_to(settings, level="WARNING")
    wanted = Wanted(axis, every, best, time, window, site, modality, group_by, careful=skip_burnt_in)
    request = Request(
        project=project,
        paths=tuple(paths),
        wanted=wanted,
        identities=identities or settings.data_dir / NAME,
        spool=settings.data_dir / "spool" / f"import-{project}",
        locks=settings.data_dir / "locks",
        jobs=jobs or len(os.sched_getaffinity(0)),
        local=local_files,
        root=local_root,
        dry_run=dry_run,
        foreign=other_identities,
    )
    code = import_scans(request, settings, as_json=as_json, show_paths=show_paths)
    if code:
        raise typer.Exit(code)


WeightsDir = Annotated[
    Path | None, typer.Option("--weights-dir", help="Folder of weights; SCANQUEUE_WEIGHTS_DIR where it is not given.")
]


@weights_app.command("list")
def weights_list(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False, weights_dir: WeightsDir = None
) -> None:
    """List what is known: setting, file, licence, size."""
    from backend.learning.weights import WEIGHTS, found_file, to_dict

    folder = weights_dir or _settings().weights_dir
    rows = [to_dict(row) | {"there": bool(folder and found_file(row, folder))} for row in WEIGHTS]
    if as_json:
        typer.echo(json.dumps({"weights_dir": str(folder) if folder else None, "weights": rows}, indent=1))
        return
    for row in rows:
        _say(f"{row['name']}: {row['what']}" + (" (there)" if row["there"] else ""))
        for label in ("embedder", "encoder", "files", "size", "licence", "preprocessing", "source", "sha256", "note"):
            if row[label]:
                _say(f"    {label:14}{row[label]}")
    where = f"below {folder}" if folder else "below the folder that SCANQUEUE_WEIGHTS_DIR names; it is not set"
    _say(f"The files belong {where}.")


@weights_app.command("fetch")
def weights_fetch(
    name: Annotated[str, typer.Argument(help="As `scanqueue weights list` calls it.")],
    source: Annotated[Path | None, typer.Option("--from", help="File or folder that was carried here.")] = None,
    weights_dir: WeightsDir = None,
) -> None:
    """Put weights in place, carried here or from the hub. A file is checked first."""
    from backend.learning import model_hub as hub
    from backend.learning.weights import fetch, weights_called

    row = weights_called(name)
    for verdict in fetch(row, _weights_dir(weights_dir), source, why_not=hub.unreachable):
        _say(verdict.what)
    for setting, value in (("SCANQUEUE_EMBEDDER", row.embedder), ("SCANQUEUE_ENCODER", row.encoder)):
        if value:
            _say(f"To use them, set {setting}={value}")


@weights_app.command("verify")
def weights_verify(
    name: Annotated[
        str | None, typer.Argument(help="As `scanqueue weights list` calls it; all that are there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    weights_dir: WeightsDir = None,
) -> None:
    """Check files: whole, named right, the right ones. Exits with 1 when one is not."""
    from backend.learning.weights import WEIGHTS, verify, weights_called

    folder = _weights_dir(weights_dir)
    if not folder.is_dir():
        raise BadSetting(f"There is no folder {folder} for weights. Make it, or correct SCANQUEUE_WEIGHTS_DIR.")
    found = [v for row in ([weights_called(name)] if name else WEIGHTS) for v in verify(row, folder)]
    verdicts = found if name else [v for v in found if v.state != "missing" or v.path.parent.is_dir()]
    if as_json:
        typer.echo(json.dumps({"weights_dir": str(folder), "files": [v.to_dict() for v in verdicts]}, indent=1))
    else:
        for v in verdicts:
            mark = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]"}.get(v.state, f"[red]{v.state}[/]")
            console.print(f"{mark} ", end="")
            _say(v.what)
        if not verdicts:
            _say(f"No known weights are in {folder}. `scanqueue weights list` says which file goes where.")
    if any(v.bad or v.state == "missing" for v in verdicts):
        raise typer.Exit(1)


def _weights_dir(given: Path | None) -> Path:
    folder = given or _settings().weights_dir
    if folder is None:
        raise BadSetting("SCANQUEUE_WEIGHTS_DIR is not set. Let it name the folder for weights, or give --weights-dir.")
    return folder


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The file to write, for example chest.zip.")],
    project: ProjectId,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")] = False,
    wait: Wait = 600.0,
    data_dir: DataDir = None,
) -> None:
    """Write one project, its records and its models, into one file."""
    from backend.records import backup as backups

    made = backups.backup(_locking_store(data_dir), project, file, force=force, wait=wait, say=_say)
    _say(f"{_backed_up(made)} is in {file}, {file.stat().st_size / 2**20:.1f} MiB.")
    _say("The file holds the webhook secret and what was made from the scans: keep it as you keep the scans.")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `scanqueue backup` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="In the place of the project that is there.")] = False,
    wait: Wait = 600.0,
    data_dir: DataDir = None,
) -> None:
    """Put a project in place again, here or on another machine. The file is checked first."""
    from backend.app import open_store
    from backend.records.restore import restore as restore_backup
    from backend.workers.worker import Queue

    settings = _settings(data_dir=data_dir)
    made = restore_backup(lambda: open_store(settings), file, replace=replace, wait=wait, say=_say)
    Queue(settings).request(made.project)
    _say(f"{_backed_up(made)}, as of {made.made_at}, is in {settings.data_dir}; the worker looks at it.")


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _backed_up(made: Summary) -> str:
    counts = made.counts
    title = f" ({made.title})" if made.title else ""
    return (
        f"Project {made.project}{title} with {counts.get('scan', 0)} scans, {counts.get('label', 0)} labels and "
        f"{counts.get('model', 0)} models, {counts.get('models', 0)} of them with their checkpoint,"
    ).rstrip(",")


class _Export(TyperCommand):
    """`--model` alone means `--model active`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for at in reversed([i for i, arg in enumerate(args) if arg == "--model"]):
            if at + 1 == len(args) or args[at + 1].startswith("-"):
                args.insert(at + 1, "active")
        return list(super().parse_args(ctx, args))


@app.command(cls=_Export)
def export(
    project: ProjectId,
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")],
    formats: Annotated[
        str, typer.Option("--format", help="Of nifti, seg, png, coco, with commas; default: all that fit.")
    ] = "",
    model: Annotated[
        str, typer.Option("--model", help="Also the masks of this model, as scanqueue-r2; alone: of the active one.")
    ] = "",
    names: Annotated[bool, typer.Option("--names", help="Name annotators, besides their user numbers.")] = False,
    identities: Annotated[
        Path | None, typer.Option("--identities", help="What import wrote; default: in the data folder.")
    ] = None,
    source: Annotated[
        list[Path] | None, typer.Option("--source", help="A folder where moved scans may lie now; may be repeated.")
    ] = None,
    axis: Annotated[str, typer.Option("--axis", help="Only slices along this axis.")] = "",
    scan: Annotated[list[str] | None, typer.Option("--scan", help="Only this scan, S-...; may be repeated.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Put a folder that is there aside.")] = False,
    show_paths: Annotated[
        bool, typer.Option("--show-paths", help="Name files of scans also where the output is no terminal.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Write annotations and masks in the geometry of the sources.

    Exit code 1 when something could not be exported; the rest was.
    """
    log_to(level="WARNING")
    from backend.export import Export
    from backend.export.sources import Sources
    from backend.formats import AXES
    from backend.intake.identities import NAME, Identities
    from backend.label_studio.studio import Studio  # by itself: putting everything together takes seconds

    settings = _settings(data_dir=data_dir)
    if axis and axis not in AXES:
        raise BadSetting(f"--axis: there is no axis {axis!r}; there are {', '.join(AXES)}.")
    recorded = bool(settings.database_url) or (settings.data_dir / "records.sqlite").exists()
    store = _store(data_dir) if recorded or model else None
    studio = Studio(settings.label_studio_url, settings.label_studio_api_key, image_hosts=settings.image_hosts)
    processor = None
    if model and store is not None:
        from backend.learning.learner import Learner
        from backend.loop.batch import BatchProcessor

        processor = BatchProcessor(studio, store, Learner(settings))
    file = identities or settings.data_dir / NAME
    with contextlib.ExitStack() as opened:
        known = None
        if identities is not None or file.exists():
            known = opened.enter_context(Identities(file, must_exist=True))
        asked = Export(
            studio=studio,
            project=project,
            formats=tuple(part.strip() for part in formats.split(",") if part.strip()),
            axis=axis,
            scans=tuple(scan or ()),
            names=names,
            identities=known,
            sources=Sources(tuple(source or ())),
            store=store,
            model=model,
            processor=processor,
        )
        columns = (TextColumn("exporting"), BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} slices"))
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task("", total=0)
            done = asked.run(out, force=force, progress=lambda n, total: progress.update(bar, completed=n, total=total))
    _tell_export(project, done, paths=show_paths or console.is_terminal)
    if done.problem_count:
        raise typer.Exit(1)


def _tell_export(project: int, done: Exported, *, paths: bool) -> None:
    kinds = {"nifti": "NIfTI", "seg": "DICOM SEG", "png": "PNG", "coco": "COCO"}

    def counted(start: str) -> str:
        found = [(done.files[start + kind], name) for kind, name in kinds.items()]
        return ", ".join(f"{n} {name}" for n, name in found if n) or "nothing"

    volumes = f" of {done.scans} scan{'s' if done.scans != 1 else ''}" if done.scans else ""
    _say(
        f"Project {project}: {done.slices} labelled slices{volumes} are in {done.folder} ({counted('')}); "
        f"{done.unlabelled} have no label."
    )
    if any(kind.startswith("model/") for kind in done.files):
        _say(f"The model's masks are in {done.folder / 'model'} ({counted('model/')}).")
    if done.moved is not None:
        _say(f"What was there before is in {done.moved}.")
    for note in done.notes:
        _say(f"note: {note}")
    for problem in done.problems:
        _say(f"problem: {problem.what}" + (f" ({problem.where})" if problem.where and paths else ""))
    if not paths and any(problem.where for problem in done.problems):
        _say("Which files these are is shown at a terminal, or with --show-paths.")
    if done.problem_count:
        more = done.problem_count - len(done.problems)
        end = f" ({more} more than shown here)" if more else ""
        count = "One problem is" if done.problem_count == 1 else f"{done.problem_count} problems{end} are"
        _say(f"{count} listed in {done.folder / 'manifest.json'}; the rest was exported.")


@app.command()
def doctor(
    project: Annotated[int | None, typer.Option("--project", help="Also check this project.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Check the connection with Label Studio, and say what to mend."""
    from backend.doctor import examine

    findings = examine(_settings(data_dir=data_dir), project)
    if as_json:
        typer.echo(json.dumps({"checks": [f.to_dict() for f in findings]}, indent=1))
    else:
        for f in findings:
            mark = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "error": "[red]error[/]"}[f.level]
            console.print(f"{mark:18} ", end="")
            console.print(f.what, markup=False, highlight=False)
            if f.cure:
                console.print(f"         cure: {f.cure}", markup=False, highlight=False, style="bold")
    if any(f.level == "error" for f in findings):
        raise typer.Exit(1)


@app.command()
def simulate(
    images: Annotated[Path, typer.Argument(help="Folder of scans.")],
    masks: Annotated[Path, typer.Argument(help="Folder of their true masks, under the same names.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, plots and the report.")],
    strategies: Annotated[str, typer.Option(help="Names of strategies, or COLD+MODEL.")] = "default,paper,random",
    budgets: Annotated[str, typer.Option(help="How many scans are labelled.")] = "5,10,20,40",
    seeds: Annotated[int, typer.Option(min=1, help="Repeats, each with a split and starting weights of its own.")] = 5,
    groups: Annotated[
        list[str] | None, typer.Option(help="FILE.csv:COLUMN, or FILE.csv:A,B of pairs: scans never parted.")
    ] = None,
    spacing: Annotated[str, typer.Option(help="FILE.csv:COLUMN[,COLUMN]: mm per pixel (row, column).")] = "",
    strata: Annotated[str, typer.Option(help='FILE.csv:COLUMN of site or scanner, for "stratified".')] = "",
    embedder: Annotated[str | None, typer.Option(help="As SCANQUEUE_EMBEDDER.")] = None,
    encoder: Annotated[str | None, typer.Option(help="As SCANQUEUE_ENCODER.")] = None,
    image_size: Annotated[int | None, typer.Option(help="As SCANQUEUE_IMAGE_SIZE; smaller is faster.")] = None,
    training_steps: Annotated[int | None, typer.Option(help="As SCANQUEUE_TRAINING_STEPS.")] = None,
    cold_start_only: Annotated[bool, typer.Option(help="Choose each budget at once, before any model.")] = False,
    test_share: Annotated[float, typer.Option(help="Share of the scans that all models are judged on.")] = 0.4,
    alpha: Annotated[float, typer.Option(help="Weight of the entropy in S(i).")] = 0.5,
    uncertainty: Annotated[str, typer.Option(help="image, foreground, boundary or top.")] = "image",
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at once, one thread each.")] = os.cpu_count() or 1,
) -> None:
    """Compare strategies on scans whose masks are known.

    Interrupted, it goes on where it was when the same command is given again.
    """
    log_to(level="WARNING")
    from backend.learning.learner import Learner
    from backend.simulate.compare import simulate as compare
    from backend.simulate.runs import Comparison

    settings = _settings(
        embedder=embedder, encoder=encoder, image_size=image_size, training_steps=training_steps, threads=1
    )
    learner = Learner(settings)
    comparison = Comparison(
        images=images,
        masks=masks,
        strategies=tuple(name.strip() for name in strategies.split(",")),
        budgets=_numbers("--budgets", budgets),
        seeds=tuple(range(seeds)),
        embedder=learner.embedder().name,  # "auto" is settled once, for all processes
        weights_dir=settings.weights_dir,
        cold_start_only=cold_start_only,
        groups=tuple(groups or ()),
        strata=strata,
        spacing=spacing,
        test_share=test_share,
        alpha=alpha,
        uncertainty=uncertainty,
        encoder=settings.encoder,
        image_size=settings.image_size,
        training_steps=settings.training_steps,
        device=learner.device,
    )
    compare(comparison, out, processes=jobs, command=shlex.join(["scanqueue", *sys.argv[1:]]), console=console)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BadSetting(f"{option}: got {text!r}, wanted whole numbers with commas between, as 5,10,20") from None


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="Folder with images/ and, to simulate, masks/.")] = None,
    simulate: Annotated[bool, typer.Option(help="Let two simulated annotators do the labelling.")] = False,
    labels: Annotated[int, typer.Option(help="Scans the simulated annotators label.")] = 40,
    label: Annotated[list[str] | None, typer.Option(help="What the masks show; once per value.")] = None,
    folder: Annotated[Path, typer.Option(help="Where the demo keeps its files.")] = Path("demo-data"),
    port: Annotated[int | None, typer.Option(help="Port of Label Studio; 8080, or a free one.")] = None,
    service_port: Annotated[int | None, typer.Option(help="Port of scanqueue; 9090, or a free one.")] = None,
) -> None:
    """Start a real Label Studio with scanqueue connected to it."""
    log_to(level="WARNING")
    from backend.demo.run import run_demo

    run_demo(data, simulate, labels, folder, port=port, service_port=service_port, label_names=label or ())


def _store(data_dir: Path | None) -> Any:
    from backend.records.store import Store

    settings = _recorded(data_dir)
    return Store(settings.data_dir, settings.database_url)


def _locking_store(data_dir: Path | None) -> Any:
    """A store that also knows what workers on other machines have locked."""
    from backend.app import open_store

    return open_store(_recorded(data_dir))


def _recorded(data_dir: Path | None) -> Settings:
    settings = _settings(data_dir=data_dir)
    if not settings.database_url and not (settings.data_dir / "records.sqlite").exists():
        raise BadSetting(
            f"{settings.data_dir} holds no records of scanqueue. Give --data-dir or SCANQUEUE_DATA_DIR, "
            "the same that `scanqueue serve` uses."
        )
    return settings


def main() -> None:
    """Run the command line; what scanqueue can explain is explained without a traceback."""
    try:
        app()
    except ScanqueueError as error:
        Console(stderr=True).print(f"scanqueue: {error}", markup=False, highlight=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
