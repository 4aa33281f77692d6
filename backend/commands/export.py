"""`scanqueue export`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn
from typer.core import TyperCommand

from backend.commands.shared import DataDir, ProjectId, console, have_records, open_records, say, settings_from_env
from backend.errors import BadSetting
from backend.logs import log_to
from backend.settings import Settings

if TYPE_CHECKING:
    from backend.export import Summary as Exported


class ExportCommand(TyperCommand):
    """A command where `--model` without a value means `--model active`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for at in reversed([i for i, arg in enumerate(args) if arg == "--model"]):
            if at + 1 == len(args) or args[at + 1].startswith("-"):
                args.insert(at + 1, "active")
        return list(super().parse_args(ctx, args))


def export(
    project: ProjectId,
    out: Annotated[Path, typer.Option("--out", help="Output folder.")],
    formats: Annotated[
        str,
        typer.Option(
            "--format", help="Formats, comma-separated: nifti, seg, rtstruct, png, coco. Default: all but rtstruct."
        ),
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="Also export this model's masks, for example scanqueue-r2. Without a value: the active model.",
        ),
    ] = "",
    names: Annotated[bool, typer.Option("--names", help="Include annotators' names as well as user IDs.")] = False,
    identities: Annotated[
        Path | None, typer.Option("--identities", help="Identities file of the import. Default: in the data folder.")
    ] = None,
    source: Annotated[
        list[Path] | None, typer.Option("--source", help="Folder to search for moved scans. Repeatable.")
    ] = None,
    axis: Annotated[str, typer.Option("--axis", help="Export only slices along this axis.")] = "",
    scan: Annotated[list[str] | None, typer.Option("--scan", help="Export only this scan, S-... Repeatable.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Move an existing output folder aside.")] = False,
    show_paths: Annotated[
        bool, typer.Option("--show-paths", help="Show scan file names even if the output is not a terminal.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Export annotations and masks in the geometry of their sources.

    The exit code is 1 if something could not be exported. Everything else is exported.
    """
    log_to(level="WARNING")
    from backend.export.sources import Sources
    from backend.formats import AXES

    settings = settings_from_env(data_dir=data_dir)
    if axis and axis not in AXES:
        raise BadSetting(f"--axis: unknown axis {axis!r}; expected one of {', '.join(AXES)}.")
    options = {
        "project": project,
        "formats": tuple(part.strip() for part in formats.split(",") if part.strip()),
        "axis": axis,
        "scans": tuple(scan or ()),
        "names": names,
        "sources": Sources(tuple(source or ())),
        "model": model,
    }
    done = _run(settings, options, identities, out, force=force)
    _tell_export(project, done, paths=show_paths or console.is_terminal)
    if done.problem_count:
        raise typer.Exit(1)


def _run(settings: Settings, options: dict[str, Any], identities: Path | None, out: Path, *, force: bool) -> Exported:
    """Run the export and show its progress."""
    from backend.export import Export
    from backend.intake.identities import NAME, Identities
    from backend.label_studio.studio import Studio  # only this module: loading the whole service takes seconds

    store = (
        open_records(settings.data_dir, reading=not options["model"])
        if have_records(settings) or options["model"]
        else None
    )
    studio = Studio(settings.label_studio_url, settings.label_studio_api_key, image_hosts=settings.image_hosts)
    processor = None
    if options["model"] and store is not None:
        from backend.learning.learner import Learner
        from backend.loop.batch import BatchProcessor
        from backend.loop.context import cluster_of

        processor = BatchProcessor(studio, store, Learner(settings), cluster=cluster_of(settings))
    file = identities or settings.data_dir / NAME
    with contextlib.ExitStack() as opened:
        known = None
        if identities is not None or file.exists():
            known = opened.enter_context(Identities(file, must_exist=True))
        export = Export(studio=studio, identities=known, store=store, processor=processor, **options)
        columns = (TextColumn("exporting"), BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} slices"))
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("", total=0)
            return export.run(
                out, force=force, progress=lambda n, total: progress.update(bar, completed=n, total=total)
            )


def _tell_export(project: int, done: Exported, *, paths: bool) -> None:
    kinds = {"nifti": "NIfTI", "seg": "DICOM SEG", "rtstruct": "RTSTRUCT", "png": "PNG", "coco": "COCO"}

    def counted(start: str) -> str:
        found = [(done.files[start + kind], name) for kind, name in kinds.items()]
        return ", ".join(f"{n} {name}" for n, name in found if n) or "nothing"

    slices = f"{done.slices} labelled slice{'s' if done.slices != 1 else ''}"
    volumes = f" of {done.scans} scan{'s' if done.scans != 1 else ''}" if done.scans else ""
    rest = f"{done.unlabelled} {'has' if done.unlabelled == 1 else 'have'} no label."
    if counted("") == "nothing":
        say(f"Project {project}: no mask was written to {done.folder} for {slices}{volumes}; {rest}")
    else:
        were = "was" if done.slices == 1 else "were"
        say(f"Project {project}: {slices}{volumes} {were} exported to {done.folder} ({counted('')}); {rest}")
    if any(kind.startswith("model/") for kind in done.files):
        say(f"The model's masks are in {done.folder / 'model'} ({counted('model/')}).")
    if done.moved is not None:
        say(f"The previous contents are in {done.moved}.")
    for note in done.notes:
        say(f"note: {note}")
    for problem in done.problems:
        say(f"problem: {problem.what}" + (f" ({problem.where})" if problem.where and paths else ""))
    if not paths and any(problem.where for problem in done.problems):
        say("Add --show-paths, or run in a terminal, to see the file names.")
    if done.problem_count:
        more = done.problem_count - len(done.problems)
        end = f" ({more} more than shown here)" if more else ""
        count = "One problem is" if done.problem_count == 1 else f"{done.problem_count} problems{end} are"
        others = "Everything else was exported." if any(done.files.values()) else "Nothing was exported."
        say(f"{count} listed in {done.folder / 'manifest.json'}. {others}")
