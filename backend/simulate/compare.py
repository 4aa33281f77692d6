"""`scanqueue simulate`: from options to report."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from backend import __version__
from backend.facts import VALIDATION_SHARE
from backend.settings import ProjectSettings
from backend.simulate.labelled import read_labelled
from backend.simulate.method import SCREEN
from backend.simulate.plan import Comparison
from backend.simulate.report import write_report
from backend.simulate.results import read_rows
from backend.simulate.runs import run
from backend.simulate.screen import DRAWS, TESTED
from backend.simulate.screen_runs import screen
from backend.simulate.statistics import compare_with_random, verdict
from sampling import strategy_pair


def simulate(
    comparison: Comparison, folder: Path, *, screened: bool, processes: int, command: str, console: Console
) -> None:
    """Run the missing trainings of a comparison, write tables, plots and report, and print the verdicts.

    screened  heads on frozen features instead of trainings, see `screen`
    """
    left_out = read_labelled(comparison.images, comparison.masks).left_out
    for name, why in list(left_out.items())[:10]:
        console.print(f"left out: {name}: {why}", markup=False, highlight=False, style="yellow")
    if len(left_out) > 10:
        console.print(f"left out: {len(left_out) - 10} more", style="yellow")
    word = "screening" if screened else "training"
    columns = (TextColumn(word), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(word, total=None, left="")

        def progress(done: int, total: int, left: float) -> None:
            minutes = f"{left / 60:.0f} min left" if left == left else ""
            bar.update(task, completed=done, total=total, left=minutes)

        (screen if screened else run)(comparison, folder, processes=processes, progress=progress)
    rows = read_rows(folder / "results.csv")
    about = _about(comparison, len(left_out), command)
    report = write_report(rows, folder, about=_screened(about, comparison) if screened else about)
    for one in compare_with_random(rows):
        console.print(f"{one.arm.strategy}: {verdict(one).sentence}", markup=False, highlight=False)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)


def _screened(about: dict[str, str], c: Comparison) -> dict[str, str]:
    """What a report of a screen says instead of the settings of trainings."""
    trained = ("Labelling", "Encoder", "Image size", "Training steps", "Validation scans", "Alpha, uncertainty")
    cold = c.budgets[-1] if c.cold_start_only else ProjectSettings().cold_start_size
    return {key: value for key, value in about.items() if key not in trained} | {
        "learner": SCREEN,
        "Learner": "ridge regression on frozen features of 32 x 32 patches; no network is trained",
        "Labelling": f"up to {cold} scans in one step, without a model; then in rounds",
        "Random choice": f"mean of {DRAWS} random orders in each repeat",
        "Test scans": f"at most {TESTED} with foreground of {c.test_share:.0%} of all scans",
        "Alpha": f"{c.alpha:g}",
    }


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
        "Validation scans": f"{VALIDATION_SHARE:.0%} of the labels, learnt from in the second half of each training",
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
