"""`scanqueue status`."""

from __future__ import annotations

import contextlib
import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from backend.commands.shared import MOST, AsJson, DataDir, console, open_records, say
from backend.errors import BadSetting


class Panel(StrEnum):
    """Contents of a plot."""

    map = "map"
    curve = "curve"
    both = "both"


def status(
    project: Annotated[
        int | None, typer.Option("--project", min=0, max=MOST, help="Project ID. Default: all projects.")
    ] = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show progress until Ctrl-C.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write a plot of the project to this .svg or .png file.")
    ] = None,
    panel: Annotated[Panel, typer.Option("--panel", help="Contents of --plot.")] = Panel.both,
    data_dir: DataDir = None,
) -> None:
    """Show the state of projects: labels, quality, queue, problems."""
    from backend.web import status as project_status

    kind = _plottable(plot) if plot is not None else ""
    store = open_records(data_dir, reading=True)
    if plot is not None and project is None:
        project = _only_project(store.projects())
    if watch and plot is None:
        _watch(store, project)
        return
    wanted = [project] if project is not None else store.projects()
    found = [project_status.describe(store, p) for p in wanted]
    if project is not None and found == [None]:
        raise BadSetting(
            f"Project {project} is not connected to this scanqueue. Connect it in Label Studio, Settings > Model."
        )
    if plot is not None and project is not None:
        _plot(store, project, plot, kind, panel)
        return
    if as_json:
        typer.echo(json.dumps(found[0] if project is not None else {"projects": found}, indent=1))
        return
    if not found:
        console.print("No projects yet. Connect scanqueue in Label Studio, Settings > Model.")
    for one in found:
        if one is not None:
            _print_status(one)


def _plottable(file: Path) -> str:
    """The plot format, from the file's suffix. Raises BadSetting for another one."""
    kind = file.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise BadSetting(
            f"--plot: got {str(file)!r}; expected a file name that ends in .svg or .png, such as project.svg."
        )
    return kind


def _only_project(projects: list[int]) -> int:
    """The project to plot if none is named. Raises BadSetting unless there is exactly one."""
    if not projects:
        raise BadSetting("--plot: no projects yet. Connect scanqueue in Label Studio, Settings > Model.")
    if len(projects) > 1:
        known = ", ".join(map(str, projects))
        raise BadSetting(
            f"--plot needs one project. Add its ID, for example --project {projects[0]}; there are {known}."
        )
    return projects[0]


def _plot(store: Any, project: int, file: Path, kind: str, panel: Panel) -> None:
    from backend.web import learning_curve, map_view, plots

    if panel is Panel.map:
        drawn = plots.map_plot(map_view.atlas(store, project), kind=kind)
    elif panel is Panel.curve:
        drawn = plots.curve_plot(learning_curve.curve(store, project), kind=kind)
    else:
        drawn = plots.both(map_view.atlas(store, project), learning_curve.curve(store, project), kind=kind)
    try:
        file.write_bytes(drawn)
    except OSError as error:
        raise BadSetting(
            f"--plot: cannot write {file} ({error.strerror or error}). Choose a file in an existing, writable folder."
        ) from error
    what = {"both": "The map and the learning curve", "map": "The map", "curve": "The learning curve"}[panel.value]
    say(f"{what} of project {project} {'are' if panel is Panel.both else 'is'} in {file}.")


