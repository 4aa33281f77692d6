"""Which model a lab would have had, for every strategy, budget and repeat: the trainings behind a comparison.

A repeat (seed) fixes the split into pool and test, the starting weights and everything random in a training. Within
a repeat the strategies differ in nothing but the scans they choose, so they are compared in pairs. A model depends
on its repeat and its set of scans alone: what two strategies both choose is trained once, and what was trained
before an interruption is not trained again.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import BadSetting, ScanqueueError
from backend.facts import validation_rows
from backend.fingerprints import fingerprint
from backend.learning.learner import Learner
from backend.settings import Settings
from backend.simulate.labelled import Labelled, read_groups, read_labelled, read_spacing, read_strata
from backend.simulate.results import ALL_LABELS, COLUMNS
from sampling import (
    AGGREGATIONS,
    ALPHA,
    BLIND,
    COLD_START,
    EXTRA_SIGNALS,
    WITH_MODEL,
    Clustering,
    Pool,
    choose_clusters,
    find_strategy,
    fit_map,
    strategy_pair,
)

Found = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # rows of results.csv, rows of picks.csv
Progress = Callable[[int, int, float], None]

STALE = 6 * 3600  # seconds
PREDICTED = 16  # scans in memory at once
PICK_COLUMNS = ("strategy", "embedder", "seed", "budget", "place", "name", "reason")


@dataclass(frozen=True)
class Comparison:
    """What is compared, on what.

    strategies       names as the setting `strategy` of a project takes them: "default", "random", "COLD+MODEL", ...
    budgets          how many scans are labelled, ascending
    seeds            the repeats
    cold_start_only  every budget is chosen at once, before any model. Otherwise as in the service: the first budget
                     is the cold start, and each model ranks the pool for the next
    groups, strata, spacing  tables, see `labelled`
    alpha, uncertainty       as the settings of a project
    test_share       of the scans, in whole groups, that no strategy may choose and all are judged on
    """

    images: Path
    masks: Path
    strategies: tuple[str, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    embedder: str = "auto"
    weights_dir: Path | None = None
    cold_start_only: bool = False
    groups: tuple[str, ...] = ()
    strata: str = ""
    spacing: str = ""
    test_share: float = 0.4
    alpha: float = ALPHA
    uncertainty: str = "image"
    encoder: str = "auto"
    image_size: int = 0
    training_steps: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.strategies or not self.budgets or not self.seeds:
            raise BadSetting("a comparison needs at least one strategy, one budget and one seed")
        for name in self.strategies:
            try:
                strategy_pair(name)
            except ValueError as error:
                raise BadSetting(str(error)) from None
        if list(self.budgets) != sorted(set(self.budgets)) or self.budgets[0] < 1:
            raise BadSetting(f"budgets: got {list(self.budgets)}, wanted whole numbers from 1 up, ascending")
        if len(set(self.strategies)) < len(self.strategies) or len(set(self.seeds)) < len(self.seeds):
            raise BadSetting("strategies and seeds: each may be named once only")
        if self.uncertainty not in AGGREGATIONS:
            raise BadSetting(f"uncertainty: got {self.uncertainty!r}, wanted one of {', '.join(AGGREGATIONS)}")
        if not 0 <= self.alpha <= 1:
            raise BadSetting(f"alpha: got {self.alpha}, wanted 0 to 1")
        if "stratified" in {strategy_pair(name)[0] for name in self.strategies} and not self.strata:
            raise BadSetting('the strategy "stratified" needs to know the strata: give --strata FILE.csv:COLUMN')
        if not 0 < self.test_share < 1:
            raise BadSetting(f"test share: got {self.test_share}, wanted more than 0 and less than 1")

    def settings(self) -> Settings:
        """What the learner is told. One thread each: figures must not depend on how many run at once."""
        return Settings(
            embedder=self.embedder,
            weights_dir=self.weights_dir,
            encoder=self.encoder,
            image_size=self.image_size,
            training_steps=self.training_steps,
            device=self.device,
            threads=1,
        )


@dataclass(frozen=True)
class Job:
    """What one process does in one go. The strategy ALL_LABELS trains on the whole pool."""

    strategy: str
    seed: int
    budgets: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """Rows of one repeat's scans: `pool` may be labelled, `test` judges. No group is in both."""

    pool: NDArray[np.intp]
    test: NDArray[np.intp]


