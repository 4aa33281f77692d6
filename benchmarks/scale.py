"""Whether scan selection scales to a million scans, and at what cost.

`compare`, `growth` and `place` measure the map, the clusters and the published order; `order` and `strategies` what
ships.

Embeddings are drawn by benchmarks/pools.py: 512 numbers of 32 bits, 12 unequal groups that overlap slightly.

- compare: the cold start with only scikit-learn (PCA, TSNE of all scans, k-means and the full silhouette for each k of
  2..20, then the same order), alternating with ours, at sizes that scikit-learn can handle. Its growth is fitted
  separately for the map and the clusters, and EXTRAPOLATED to 100,000, where ours is measured; one more size tests the
  fit. Silhouettes are computed over all rows, by scikit-learn: of each method's own clusters on its own map, of both
  methods' clusters on their map, and of both among the embeddings. "half placed" is ours with t-SNE for only half of
  the scans, as with 100,000. Every repetition has its own pool and seed; limits apply to the median over all pools.
- growth: ours in a separate process for each size, with its peak memory (VmHWM), including the embeddings.
- order: what the service computes for a round, with the default strategy (benchmarks/orders.py): the order of the cold
  start and the one with a model, each in a process of its own, at 10,000, 100,000 and 1,000,000 scans.
- strategies: the same by every strategy, at 10,000 and 100,000 scans, beside the default one.
- place: 1,000 later scans on the map of 100,000, compared with t-SNE of all 101,000 at once.

--only selects some of them. --keep FOLDER: cache of the results of separate processes, which are not measured again.
--quick: small pools, which show nothing about growth; about a minute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import orders
from benchmarks.cold_starts import QUALITIES, Clock, ColdStart, laying_out, ours, qualities, straightforward
from benchmarks.measure import Comparison, alternate, report, rounded, summary, timed
from benchmarks.peer_methods import memory
from benchmarks.pools import DIMENSIONS, embeddings, power_law, trustworthiness
from sampling import EmbeddingMap, choose_clusters, cold_start_order, fit_map

PARTS = ("compare", "growth", "order", "strategies", "place")
SEED = 1
RATIO, SILHOUETTE, RADIUS, TRUST = 0.25, 0.98, 1.05, 0.95
GIGABYTES, PLACE_SECONDS = 8.0, 10.0
COMPARED = {
    "compare": "scikit-learn: PCA, TSNE of all scans, k-means and the full silhouette for each k, then the same order; "
    "extrapolated from the sizes that it can handle",
    "growth": "8 GB",
    "order": "the same order of the smallest pool",
    "strategies": "the default strategy",
    "place": "t-SNE of all scans at once",
}
STRATEGY_SECONDS = 60.0  # of a processor


@dataclass(frozen=True)
class Sizes:
    compared: tuple[int, ...]
    check: int  # size that tests the fit
    target: int
    growth: tuple[int, ...]
    laid_out: int  # maximum number of scans for t-SNE
    ordered: tuple[int, ...]
    strategies: tuple[int, ...]
    later: int
    repetitions: int


TENS = (10_000, 100_000, 1_000_000)
FULL = Sizes((2_000, 5_000, 10_000), 20_000, 100_000, (20_000, 100_000, 1_000_000), 50_000, TENS, TENS[:2], 1_000, 2)
QUICK = Sizes((300, 600), 900, 2_000, (1_000, 2_000, 20_000), 1_000, (1_000, 2_000), (1_000,), 200, 1)


@dataclass
class Found:
    """Results of a part: table rows, figures, and whether each limit was met."""

    figures: dict[str, float]
    unit: str
    details: dict[str, Any]
    rows: list[list[object]] = field(default_factory=list)
    met: dict[str, bool] = field(default_factory=dict)


def compare(sizes: Sizes, folder: Path) -> Found:
    rows: list[list[object]] = []
    cases: list[dict[str, Any]] = []
    theirs: list[list[ColdStart]] = []
    ours(embeddings(400, seed=SEED), SEED), straightforward(embeddings(400, seed=SEED), SEED)  # trigger lazy loading
    for n in (*sizes.compared, sizes.check):
        _say(f"compare: {n} scans")
        us: list[ColdStart] = []
        them: list[ColdStart] = []
        repetitions = 1 if n == sizes.check else sizes.repetitions
        comparison = alternate(_next(ours, n, us), _next(straightforward, n, them), repetitions, warmup=0)
        theirs.append(them)
        found = [qualities(n, seed, *pair) for seed, pair in enumerate(zip(us, them, strict=True), SEED)]
        seconds = [float(np.median(column)) for column in (comparison.ours, comparison.theirs)]
        rows.append([f"{n} scans: seconds", *seconds, comparison.figures()["ratio"]])
        cases += [{"scans": n, "seconds": seconds, **case} for case in found]
    ratios = {name: [case[name][0] / case[name][1] for case in cases] for name in QUALITIES}
    middle = {name: rounded(np.median(found)) for name, found in ratios.items()}
    for name, each in ratios.items():
        spread = f"{min(each):.3g} .. {max(each):.3g} in {len(each)} pools"
        rows.append([name, spread, "", middle[name]])

    target = alone(sizes.target, sizes.laid_out, folder)
    totals, laws = [], []
    for repetition in range(sizes.repetitions):
        runs = [runs[repetition] for runs in theirs[:-1]]
        law = {part: power_law(sizes.compared, [run.seconds[part] for run in runs]) for part in ("map", "clusters")}
        laws.append({part: rounded(exponent) for part, (exponent, _) in law.items()})
        totals.append(tuple(_extrapolated(law, n) for n in (sizes.check, sizes.target)))
    check, extrapolated = (float(np.median(column)) for column in zip(*totals, strict=True))
    took = theirs[-1][0].total
    rows.append([f"{sizes.check} scans: their seconds as predicted by the fit", "", check, f"took {took:.4g}"])
    rows.append([f"{sizes.target} scans: seconds, theirs EXTRAPOLATED", target["seconds"]["all"], extrapolated, ""])
    figures = Comparison((target["seconds"]["all"],) * sizes.repetitions, tuple(t for _, t in totals)).figures()
    return Found(
        figures,
        f"our time for the cold start of {sizes.target} / scikit-learn's, extrapolated from at most "
        f"{sizes.compared[-1]} scans",
        {
            "cases": cases,
            "quality": {name: [middle[name], rounded(min(r)), rounded(max(r))] for name, r in ratios.items()},
            "exponents": laws,
            "check": {"scans": sizes.check, "fit_says": rounded(check), "took": rounded(took)},
            "extrapolated_seconds": rounded(extrapolated),
            "ours_seconds": target["seconds"],
        },
        rows,
        {
            f"at most {RATIO} of its time": figures["ratio"] <= RATIO,
            **{f"median of {name}, at least {SILHOUETTE}": middle[name] >= SILHOUETTE for name in QUALITIES[:-2]},
            **{f"median of {name}, at most {RADIUS}": middle[name] <= RADIUS for name in QUALITIES[-2:]},
        },
    )


def growth(sizes: Sizes, folder: Path) -> Found:
    runs = [alone(n, sizes.laid_out, folder) for n in sizes.growth]
    time_exponent, _ = power_law(sizes.growth, [run["seconds"]["all"] for run in runs])
    memory_exponent, _ = power_law(sizes.growth, [run["peak_bytes"] - run["before_bytes"] for run in runs])
    rows: list[list[object]] = []
    for n, run in zip(sizes.growth, runs, strict=True):
        steps = ", ".join(f"{step} {seconds:.3g}" for step, seconds in run["seconds"].items() if step != "all")
        rows.append([f"{n} scans: seconds ({steps})", run["seconds"]["all"], "", ""])
        rows.append([f"{n} scans: peak memory, GB (embeddings {run['rows_bytes'] / 1e9:.3g})", run["peak_gb"], "", ""])
    rows.append(["time grows with N to the power of", time_exponent, "", ""])
    rows.append(["memory, excluding the program itself, grows with N to the power of", memory_exponent, "", ""])
    peak = runs[-1]["peak_gb"]
    return Found(
        {"ratio": peak, "low": peak, "high": peak},
        f"peak memory in GB, {sizes.growth[-1]} scans",
        {"runs": runs, "exponents": {"time": rounded(time_exponent), "memory": rounded(memory_exponent)}},
        rows,
        {f"{sizes.growth[-1]} scans below {GIGABYTES:.0f} GB": peak < GIGABYTES},
    )


def ordering(sizes: Sizes, folder: Path) -> Found:
    kinds = [(kind, orders.default(kind)) for kind in (orders.COLD, orders.RANKED)]
    runs = {kind: [orders.measured(folder, n, [(kind, name)])[0] for n in sizes.ordered] for kind, name in kinds}
    rows: list[list[object]] = []
    for found in runs.values():
        for one in found:
            rows.append([f"{one.name}: seconds (processor {one.processor:.3g})", one.seconds, found[0].seconds, ""])
            rows[-1][-1] = one.seconds / found[0].seconds
            rows.append([f"{one.name}: peak memory, GB", one.gigabytes, "", ""])
    ratios = [found[1].processor / found[0].processor for found in runs.values()]
    least, most = (rounded(pick(ratios)) for pick in (min, max))
    peak = max(found[-1].gigabytes for found in runs.values())
    return Found(
        {"ratio": most, "low": least, "high": most},
        f"processor seconds for an order of {sizes.ordered[1]} scans / of {sizes.ordered[0]}, the higher of both kinds",
        {"runs": [vars(one) for found in runs.values() for one in found], "peak_gb": peak},
        rows,
        {f"orders of {sizes.ordered[-1]} scans below {GIGABYTES:.0f} GB": peak < GIGABYTES},
    )


def each_strategy(sizes: Sizes, folder: Path) -> Found:
    rows: list[list[object]] = []
    runs: list[orders.Ordered] = []
    for n in sizes.strategies:
        runs += orders.measured(folder, n, orders.every())
    usual = {(one.scans, one.kind): one for one in runs if one.strategy == orders.default(one.kind)}
    for one in runs:
        other = usual[one.scans, one.kind]
        told = f"{one.name}: seconds (processor {one.processor:.3g}, {one.gigabytes:.3g} GB), beside the default"
        rows.append([told, one.seconds, other.seconds, one.seconds / other.seconds])
    ratios = [one.processor / usual[one.scans, one.kind].processor for one in runs]
    slowest, hungriest = max(one.processor for one in runs), max(one.gigabytes for one in runs)
    return Found(
        dict(zip(("low", "ratio", "high"), map(rounded, np.percentile(ratios, (10, 50, 90))), strict=True)),
        "processor seconds of a strategy / of the default one",
        {"runs": [vars(one) for one in runs]},
        rows,
        {
            f"every strategy in less than {STRATEGY_SECONDS:.0f} processor s": slowest < STRATEGY_SECONDS,
            f"every strategy below {GIGABYTES:.0f} GB": hungriest < GIGABYTES,
        },
    )


def placing(sizes: Sizes, folder: Path) -> Found:
    n, later = sizes.target, embeddings(sizes.later, seed=SEED, later=True)
    alone(n, sizes.laid_out, folder)
    with np.load(map_file(n, sizes.laid_out, folder)) as arrays:
        there = EmbeddingMap.from_state(arrays)
    before = there.xy.copy()
    there.place(later[:1])  # trigger lazy loading
    placed: list[NDArray[np.float64]] = []
    seconds = timed(lambda: placed.append(there.place(later)))
    moved = not np.array_equal(before, there.xy)
    pool = np.concatenate([embeddings(n, seed=SEED), later])
    _say(f"place: t-SNE of all {len(pool)}")
    with laying_out(len(pool)):
        refit_seconds = timed(lambda: placed.append(fit_map(pool, seed=SEED).xy))
    new = range(n, n + sizes.later)
    ours_is, kept = trustworthiness(pool, np.concatenate([there.xy, placed[0]]), new)
    theirs_is, theirs_kept = trustworthiness(pool, placed[1], new)
    ratio = rounded(ours_is / theirs_is)
    name = f"{sizes.later} scans on a map of {n}"
    return Found(
        {"ratio": ratio, "low": ratio, "high": ratio},
        "trustworthiness of placed scans / of the same scans after t-SNE of all",
        {
            "trustworthiness": [rounded(ours_is), rounded(theirs_is)],
            "neighbours_kept": [rounded(kept), rounded(theirs_kept)],
            "seconds": rounded(seconds),
            "refit_seconds": rounded(refit_seconds),
            "moved": moved,
        },
        [
            [f"{name}: seconds, placed / t-SNE of all", seconds, refit_seconds, seconds / refit_seconds],
            [f"{name}: trustworthiness", ours_is, theirs_is, ratio],
            [f"{name}: share of 10 neighbours that are nearest embeddings", kept, theirs_kept, kept / theirs_kept],
            [f"{name}: old scans moved", "some" if moved else "none", "all", ""],
        ],
        {
            "no old scan moved": not moved,
            f"placed in less than {PLACE_SECONDS} s": seconds < PLACE_SECONDS,
            f"trustworthiness at least {TRUST} of the refit's": ratio >= TRUST,
        },
    )


@cache
def alone(n: int, laid_out: int, folder: Path) -> dict[str, Any]:
    """Ours for `n` scans in a separate process: seconds, bytes; its map is in `map_file`."""
    _say(f"ours: {n} scans")
    kept = map_file(n, laid_out, folder)
    answer = kept.with_suffix(".json")
    if not answer.exists():
        command = [sys.executable, "-m", "benchmarks.scale", "--alone", str(n), str(laid_out), str(kept)]
        answer.write_text(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def map_file(n: int, laid_out: int, folder: Path) -> Path:
    return folder / f"{n}-{laid_out}.npz"


def measure_alone(n: int, laid_out: int, kept: Path) -> None:
    """The separate process that `alone` starts. Prints one line of JSON."""
    import openTSNE  # noqa: F401  # loaded now: baseline memory, independent of n
    import sklearn.cluster  # noqa: F401

    before = memory("VmRSS")
    rows = embeddings(n, seed=SEED)
    clock = Clock()
    with laying_out(laid_out):
        found = fit_map(rows, seed=SEED)
    clock.stop("map")
    clustering = choose_clusters(found.xy, seed=SEED)
    clock.stop("clusters")
    cold_start_order(found.xy, clustering)
    clock.stop("order")
    peak = memory("VmHWM")
    np.savez(kept, allow_pickle=True, **found.state())
    answer = {
        "scans": n,
        "seconds": {k: rounded(v) for k, v in (clock.seconds | {"all": sum(clock.seconds.values())}).items()},
        "before_bytes": before,
        "rows_bytes": rows.nbytes,
        "peak_bytes": peak,
        "peak_gb": rounded(peak / 1e9),
        "k": clustering.k,
    }
    print(json.dumps(answer))


def main() -> None:
    parser = argparse.ArgumentParser(description="From a few thousand scans to a million.")
    parser.add_argument("--quick", action="store_true", help="small pools; under a minute")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--keep", metavar="FOLDER", help="cache of the results of separate processes")
    parser.add_argument("--alone", nargs=3, metavar=("N", "LAID_OUT", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        measure_alone(int(given.alone[0]), int(given.alone[1]), Path(given.alone[2]))
        return
    sizes = QUICK if given.quick else FULL
    parts: dict[str, Callable[[Sizes, Path], Found]] = {
        "compare": compare,
        "growth": growth,
        "order": ordering,
        "strategies": each_strategy,
        "place": placing,
    }
    with tempfile.TemporaryDirectory(prefix="scanqueue-scale-") as temporary:
        folder = Path(given.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = {name: part(sizes, folder) for name, part in parts.items() if name in given.only}
    first = next(iter(found.values()))
    wanted = {what: ok for part in found.values() for what, ok in part.met.items()}
    # Small pools show nothing about the comparisons, which concern growth.
    met = all(
        found[name].met[what] for name in found if not (given.quick and name == "compare") for what in found[name].met
    )
    report(
        f"Choosing from {sizes.target} to {sizes.growth[-1]} scans, {DIMENSIONS} dimensions",
        ["", "ours", "compared with", "ratio"],
        [row for part in found.values() for row in part.rows],
        summary(
            first.figures,
            unit=first.unit,
            compared=COMPARED[next(iter(found))],
            sizes={"growth": sizes.growth, "dimensions": DIMENSIONS, "laid_out": sizes.laid_out},
            wanted=wanted,
            met=met,
            parts={name: {"figures": part.figures, "unit": part.unit, **part.details} for name, part in found.items()},
        ),
        note="\n".join(f"{'met' if ok else 'NOT met'}: {what}" for what, ok in wanted.items()),
    )
    if not met:
        raise SystemExit(1)


def _next(way: Callable[[NDArray[np.float32], int], ColdStart], n: int, into: list[ColdStart]) -> Callable[[], float]:
    """A function that runs `way` on the next pool of n scans, with a new seed each time, and returns the seconds."""

    def call() -> float:
        seed = SEED + len(into)
        into.append(way(embeddings(n, seed=seed), seed))
        return into[-1].total

    return call


def _extrapolated(law: dict[str, tuple[float, float]], n: int) -> float:
    return float(sum(factor * n**exponent for exponent, factor in law.values()))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
