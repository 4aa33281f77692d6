"""Our strategies beside those of scikit-activeml, small-text and MONAI Label: time and memory, in one run.

The peers are no dependency of ours. Install them in environments of their own; MONAI Label needs an older NumPy:

    uv venv peers && uv pip install --python peers/bin/python scikit-activeml small-text
    uv venv monai && uv pip install --python monai/bin/python monailabel
    python -m benchmarks.peers --peers peers/bin/python --monai monai/bin/python

Every method runs in a process of its own with one thread, on the same embeddings (benchmarks/pools.py, length 1, 32
bits), 10 of them labelled, with the defaults of its library, and picks as many. Loading libraries and the file is not
counted. k-center, TypiClust and ProbCover are called by their names in our registry; `medoids`, our default, is
compared with all of them. small-text has k-center only.

MONAI Label gives one scan per request: the highest stored entropy among those served longest ago. Its own strategy and
its own datastore (a folder) do that here, as often as there are picks; its server and the reading of the datastore at
its start are left out, and its `k` is set (see peer_methods.py). Ours is one order (`backend.loop.order.order`) of all
scans from a SQLite store: `entropy`, and `power-entropy`, the default. Stored entropies are given to both; the passes
that compute them are not measured.

The ratio is theirs / ours in processor seconds, which other programs on the machine hardly lengthen, the least of all
pairs. Memory is what a method needs beside its libraries and the embeddings. Without `--peers` or `--monai`, those rows
are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import orders
from benchmarks.measure import report, rounded, summary
from benchmarks.peer_methods import LABELLED, METHODS
from benchmarks.pools import DIMENSIONS, embeddings, unit

SCANS, PICKS, SEED = 20_000, 20, 1
LIMIT = 5.0
SCRIPT = Path(__file__).with_name("peer_methods.py")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
DEFAULT = "medoids"

Found = Mapping[str, Any]


def run(python: str, method: str, file: Path, picks: int, *more: int) -> Found:
    """The answer of peer_methods.py. Raises SystemExit with its error."""
    print(method, file=sys.stderr, flush=True)
    root = str(SCRIPT.parents[1])
    env = os.environ | dict.fromkeys(THREADS, "1") | ({"PYTHONPATH": root} if python == sys.executable else {})
    command = [python, str(SCRIPT), method, str(file), str(picks), str(SEED), *map(str, more)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{method}: {done.stderr[-2000:]}\nIs the library installed there? See --help.")
    found: Found = json.loads(done.stdout.splitlines()[-1])
    assert len(set(found["rows"])) == picks, method
    return found


def grown(found: Found) -> float:
    """Gigabytes that a method needed besides libraries and embeddings; at least a megabyte."""
    return max(1e-3, float(found["peak"] - found["before"]) / 1e9)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter with scikit-activeml and small-text")
    parser.add_argument("--monai", metavar="PYTHON", help="interpreter with monailabel")
    parser.add_argument("--scans", type=int, default=SCANS)
    parser.add_argument("--picks", type=int, default=PICKS)
    parser.add_argument("--only", nargs="+", default=[], help="methods of peer_methods.py and monai-epistemic")
    options = parser.parse_args()
    if not (options.peers or options.monai):
        parser.error("nothing to compare with; wanted --peers PYTHON or --monai PYTHON, see above")
    with tempfile.TemporaryDirectory(prefix="scanqueue-peers-") as temporary:
        rows, pairs = compared(options, Path(temporary))
    worst = min(pairs, key=lambda name: pairs[name])
    met = pairs[worst] >= LIMIT
    report(
        f"{options.picks} picks from {options.scans:,} scans, {DIMENSIONS} dimensions, one thread each",
        ("ours / theirs", "times faster", "processor s", "seconds", "GB", "times less"),
        rows,
        summary(
            {"ratio": pairs[worst], "low": pairs[worst], "high": max(pairs.values())},
            unit="processor seconds of the peer / ours, the least of all pairs",
            compared=worst,
            sizes={"scans": options.scans, "picks": options.picks, "labelled": LABELLED},
            limit=LIMIT,
            met=met,
            pairs=pairs,
        ),
    )
    return 0 if met else 1


def compared(options: argparse.Namespace, folder: Path) -> tuple[list[list[object]], dict[str, float]]:
    """Table rows, and how many times faster ours is in each pair."""
    rows: list[list[object]] = []
    pairs: dict[str, float] = {}

    def add(name: str, us: Found, them: Found) -> None:
        pairs[name] = rounded(them["processor"] / us["processor"])
        seconds, processor = ([rounded(found[what]) for found in (us, them)] for what in ("seconds", "processor"))
        memory = [rounded(grown(found)) for found in (us, them)]
        both = [" / ".join(f"{value:g}" for value in values) for values in (processor, seconds, memory)]
        rows.append([name, pairs[name], *both, memory[1] / memory[0]])
        print(*rows[-1], sep=", ", file=sys.stderr, flush=True)

    if options.peers:
        file = folder / "embeddings.npy"
        np.save(file, unit(embeddings(options.scans, seed=SEED)).astype(np.float32))
        default = run(sys.executable, f"{DEFAULT} ours", file, options.picks)
        for method in METHODS:
            name, library = method.split()
            if library != "ours" and (not options.only or method in options.only):
                us = run(sys.executable, f"{name} ours", file, options.picks)
                them = run(options.peers, method, file, options.picks)
                add(f"{name} / {library}", us, them)
                add(f"{DEFAULT} (default) / {library}'s {name}", default, them)
    if options.monai and (not options.only or "monai-epistemic" in options.only):
        them = run(options.monai, "monai-epistemic", folder / "monai", options.picks, options.scans)
        wanted = [(orders.RANKED, "entropy"), (orders.RANKED, orders.default(orders.RANKED))]
        for one in orders.measured(folder, options.scans, wanted):
            us = {"seconds": one.seconds, "processor": one.processor, "before": one.before, "peak": one.peak}
            add(f"order with {one.strategy} / MONAI Label's epistemic", us, them)
    return rows, pairs


if __name__ == "__main__":
    raise SystemExit(main())
