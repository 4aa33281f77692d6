"""The input of a strategy: the scans of one project as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import FloatArray, IntArray, finite_matrix, refuse_rows, row_numbers, whole_number
from sampling.clustering import Clustering

BLOCK = 4_000_000  # numbers worked on at once

Space: TypeAlias = Literal["map", "embedding"]


@dataclass(frozen=True, eq=False)
class Pool:
    """N scans, labelled ones included; row i is the same scan in every array. Never modified.

    xy          (N, 2), finite, positions on the map
    clustering  clustering of that map
    embeddings  (N, D), finite; distances are between rows scaled to length 1. None: only strategies on the map
                work
    strata      (N,) whole numbers, equal for scans of the same site, scanner or protocol; None: unknown
    groups      (N,) whole numbers, equal for scans of the same patient or volume: strategies in `GROUPED` give each
                group one pick before any gets a second one. None: unknown, or not wanted
    signals     uncertainty by name: "entropy" (N,); "classes" (N, labels), the entropy of each label;
                "disagreement" (N,), 1 - mean pairwise Dice. High = uncertain; any value (even NaN) in labelled rows

    Raises ValueError on shapes that do not match, and on NaN with its row.
    """

    xy: FloatArray
    clustering: Clustering
    embeddings: FloatArray | None = None
    strata: IntArray | None = None
    signals: Mapping[str, FloatArray] = field(default_factory=dict)
    groups: IntArray | None = None

    def __post_init__(self) -> None:
        n = len(finite_matrix("xy", self.xy, columns=2))
        parts = {"clustering": self.clustering.labels, "embeddings": self.embeddings, "strata": self.strata}
        parts["groups"] = self.groups
        for name, array in {**parts, **self.signals}.items():
            if array is not None and len(array) != n:
                raise ValueError(f"{name}: has {len(array)} rows, but xy has {n}. Compute it for the same scans")

    def __len__(self) -> int:
        return len(self.xy)

    def points(self, space: Space) -> FloatArray:
        """(N, 2) positions on the map, or (N, D) embeddings of length 1 (an all-zero one stays zero)."""
        if space == "map":
            return self.xy
        if self.embeddings is None:
            raise ValueError("embeddings: this strategy works in the embedding space, but the pool has none")
        rows = np.asarray(self.embeddings)
        if rows.ndim != 2 or rows.shape[1] == 0:
            raise ValueError(f"embeddings: got shape {rows.shape}, wanted (N, D), one row per scan")
        unit: FloatArray = np.empty(rows.shape, rows.dtype if rows.dtype == np.float32 else np.float64)
        tiny = float(np.finfo(unit.dtype).tiny) ** 0.5
        step = max(1, BLOCK // rows.shape[1])
        for begin in range(0, len(rows), step):  # limits memory for a million embeddings
            part = rows[begin : begin + step].astype(unit.dtype, copy=False)
            with np.errstate(over="ignore", invalid="ignore"):
                squares = np.einsum("nd,nd->n", part, part)
            unsafe = np.flatnonzero(~((squares > tiny) & (squares < 1 / tiny)))  # zero, inexact, or not finite
            finite = np.isfinite(part[unsafe])
            refuse_rows("embeddings", ~np.all(finite, axis=1, keepdims=True)[:, 0], begin + unsafe)
            scale = np.sqrt(np.where(squares > 0, squares, 1))
            np.divide(part, scale[:, None], out=unit[begin : begin + step])
            if len(unsafe):
                largest = np.abs(part[unsafe]).max(axis=1, keepdims=True)
                scaled = part[unsafe] / np.where(largest > 0, largest, 1)
                length = np.linalg.norm(scaled, axis=1, keepdims=True)
                unit[begin + unsafe] = scaled / np.where(length > 0, length, 1)
        return unit

    def signal(self, name: str, unlabelled: IntArray) -> NDArray[np.float64]:
        """A signal of the unlabelled rows. Raises ValueError if it is missing, or NaN there, with the row."""
        if name not in self.signals:
            raise ValueError(f"signals: this strategy needs {name!r}, the pool has {sorted(self.signals)}")
        values = np.asarray(self.signals[name], dtype=np.float64)[unlabelled]
        finite = np.isfinite(values.reshape(len(values), int(np.prod(values.shape[1:]))))
        refuse_rows(name, ~np.all(finite, axis=1, keepdims=True)[:, 0], unlabelled)
        return values

    def split(self, chosen: Sequence[int] | IntArray, count: int) -> tuple[IntArray, IntArray, int]:
        """(chosen rows once each, all others, how many of those can be picked if `count` are requested)."""
        taken = np.unique(row_numbers("chosen", chosen, len(self)))
        rest = np.setdiff1d(np.arange(len(self)), taken)
        return taken, rest, min(whole_number("count", count, low=0), len(rest))
