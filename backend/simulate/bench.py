"""One process of a comparison: selects scans, trains and tests models, and caches the results."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.facts import validation_rows
from backend.fingerprints import fingerprint
from backend.formats.pixels import classes_in
from backend.json_text import parse_json
from backend.learning.averages import of_scores
from backend.learning.learner import Learner
from backend.simulate.labelled import Labelled
from backend.simulate.plan import Comparison, Job, Split, checked_split, group_names, read
from backend.simulate.results import ALL_LABELS, LABEL_COLUMN, RATE_COLUMNS
from sampling import (
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

T = TypeVar("T")
Found = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # rows of results.csv, rows of picks.csv
PREDICTED = 16  # maximum number of scans in memory during prediction


@dataclass
class Bench:
    """One process's view of a comparison: the scans, the learner and the cached results."""

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
        """Returns (rows of results.csv, rows of picks.csv)."""
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
                    replace(pool, signals=signals),
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
        """The pool as a strategy sees it, with embeddings, map and clusters computed as in the service."""
        vectors = self._embeddings()[part.pool]
        name = fingerprint("map", self.embedder, [self.scans.digests[r] for r in part.pool], seed)
        found = self._cell(name, ".npz", _clustered_map)
        if found is None:
            xy = fit_map(vectors, seed=seed).xy
            clustering = choose_clusters(xy, seed=seed)
            self._put(
                name,
                ".npz",
                lambda file: np.savez(file, xy=xy, labels=clustering.labels, medoids=clustering.medoids),
            )
        else:
            xy, clustering = found
        strata = None if self.strata is None else self.strata[part.pool]
        return Pool(xy, clustering, vectors, strata, groups=self.groups[part.pool])

    def _embeddings(self) -> NDArray[np.float32]:
        name = fingerprint("embeddings", self.embedder, self.scans.digests)
        found: NDArray[np.float32] | None = self._cell(name, ".npy", lambda raw: np.load(io.BytesIO(raw)))
        if found is None:
            vectors = self.learner.embed(self.scans.images)
            self._put(name, ".npy", lambda file: np.save(file, vectors))
            return vectors
        return found

    def _row(self, job: Job, budget: int, part: Split, chosen: NDArray[np.intp]) -> dict[str, Any]:
        found = self._trained(job.seed, part, chosen)["test"]
        embedder = "" if job.strategy == ALL_LABELS else self.embedder
        row = {"strategy": job.strategy, "embedder": embedder, "seed": job.seed, "budget": budget}
        row |= {"labels": len(chosen), "n_test": found["n"] + found["n_empty"]}
        row |= {name: found[name] for name in ("dice", "hd", "hd95", "unit", *RATE_COLUMNS)}
        return row | {LABEL_COLUMN: json.dumps(found["per_label"])}

    # -- trainings ----------------------------------------------------------------------------

    def _recipe(self, seed: int, part: Split, chosen: NDArray[np.intp]) -> list[Any]:
        """Everything that determines a model and its test scores."""
        learn = sorted(self.scans.names[r] for r in part.pool[chosen])
        test = [self.scans.names[r] for r in part.test]
        named = [self.named[r] for r in sorted(part.pool[chosen], key=lambda r: self.scans.names[r])]
        more = [named] if any(named) else []  # groups determine the validation scans
        return [self.scans.fingerprint, learn, test, self.learner.describe_training(seed), self.spacing, *more]

    def _trained(self, seed: int, part: Split, chosen: NDArray[np.intp], extra: str | None = None) -> dict[str, Any]:
        """Test scores of the model trained on these pool rows; with `extra` also its uncertainty for the whole pool."""
        name = fingerprint("model", *self._recipe(seed, part, chosen))
        kept: dict[str, Any] = self._cell(name, ".json", _object) or {}
        if "per_label" not in kept.get("test", {}):  # an older version averaged over other scans
            kept.pop("test", None)
        if "test" in kept and (extra is None or f"signals {extra}" in kept):
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
        shown = [classes_in(self.scans.masks[r]) for r in rows]
        held = validation_rows([self.scans.digests[r] for r in rows], [self.named[r] for r in rows], shown)
        size = self.learner.working_size((self.scans.masks[r] for r in rows), self.scans.classes)
        cases = [self.scans.case(r, size) for r in rows]
        learn = [c for i, c in enumerate(cases) if i not in held]
        watch = [c for i, c in enumerate(cases) if i in held]
        return self.learner.train(learn, watch, self.labels, seed=seed, on_step=lambda done, total: None)[0]

    def _chunks(self, model: Path, rows: NDArray[np.intp]) -> Iterator[tuple[list[int], list[Any]]]:
        size = self.learner.image_size_of(model)
        for at in range(0, len(rows), PREDICTED):
            chunk = [int(r) for r in rows[at : at + PREDICTED]]
            yield chunk, [self.scans.case(r, size) for r in chunk]

    def _test(self, model: Path, rows: NDArray[np.intp]) -> dict[str, Any]:
        scores = []
        for chunk, cases in self._chunks(model, rows):
            masks = self.learner.masks(model, [c.scan for c in cases])
            for r, mask, case in zip(chunk, masks, cases, strict=True):
                spacing = self.spacing[r] if self.spacing else None
                scores.append(self.learner.compare(mask, case.mask, self.scans.classes, spacing))
        return of_scores(scores, self.labels)

    def _ask(self, model: Path, rows: NDArray[np.intp], extra: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for _, cases in self._chunks(model, rows):
            found += self.learner.signals(model, [c.scan for c in cases], extra)
        return found

    def _signals(self, seed: int, part: Split, chosen: NDArray[np.intp], extra: str) -> dict[str, NDArray[np.float64]]:
        found = self._trained(seed, part, chosen, extra)[f"signals {extra}"]
        signals = {"entropy": np.array([one[self.comparison.uncertainty] for one in found])}
        if extra:
            signals[extra] = np.array([one[extra] for one in found])
        return signals

    # -- cache --------------------------------------------------------------------------------

    def _cell(self, name: str, ending: str, read: Callable[[bytes], T]) -> T | None:
        """What `read` makes of a cached result; None if it is missing or damaged, so that it is computed again."""
        try:
            return read((self.cells / f"{name}{ending}").read_bytes())
        except (FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def _put(self, name: str, ending: str, write: Callable[[Any], object]) -> None:
        """Write to a temporary file, then rename it, so that a killed process leaves no partial entry."""
        with tempfile.NamedTemporaryFile(dir=self.cells, prefix="part-", delete=False) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, self.cells / f"{name}{ending}")


def _clustered_map(raw: bytes) -> tuple[NDArray[np.float64], Clustering]:
    """The map and the clusters in a file. Raises ValueError or KeyError if they are damaged."""
    arrays = np.load(io.BytesIO(raw))
    return arrays["xy"], Clustering(arrays["labels"], arrays["medoids"], {}, 0)


def _object(raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError for anything else."""
    found = parse_json(raw)
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    return found
