"""Stage A of the evidence on orders: all strategies on five kinds of pools, without trainings.

See `backend.simulate.screen` for the method and `screen_pools` for the pools. `default` is what ships: the first
`cold_start_size` scans in one step, then rounds. `python -m benchmarks.selection --screen` writes `screening.md`,
`screening.csv` and `screening-picks.csv.gz`; the features of the scans are kept in `--out`.
"""

from __future__ import annotations

import csv
import gzip
import os
import time
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from backend.learning.weights import BUILTIN
from backend.settings import ProjectSettings
from backend.simulate.screen import DRAWS, SEEDS, Screen
from backend.simulate.screen_runs import Opened, each_split
from backend.simulate.statistics import Interval, mean_interval, signed
from benchmarks.measure import report as print_report
from benchmarks.measure import rounded, summary
from benchmarks.screen_pools import LABELS, bank, kinds
from sampling import DEFAULT

STRATEGIES = ("default", "facility+power-entropy", "typiclust+power-entropy", "alps+power-entropy", "paper")
BUDGETS = (5, 10, 20, 40)
JUDGED = range(100, 100 + SEEDS)  # the default was chosen on splits 0 to 5; nobody had seen these
PAGE = Path(__file__).with_name("screening.md")
TABLE = Path(__file__).with_name("screening.csv")
PICKS = Path(__file__).with_name("screening-picks.csv.gz")
COMMAND = "python -m benchmarks.selection --screen"

METHOD = """\
Nothing is trained: ridge regression on frozen patch features draws the masks (`backend/simulate/screen.py`). The tables
show the difference in Dice to random choice with its 95 % interval, a bootstrap over splits. All splits of a kind use
the same scans, so the intervals do not cover other hospitals. Near-duplicates are frames made from single scans, and no
strategy knows which belong together. Of slices, the volume is known. The mixture counts each of its labels alike."""

Differences = Mapping[tuple[str, str, int], Sequence[float]]  # kind, strategy, budget: one for each split


def opened(folder: Path, name: str) -> Opened:
    """The screen of one kind of pool."""
    scans = bank(folder, lambda text: None)
    kind = next(one for one in kinds(scans) if one.name == name)
    made = Screen(
        scans=scans.scans,
        names=scans.names,
        embeddings=scans.embeddings,
        embedder=BUILTIN,
        groups=kind.units,
        strata=None,
        labels=LABELS,
        strategies=STRATEGIES,
        budgets=BUDGETS,
        cold_start=ProjectSettings().cold_start_size,
    )
    return made, kind.split


