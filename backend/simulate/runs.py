"""Runs the trainings of a comparison: one model for each strategy, budget and repeat.

A repeat (seed) fixes the split into pool and test, the initial weights and all randomness in training. Within a repeat,
strategies differ only in the scans they choose, so they are compared in pairs. A model depends only on its repeat and
its set of scans: strategies with the same set share one training, and a restart reuses finished trainings.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

from backend.errors import BadSetting, ScanqueueError
from backend.json_text import parse_json
from backend.simulate.bench import Bench, Found
from backend.simulate.plan import Comparison, Job, Progress, checked_split, read
from backend.simulate.results import ALL_LABELS, COLUMNS, LABEL_COLUMN, RATE_COLUMNS

STALE = 6 * 3600  # seconds; longer than any training
PICK_COLUMNS = ("strategy", "embedder", "seed", "budget", "place", "name", "reason")


def run(
    comparison: Comparison, folder: Path, *, processes: int, cells: Path | None = None, progress: Progress
) -> list[dict[str, Any]]:
    """Run the missing trainings, write `results.csv` and `picks.csv` into `folder`, and return the rows of the former.

    Both tables are rewritten after every job, so partial results are available.

    processes  number of parallel processes with one thread each; it does not affect the results
    cells      cache folder for finished trainings; default: in `folder`. Comparisons on the same scans may share it
    progress   called as progress(finished jobs, all jobs, seconds left)

    Raises ScanqueueError when the folder contains another comparison or the scans or tables are invalid.
    """
    scans, groups, *_ = read(comparison)  # raises errors before any process starts
    for seed in comparison.seeds:
        if not any(scans.masks[row].any() for row in checked_split(comparison, groups, seed).test):
            raise BadSetting(
                f"seed {seed}: none of the test scans has foreground, so no Dice can be measured. Add scans with "
                "foreground, or choose a larger --test-share or other --seeds."
            )
    folder.mkdir(parents=True, exist_ok=True)
    same_comparison(comparison, folder)
    jobs = _jobs(comparison)
    results: dict[Job, Found] = {}
    cells = cells or folder / "cells"
    _clear(cells)
    began = time.monotonic()
    progress(0, len(jobs), float("nan"))
    context = get_context("spawn")  # torch does not survive a fork
    with ProcessPoolExecutor(
        max(1, min(processes, len(jobs))), context, _open, (comparison, cells, os.getpid())
    ) as executor:
        waiting = {executor.submit(_do, job): job for job in jobs}
        try:
            for done in as_completed(waiting):
                results[waiting[done]] = done.result()
                _write(folder, jobs, results)
                left = (time.monotonic() - began) / len(results) * (len(jobs) - len(results))
                progress(len(results), len(jobs), left)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    return _write(folder, jobs, results)


def _write(folder: Path, jobs: Sequence[Job], results: Mapping[Job, Found]) -> list[dict[str, Any]]:
    done = [results[job] for job in jobs if job in results]
    rows = [row for found, _ in done for row in found]
    write_tables(folder, rows, [pick for _, picks in done for pick in picks])
    return rows


def write_tables(folder: Path, rows: Sequence[Mapping[str, Any]], picks: Sequence[Mapping[str, Any]]) -> None:
    """Replace `results.csv` and `picks.csv`."""
    _write_table(folder / "results.csv", (*COLUMNS, *RATE_COLUMNS, LABEL_COLUMN), rows)
    _write_table(folder / "picks.csv", PICK_COLUMNS, picks)


_bench: Bench | None = None


def _open(comparison: Comparison, cells: Path, parent: int) -> None:
    global _bench  # one per process
    Thread(target=end_with, args=(parent,), daemon=True).start()
    _bench = Bench(comparison, cells)


def end_with(parent: int) -> None:
    """Exit when the parent is killed, which a pool process does not notice by itself."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _clear(cells: Path) -> None:
    """Remove leftovers of killed processes."""
    for path in [*cells.glob("model-*"), *cells.glob("part-*")]:
        if path.is_dir() or not path.suffix:
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _do(job: Job) -> Found:
    assert _bench is not None
    return _bench.run(job)


def _jobs(comparison: Comparison) -> list[Job]:
    """Jobs ordered by repeat, so that an interrupted comparison has complete pairs."""
    jobs = []
    for seed in comparison.seeds:
        jobs.append(Job(ALL_LABELS, seed, ()))
        for name in comparison.strategies:
            if comparison.cold_start_only:
                jobs += [Job(name, seed, (budget,)) for budget in comparison.budgets]
            else:
                jobs.append(Job(name, seed, comparison.budgets))
    return jobs


def same_comparison(comparison: Comparison, folder: Path, screen: bool = False) -> None:
    """Record the settings. Raises ScanqueueError when the folder contains another comparison."""
    asked = {k: _plain(v) for k, v in asdict(comparison).items()} | ({"screen": True} if screen else {})
    file = folder / "comparison.json"
    if file.exists():
        there = _settings_in(file)
        differs = [k for k in {**asked, **there} if there.get(k) != asked.get(k)]
        if differs:
            raise ScanqueueError(
                f"{folder} contains another comparison ({differs[0]}: {there.get(differs[0])}, now "
                f"{asked.get(differs[0])})"
                ". Give the same options to resume it, or another folder."
            )
        return
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps(asked, indent=1))
    os.replace(aside, file)


def _settings_in(file: Path) -> Mapping[str, Any]:
    try:
        found = parse_json(file.read_bytes())
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    raise ScanqueueError(f"{file} is damaged, so its comparison cannot be resumed. Use another folder, or remove it.")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _write_table(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    aside = file.with_suffix(".part")
    with open(aside, "w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, columns)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(aside, file)
