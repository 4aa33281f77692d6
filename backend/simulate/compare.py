"""`scanqueue simulate`: from options to report."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from backend import __version__
from backend.facts import VALIDATION_SHARE
from backend.simulate.labelled import read_labelled
from backend.simulate.plan import Comparison
from backend.simulate.report import write_report
from backend.simulate.results import read_rows
from backend.simulate.runs import run
from backend.simulate.statistics import compare_with_random, verdict
from sampling import strategy_pair


def simulate(comparison: Comparison, folder: Path, *, processes: int, command: str, console: Console) -> None:
    """Run the missing trainings of a comparison, write tables, plots and report, and print the verdicts."""
    left_out = read_labelled(comparison.images, comparison.masks).left_out
    for name, why in list(left_out.items())[:10]:
        console.print(f"left out: {name}: {why}", markup=False, highlight=False, style="yellow")
    if len(left_out) > 10:
        console.print(f"left out: {len(left_out) - 10} more", style="yellow")
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=None, left="")

        def progress(done: int, total: int, left: float) -> None:
            minutes = f"{left / 60:.0f} min left" if left == left else ""
            bar.update(task, completed=done, total=total, left=minutes)

        run(comparison, folder, processes=processes, progress=progress)
    rows = read_rows(folder / "results.csv")
    report = write_report(rows, folder, about=_about(comparison, len(left_out), command))
    for one in compare_with_random(rows):
        console.print(f"{one.arm.strategy}: {verdict(one).sentence}", markup=False, highlight=False)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)


def _about(c: Comparison, left_out: int, command: str) -> dict[str, str]:
    """Title, data and settings for the report."""
    about = {
        "title": f"Which scans to label first: {c.images.resolve().parent.name or c.images}",
        "images": str(c.images),
        "masks": str(c.masks),
        "command": command,
        "version": __version__,
        "date": date.today().isoformat(),
        "groups": ", ".join(c.groups),
        "Labelling": "in one step, without a model" if c.cold_start_only else "in rounds, as in the service",
        "Encoder": c.encoder,
        "Image size": f"{c.image_size} pixels" if c.image_size else "default of the device",
        "Training steps": str(c.training_steps) if c.training_steps else "default of the device",
        "Validation scans": f"{VALIDATION_SHARE:.0%} of the labels, to select the best step",
        "Test scans": f"{c.test_share:.0%} of all scans, the same for all strategies within a repeat",
        "Alpha, uncertainty": f"{c.alpha:g}, {c.uncertainty}",
    }
    if c.strata:
        about["Strata"] = c.strata
    if left_out:
        about["Left out"] = f"{left_out} unusable files"
    if "default" in c.strategies:
        about['Strategy "default"'] = "+".join(strategy_pair("default"))
    return about
