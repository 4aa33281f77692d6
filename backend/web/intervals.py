"""Means and medians with 95 % intervals: bootstrap percentiles (Efron 1979), None for fewer than two values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000  # bootstrap samples
SEED = 0
MANY = 1000  # number of values above which the interval is computed instead of resampled


def median(values: Iterable[float | None]) -> dict[str, Any]:
    """{median, low, high, n} of the known values."""
    found = _known(values)
    if len(found) > MANY:  # close to resampling, at a fraction of its cost (David & Nagaraja 2003)
        shift = 0.98 / len(found) ** 0.5  # in the rank
        ends: NDArray[Any] = np.quantile(found, [0.5 - shift, 0.5 + shift])
    else:
        ends = _resampled(found, np.median)
    return {"median": round(float(np.median(found)), 2) if len(found) else None} | _row(found, ends)


def mean(values: Iterable[float | None]) -> dict[str, Any]:
    """{mean, low, high, n} of the known values."""
    found = _known(values)
    if len(found) > MANY:
        ends = found.mean() + np.array([-1.96, 1.96]) * found.std(ddof=1) / len(found) ** 0.5
    else:
        ends = _resampled(found, np.mean)
    return {"mean": round(float(found.mean()), 6) if len(found) else None} | _row(found, ends)


def _known(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([value for value in values if value is not None], dtype=np.float64)


def _resampled(values: NDArray[np.float64], of: Callable[..., Any]) -> NDArray[np.float64]:
    if len(values) < 2:
        return np.empty(0)
    rows = np.random.default_rng(SEED).integers(len(values), size=(RESAMPLES, len(values)))
    ends: NDArray[np.float64] = np.percentile(of(values[rows], axis=1), [2.5, 97.5])
    return ends


def _row(values: NDArray[np.float64], ends: NDArray[Any]) -> dict[str, Any]:
    low, high = (round(float(end), 6) for end in ends) if len(ends) else (None, None)
    return {"low": low, "high": high, "n": len(values)}