def split(groups: NDArray[np.intp], share: float, seed: int) -> Split:
    """Whole groups, drawn at random, are put into the test part until it holds that share of the scans."""
    random = np.random.default_rng([seed, len(groups)])
    sizes = np.bincount(groups)
    test: list[int] = []
    filled = 0
    for group in random.permutation(len(sizes)):
        if filled + sizes[group] <= max(1, round(share * len(groups))):
            test.append(int(group))
            filled += sizes[group]
    held = np.isin(groups, test)
    return Split(np.flatnonzero(~held), np.flatnonzero(held))


def checked_split(comparison: Comparison, groups: NDArray[np.intp], seed: int) -> Split:
    """`split`. Raises BadSetting when the pool is smaller than the largest budget, or nothing is left to test on."""
    found = split(groups, comparison.test_share, seed)
    if len(found.pool) < comparison.budgets[-1] or not len(found.test):
        raise BadSetting(
            f"{len(groups)} scans in {len(np.unique(groups))} groups give a pool of {len(found.pool)} and "
            f"{len(found.test)} to test on; that is too few for a budget of {comparison.budgets[-1]}. "
            "Lower the budgets or the test share."
        )
    return found


def group_names(groups: NDArray[np.intp], names: Sequence[str]) -> list[str]:
    """(N,) what tells a group from others: its first name; "" for scans that are groups of their own."""
    sizes = np.bincount(groups)
    first: dict[int, str] = {}
    for group, name in sorted(zip(groups.tolist(), names, strict=True), key=lambda one: one[1]):
        first.setdefault(group, name)
    return [first[group] if sizes[group] > 1 else "" for group in groups.tolist()]


def read(
    comparison: Comparison,
) -> tuple[Labelled, NDArray[np.intp], NDArray[np.intp] | None, list[tuple[float, float]] | None]:
    """(scans, groups, strata, spacing), each checked."""
    scans = read_labelled(comparison.images, comparison.masks)
    strata = read_strata(comparison.strata, scans.names) if comparison.strata else None
    groups = read_groups(comparison.groups, scans.names)
    return scans, groups, strata, read_spacing(comparison.spacing, scans.names)