def measure(folder: Path, seeds: Sequence[int], jobs: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of results and picks of all kinds, each with its kind in `data`."""
    features, rows, picks = folder / "screen", [], []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        found = kinds(bank(features, lambda text: bar.console.print(text)))
        for kind in found:
            task = bar.add_task(kind.name, total=len(seeds), left="")

            def progress(done: int, total: int, left: float, task: Any = task) -> None:
                bar.update(task, completed=done, left=f"{left / 60:.0f} min left" if left == left else "")

            for results, chosen in each_split(
                partial(opened, features, kind.name), seeds, processes=jobs, progress=progress
            ):
                rows += [{"data": kind.name} | row for row in results]
                picks += [{"data": kind.name} | pick for pick in chosen]
    return rows, picks


def differences(rows: Sequence[Mapping[str, Any]]) -> Differences:
    """Dice minus the mean of the random orders of the same split."""
    dice = {(r["data"], r["seed"], r["strategy"], r["budget"]): r["dice"] for r in rows}
    found: dict[tuple[str, str, int], list[float]] = {}
    for (kind, seed, strategy, budget), value in dice.items():
        if strategy in STRATEGIES:
            found.setdefault((kind, strategy, budget), []).append(value - dice[kind, seed, "random", budget])
    return found


def over_kinds(found: Differences, strategy: str, budget: int) -> Interval:
    """Mean over the kinds of pools, each with the same weight."""
    return mean_interval({kind: values for (kind, s, b), values in found.items() if (s, b) == (strategy, budget)})


def text(one: Interval) -> str:
    assert one.low is not None
    assert one.high is not None
    return f"{signed(one.mean)} ({signed(one.low)} .. {signed(one.high)})"


def page(rows: Sequence[Mapping[str, Any]], picks: Sequence[Mapping[str, Any]], folder: Path, minutes: float) -> str:
    """The tables as Markdown."""
    found, names = differences(rows), list(dict.fromkeys(r["data"] for r in rows))
    splits = len({r["seed"] for r in rows})
    lines = [
        "# Which order helps where? The screen",
        "",
        f"`{COMMAND}`: {splits} splits of each kind of pool, random choice is the mean of {DRAWS} orders.",
        f"`default` is `{DEFAULT}`. {minutes:.0f} minutes with {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f}), "
        f"{date.today().isoformat()}.",
        "",
        METHOD,
        "",
    ]
    for budget in BUDGETS:
        lines += [
            f"## {budget} labels",
            "",
            "| | all kinds | " + " | ".join(names) + " |",
            "|---" * (len(names) + 2) + "|",
        ]
        level = [np.mean([r["dice"] for r in rows if (r["data"], r["strategy"], r["budget"]) == (k, "random", budget)])
                 for k in names]  # fmt: skip
        lines.append("| random, Dice | | " + " | ".join(f"{value:.3f}" for value in level) + " |")
        for strategy in STRATEGIES:
            cells = [text(mean_interval({"": found[kind, strategy, budget]})) for kind in names]
            lines.append(f"| {strategy} | {text(over_kinds(found, strategy, budget))} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, *coverage(picks, folder)]) + "\n"


def coverage(picks: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """What the first 20 picks reach, which no Dice shows."""
    scans = bank(folder / "screen", lambda text: None)
    at = {name: i for i, name in enumerate(scans.names)}
    lines = ["## What the first 20 picks reach", "", "Means over the splits.", ""]
    lines += [
        "| | mixture: splits with all kinds | near-duplicates: distinct scans | slices: volumes | slices with label |"
    ]
    lines += ["|---|---|---|---|---|"]
    for strategy in STRATEGIES:
        chosen: dict[str, dict[int, list[int]]] = {}
        for pick in picks:
            if pick["strategy"] == strategy and pick["budget"] == 20:
                chosen.setdefault(pick["data"], {}).setdefault(pick["seed"], []).append(at[pick["name"]])
        sets = {kind: [np.array(rows) for rows in by_seed.values()] for kind, by_seed in chosen.items()}
        every = np.mean([len(set(scans.source[rows])) == len(LABELS) for rows in sets["mixture"]])
        distinct = np.mean([len(set(scans.groups[rows])) for rows in sets["near-duplicates"]])
        volumes = np.mean([len(set(scans.groups[rows])) for rows in sets["slices"]])
        shown = np.mean([scans.scans.has[rows].any(axis=1).mean() for rows in sets["slices"]])
        lines.append(f"| {strategy} | {every:.0%} | {distinct:.1f} | {volumes:.1f} | {shown:.0%} |")
    return lines


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    packed = file.suffix == ".gz"
    with gzip.open(file, "wt", newline="") if packed else open(file, "w", newline="") as opened_file:
        writer = csv.DictWriter(opened_file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def main(folder: Path, *, quick: bool, jobs: int) -> None:
    """Run the screen, write the page, and print the difference of the default at 20 labels."""
    began = time.monotonic()
    seeds = JUDGED[:2] if quick else JUDGED
    rows, picks = measure(folder, seeds, jobs)
    minutes = (time.monotonic() - began) / 60
    found = differences(rows)
    if not quick:
        PAGE.write_text(page(rows, picks, folder, minutes))
        short = [row | {"dice": f"{row['dice']:.4f}"} for row in rows]
        write_csv(TABLE, short, ("data", "strategy", "seed", "budget", "dice", "n_test"))
        write_csv(PICKS, picks, ("data", "strategy", "seed", "budget", "place", "name"))
    results = {budget: over_kinds(found, "default", budget) for budget in BUDGETS}
    at = results[20]
    low, high = (at.mean if end is None else end for end in (at.low, at.high))
    figures = {"ratio": rounded(at.mean), "low": rounded(low), "high": rounded(high)}
    print_report(
        f"five kinds of pools, {len(seeds)} splits each, {minutes:.0f} minutes",
        ["labels", "default - random, Dice, mean over the kinds of pools"],
        [[str(budget), text(one)] for budget, one in results.items()],
        summary(
            figures,
            unit="Dice at 20 labels",
            compared=f"default ({DEFAULT}) - random, mean over five kinds of pools",
            sizes={"splits": len(seeds), "draws": DRAWS},
            limit=0.0,
            met=figures["low"] > 0,
        )
        | {"interval": "95 % bootstrap over splits within kinds of pools"},
    )
