"""Shared by all benchmarks: two alternating methods, their ratio, a table for people, one JSON line for programs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import t

from backend.simulate.statistics import Interval

LOW, HIGH = 10, 90
INTERVAL = f"{LOW}th to {HIGH}th percentile of the paired ratios"


@dataclass(frozen=True)
class Comparison:
    """Seconds of two methods, measured in pairs: ours[i] and theirs[i] directly after each other."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.ours or len(self.ours) != len(self.theirs):
            raise ValueError(f"a comparison needs pairs, got {len(self.ours)} and {len(self.theirs)} times")
        if min(*self.ours, *self.theirs) <= 0:
            raise ValueError("times must be above 0")

    @property
    def ratios(self) -> tuple[float, ...]:
        """ours / theirs of each pair; a disturbance that outlasts a pair affects both."""
        return tuple(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def inverted(self) -> Comparison:
        """theirs / ours: how many times faster ours is."""
        return Comparison(self.theirs, self.ours)

    def figures(self) -> dict[str, float]:
        """{ratio, low, high}: median, 10th and 90th percentile of the paired ratios."""
        low, middle, high = np.percentile(self.ratios, (LOW, 50, HIGH))
        return {"ratio": rounded(middle), "low": rounded(low), "high": rounded(high)}


def alternate(
    ours: Callable[[], float], theirs: Callable[[], float], repetitions: int, *, warmup: int = 1
) -> Comparison:
    """Alternate the two methods and which of them goes first; each returns its own seconds.

    The first `warmup` pairs are run, but not counted.
    """
    pairs = []
    for number in range(warmup + repetitions):
        if number % 2:
            second = theirs()
            pairs.append((ours(), second))
        else:
            first = ours()
            pairs.append((first, theirs()))
    counted = pairs[warmup:]
    return Comparison(tuple(a for a, _ in counted), tuple(b for _, b in counted))


def timed(call: Callable[[], object]) -> float:
    """Wall time of one call, in seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """{median, p99, max} in milliseconds."""
    middle, high = np.percentile(seconds, (50, 99))
    return {
        "median_ms": rounded(middle * 1000),
        "p99_ms": rounded(high * 1000),
        "max_ms": rounded(max(seconds) * 1000),
    }


def t_interval(values: Sequence[float]) -> Interval:
    """The mean of independent values with its 95 % interval by Student's t; without an interval for a single value."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Interval(mean, None, None, n)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)
    return Interval(mean, mean - half, mean + half, n)


def rounded(value: Any) -> float:
    """Four significant digits."""
    return float(f"{float(value):.4g}")


def summary(
    figures: Mapping[str, float], *, unit: str, compared: str, sizes: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """The object on the last line: {ratio, low, high, unit, compared, sizes, ..., machine}."""
    machine = {"cores": os.cpu_count(), "load": [round(x, 1) for x in os.getloadavg()]}
    return {
        **{name: figures[name] for name in ("ratio", "low", "high")},
        "unit": unit,
        "compared": compared,
        "interval": INTERVAL,
        "sizes": dict(sizes),
        **more,
        "machine": machine,
    }


def report(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], found: Mapping[str, Any], *, note: str = ""
) -> None:
    """Print the table, then `found` as one line of JSON, the last line."""
    console = Console(highlight=False)
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row])
    console.print(table)
    if note:
        console.print(note, markup=False)
    print(json.dumps(found, allow_nan=False), flush=True)