@dataclass
class Bench:
    """One process's view of a comparison: the scans, the learner, and what was computed before."""

    comparison: Comparison
    cells: Path
    scans: Labelled = field(init=False)
    learner: Learner = field(init=False)

    def __post_init__(self) -> None:
        c = self.comparison
        self.scans, self.groups, self.strata, self.spacing = read(c)
        self.learner = Learner(c.settings())
        self.named = group_names(self.groups, self.scans.names)
        self.labels = [f"class {n}" for n in range(1, self.scans.classes)]
        self.cells.mkdir(parents=True, exist_ok=True)

    def split(self, seed: int) -> Split:
        return checked_split(self.comparison, self.groups, seed)

    # -- one job ------------------------------------------------------------------------------

    def run(self, job: Job) -> Found:
        """(rows of the results, the picks behind them)."""
        part = self.split(job.seed)
        if job.strategy == ALL_LABELS:
            return [self._row(job, len(part.pool), part, np.arange(len(part.pool)))], []
        cold, ranked = strategy_pair(job.strategy)
        pool = self.pool(job.seed, part)
        rows, picks = [], []
        chosen: NDArray[np.intp] = np.empty(0, dtype=np.intp)
        reasons: list[str] = []
        signals: dict[str, NDArray[np.float64]] = {}
        for budget in job.budgets:
            if self.comparison.cold_start_only or not len(chosen):
                order = find_strategy(COLD_START, cold)(pool, budget, seed=job.seed)
                chosen, reasons = order.rows, list(order.reasons)
            else:
                ranking = find_strategy(WITH_MODEL, ranked)(
                    Pool(pool.xy, pool.clustering, pool.embeddings, pool.strata, signals),
                    budget - len(chosen),
                    chosen=chosen,
                    alpha=self.comparison.alpha,
                    seed=job.seed,
                )
                chosen = np.concatenate([chosen, ranking.rows])
                reasons += [ranked] * len(ranking.rows)
            last = self.comparison.cold_start_only or budget == job.budgets[-1]
            if not last and ranked not in BLIND:
                signals = self._signals(job.seed, part, chosen, EXTRA_SIGNALS.get(ranked, ""))
            rows.append(self._row(job, budget, part, chosen))
            picks += [
                {"strategy": job.strategy, "embedder": self.embedder, "seed": job.seed, "budget": budget, "place": i}
                | {"name": self.scans.names[part.pool[r]], "reason": why}
                for i, (r, why) in enumerate(zip(chosen, reasons, strict=True), start=1)
            ]
        return rows, picks

    @property
    def embedder(self) -> str:
        return self.learner.embedder().name

    def pool(self, seed: int, part: Split) -> Pool:
        """The pool as a strategy sees it: embeddings, map and clusters as the service makes them."""
        vectors = self._embeddings()[part.pool]
        name = fingerprint("map", self.embedder, [self.scans.digests[r] for r in part.pool], seed)
        found = self._cell(name, ".npz")
        if found is None:
            xy = fit_map(vectors, seed=seed).xy
            clustering = choose_clusters(xy, seed=seed)
            self._put(
                name,
                ".npz",
                lambda file: np.savez(file, xy=xy, labels=clustering.labels, medoids=clustering.medoids),
            )
        else:
            arrays = np.load(io.BytesIO(found))
            xy, clustering = arrays["xy"], Clustering(arrays["labels"], arrays["medoids"], {}, 0)
        strata = None if self.strata is None else self.strata[part.pool]
        return Pool(xy, clustering, vectors, strata)

    def _embeddings(self) -> NDArray[np.float32]:
        name = fingerprint("embeddings", self.embedder, self.scans.digests)
        found = self._cell(name, ".npy")
        if found is None:
            vectors = self.learner.embed(self.scans.images)
            self._put(name, ".npy", lambda file: np.save(file, vectors))
            return vectors
        loaded: NDArray[np.float32] = np.load(io.BytesIO(found))
        return loaded

    def _row(self, job: Job, budget: int, part: Split, chosen: NDArray[np.intp]) -> dict[str, Any]:
        found = self._trained(job.seed, part, chosen)["test"]
        embedder = "" if job.strategy == ALL_LABELS else self.embedder
        row = {"strategy": job.strategy, "embedder": embedder, "seed": job.seed, "budget": budget}
        row |= {"labels": len(chosen), "n_test": found["n"]}
        return row | {name: found[name] for name in ("dice", "hd", "hd95", "unit")}

    # -- trainings ----------------------------------------------------------------------------

    def _recipe(self, seed: int, part: Split, chosen: NDArray[np.intp]) -> list[Any]:
        """Everything that a model and its test depend on, besides the scans themselves."""
        learn = sorted(self.scans.names[r] for r in part.pool[chosen])
        test = [self.scans.names[r] for r in part.test]
        named = [self.named[r] for r in sorted(part.pool[chosen], key=lambda r: self.scans.names[r])]
        more = [named] if any(named) else []  # they say what is held out
        return [self.scans.fingerprint, learn, test, self.learner.describe_training(seed), self.spacing, *more]

    def _trained(self, seed: int, part: Split, chosen: NDArray[np.intp], extra: str | None = None) -> dict[str, Any]:
        """The test of the model that these pool rows give; with `extra` also its signals of the whole pool."""
        name = fingerprint("model", *self._recipe(seed, part, chosen))
        kept: dict[str, Any] = json.loads(self._cell(name, ".json") or b"{}")
        if kept and (extra is None or f"signals {extra}" in kept):
            return kept
        with tempfile.TemporaryDirectory(dir=self.cells, prefix="model-") as folder:
            model = Path(folder)
            self._train(seed, part, chosen)(model)
            if "test" not in kept:
                kept["test"] = self._test(model, part.test)
            if extra is not None:
                kept[f"signals {extra}"] = self._ask(model, part.pool, extra)
            self.learner.forget(model)
        self._put(name, ".json", lambda file: file.write(json.dumps(kept).encode()))
        return kept

    def _train(self, seed: int, part: Split, chosen: NDArray[np.intp]) -> Callable[[Path], None]:
        rows = sorted(part.pool[chosen].tolist(), key=lambda r: (self.scans.digests[r], r))
        held = validation_rows([self.scans.digests[r] for r in rows], [self.named[r] for r in rows])
        cases = [self.scans.case(r, self.learner.image_size) for r in rows]
        learn = [c for i, c in enumerate(cases) if i not in held]
        watch = [c for i, c in enumerate(cases) if i in held]
        return self.learner.train(learn, watch, self.labels, seed=seed, on_step=lambda done, total: None)[0]

    def _chunks(self, rows: NDArray[np.intp]) -> Iterator[tuple[list[int], list[Any]]]:
        for at in range(0, len(rows), PREDICTED):
            chunk = [int(r) for r in rows[at : at + PREDICTED]]
            yield chunk, [self.scans.case(r, self.learner.image_size) for r in chunk]

    def _test(self, model: Path, rows: NDArray[np.intp]) -> dict[str, Any]:
        scores = []
        for chunk, cases in self._chunks(rows):
            masks = self.learner.masks(model, [c.scan for c in cases])
            for r, mask, case in zip(chunk, masks, cases, strict=True):
                spacing = self.spacing[r] if self.spacing else None
                scores.append(self.learner.compare(mask, case.mask, self.scans.classes, spacing))
        return self.learner.summarise(scores)

    def _ask(self, model: Path, rows: NDArray[np.intp], extra: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for _, cases in self._chunks(rows):
            found += self.learner.signals(model, [c.scan for c in cases], extra)
        return found

    def _signals(self, seed: int, part: Split, chosen: NDArray[np.intp], extra: str) -> dict[str, NDArray[np.float64]]:
        found = self._trained(seed, part, chosen, extra)[f"signals {extra}"]
        signals = {"entropy": np.array([one[self.comparison.uncertainty] for one in found])}
        if extra:
            signals[extra] = np.array([one[extra] for one in found])
        return signals

    # -- what was computed before -------------------------------------------------------------

    def _cell(self, name: str, ending: str) -> bytes | None:
        try:
            return (self.cells / f"{name}{ending}").read_bytes()
        except FileNotFoundError:
            return None

    def _put(self, name: str, ending: str, write: Callable[[Any], object]) -> None:
        """Written aside, then renamed: a process that is killed leaves nothing half."""
        with tempfile.NamedTemporaryFile(dir=self.cells, prefix="part-", delete=False) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, self.cells / f"{name}{ending}")