def _watch(store: Any, project: int | None) -> None:
    """Show one progress bar per project, with the time left in the current step."""
    from backend.web import status as project_status

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
    empty = f" ({one['labelled_empty']} without foreground)" if one["labelled_empty"] else ""
    rows = [
        ("project", f"{one['project']}  {one['title']}"),
        ("phase", f"{one['phase']}  {one['reason']}"),
        ("round", f"{one['model_version'] or '-'}  (masks by {one['model'] or _quick_text(one['quick'])})"),
        ("scans", f"{one['scans']}, embedded {one['embedded']}, labelled {one['labelled']}{empty}"),
        *([("order", f"{one['waiting']} scans join it once they are read or scored")] if one["waiting"] else []),
        ("embedder", f"{one['embedder']['name'] or '-'}  {one['embedder']['why']}"),
        ("validation", quality_text(validation)),
        *label_rows(validation),
        ("this round's shown masks", quality_text(shown)),
        ("queue", " ".join(map(str, one["queue"][:12])) + (" ..." if len(one["queue"]) > 12 else "")),
    ]
    if one["overlap"] > 1:
        first = "scans that have some of them come before the first of a new round"
        rows.append(("annotations", f"{one['overlap']} per scan; {first}"))
    if one["image"]:
        rows.append(("image", f'<Image name="{one["image"]}">; the setting image selects another'))
    if one["control"]:
        trial = one["control"]
        ours, control = quality_text(trial["ours"]), quality_text(trial["control"])
        drawn, of = "the first ones that our order chose", trial.get("of")  # of older versions
        if of:
            drawn = f"evenly from all {of['ours']} that our order chose and all {of['control']} random ones"
        text = f"{trial['labels']} labels each, {drawn}: our order {ours}, random order {control}"
        rows.append(("control trial", text))
    if one["stopping"]:
        rows.append(("more labels?", one["stopping"]["sentence"]))
    if job:
        left = f", about {job['seconds_left']:.0f} s left" if job["seconds_left"] is not None else ""
        rows.append(("now", f"{job['step']}: {job['done']} of {job['total']}{left}"))
    if one["trouble"]:
        rows.append(("problem", one["trouble"]))
    for name, text in rows:
        table.add_row(name, text)
    console.print(table, markup=False, highlight=False)
    for group in one["problem_groups"]:
        console.print(f"  {_problem_text(group)}", markup=False, highlight=False)


def _quick_text(quick: dict[str, Any] | None) -> str:
    from backend.web.formatting import quick_model

    return quick_model(quick) if quick else "no model yet"


def _problem_text(group: dict[str, Any]) -> str:
    if group["count"] == 1:
        return f"task {group['tasks'][0]}: {group['what']}"
    more = ", ..." if group["count"] > len(group["tasks"]) else ""
    tasks = f"{group['count']} tasks ({', '.join(map(str, group['tasks']))}{more})"
    example = "" if group["same"] else f", for example task {group['tasks'][0]}"
    return f"{tasks}{example}: {group['what']}"


def quality_text(found: dict[str, Any]) -> str:
    from backend.web.formatting import rates

    means = _means_text(found)
    told = rates(found).replace("\N{NO-BREAK SPACE}", " ")
    return f"{means}. {told}" if told else means


def label_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """One row per label, when there are several."""
    from backend.web.formatting import alarms, missed

    each = found["per_label"] if len(found["per_label"]) > 1 else {}
    rows = []
    for name, one in each.items():
        alone = {"per_label": {name: one}}
        means = _means_text(one | {"unit": found["unit"] if one["n"] else None})
        rows.append((f"  {name}", f"{means}; missed {missed(alone)}; false alarms {alarms(alone)}"))
    return rows


def _means_text(found: dict[str, Any]) -> str:
    if not found["n"]:
        return "on no scan" if "n_without" in found else "no scan with foreground" if found.get("n_empty") else "-"
    low, high = found.get("dice_low"), found.get("dice_high")
    sure = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    far = f", HD95 {found['hd95']:.1f} {found['unit']}" if found["hd95"] is not None else ""
    if found["unit"] == "mixed":
        far = ", no mean HD95: mixed units (mm and px)"
    scans = f"{found['n']} scan{'s' if found['n'] != 1 else ''}"
    which = " with foreground" if found.get("n_empty") else ""
    labels = sum(1 for one in (found.get("per_label") or {}).values() if one["n"])
    over = f"mean over {labels} labels, {scans}" if labels > 1 else scans
    return f"Dice {found['dice']:.3f}{sure}{far} ({over}{which})"