def run(
    comparison: Comparison, folder: Path, *, processes: int, cells: Path | None = None, progress: Progress
) -> list[dict[str, Any]]:
    """Train what is missing, and write `results.csv` and `picks.csv` into `folder`; returns the rows of the former.

    Both tables are written anew after every job, so there is something to look at before the end.

    processes  run at once, each with one thread; the figures do not depend on it
    cells      where finished trainings are kept; default: in `folder`. Comparisons on the same scans may share it
    progress   called as progress(jobs done, jobs, seconds left)

    Raises ScanqueueError when the folder holds another comparison, and whatever is wrong with the scans and tables.
    """
    groups = read(comparison)[1]  # here, so that its errors are met before any process is started
    for seed in comparison.seeds:
        checked_split(comparison, groups, seed)
    folder.mkdir(parents=True, exist_ok=True)
    _same_comparison(comparison, folder)
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
    _write_table(folder / "results.csv", COLUMNS, rows)
    _write_table(folder / "picks.csv", PICK_COLUMNS, [pick for _, picks in done for pick in picks])
    return rows


_bench: Bench | None = None


def _open(comparison: Comparison, cells: Path, parent: int) -> None:
    global _bench  # one for each process of the pool
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    _bench = Bench(comparison, cells)


def _end_with(parent: int) -> None:
    """A pool's process does not notice when the one that fills its queue is killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _clear(cells: Path) -> None:
    """Remove what killed processes left half written; nothing takes as long as that."""
    for path in [*cells.glob("model-*"), *cells.glob("part-*")]:
        if path.is_dir() or not path.suffix:
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _do(job: Job) -> Found:
    assert _bench is not None
    return _bench.run(job)


def _jobs(comparison: Comparison) -> list[Job]:
    """Repeat by repeat, so that an interrupted comparison has whole pairs."""
    jobs = []
    for seed in comparison.seeds:
        jobs.append(Job(ALL_LABELS, seed, ()))
        for name in comparison.strategies:
            if comparison.cold_start_only:
                jobs += [Job(name, seed, (budget,)) for budget in comparison.budgets]
            else:
                jobs.append(Job(name, seed, comparison.budgets))
    return jobs


def _same_comparison(comparison: Comparison, folder: Path) -> None:
    """Write down what is compared. Raises ScanqueueError when the folder holds something else."""
    asked = {k: _plain(v) for k, v in asdict(comparison).items()}
    file = folder / "comparison.json"
    if file.exists():
        there: Mapping[str, Any] = json.loads(file.read_text())
        differs = [k for k in asked if there.get(k) != asked[k]]
        if differs:
            raise ScanqueueError(
                f"{folder} holds another comparison ({differs[0]}: {there.get(differs[0])}, now {asked[differs[0]]}). "
                "Give the same options to go on with it, or another folder."
            )
        return
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps(asked, indent=1))
    os.replace(aside, file)


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
