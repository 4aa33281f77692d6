"""Validation of input arrays, with error messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.floating]
IntArray: TypeAlias = NDArray[np.intp]


BLOCK = 4_000_000  # numbers in memory, in addition to a large array, while it is checked


def finite_matrix(name: str, array: ArrayLike, *, columns: int | None = None) -> NDArray[np.float64]:
    """`array` as (N, D) float64, N >= 1 and D >= 1; a view where possible, so never write to it.

    Raises ValueError on a wrong shape, and on NaN or infinity with the row number.
    """
    return finite_rows(name, array, columns=columns).astype(np.float64, copy=False)


def finite_rows(name: str, array: ArrayLike, *, columns: int | None = None) -> FloatArray:
    """Like `finite_matrix`, but keeps float32 and float16, so that a large array is not copied."""
    matrix = np.asarray(array)
    if matrix.dtype not in (np.float32, np.float16):
        matrix = matrix.astype(np.float64, copy=False)
    wanted = f"(N, {'D' if columns is None else columns})"
    if matrix.ndim != 2 or 0 in matrix.shape or (columns is not None and matrix.shape[1] != columns):
        raise ValueError(f"{name}: got shape {matrix.shape}, wanted {wanted}, one row per scan and N >= 1")
    blocks = [~np.isfinite(matrix[rows]).all(axis=1) for rows in blocks_of(len(matrix), matrix.shape[1], BLOCK)]
    refuse_rows(name, np.concatenate(blocks))
    return matrix


def blocks_of(n: int, width: int, numbers: int) -> Iterator[slice]:
    """Slices of 0..n with at most `numbers` numbers each at `width` per row, but at least one row."""
    step = max(1, numbers // max(1, width))
    for begin in range(0, n, step):
        yield slice(begin, min(begin + step, n))


def refuse_rows(name: str, bad: NDArray[np.bool_], rows: IntArray | None = None) -> None:
    """Raise ValueError with the first row where `bad` is True; `rows` maps positions to row numbers."""
    positions = np.flatnonzero(bad)
    if len(positions):
        first = int(positions[0] if rows is None else rows[positions[0]])
        raise ValueError(
            f"{name}: row {first} contains NaN or infinity ({len(positions)} such row(s)); every number must be "
            "finite. Recompute this row or leave the scan out"
        )


def row_numbers(name: str, rows: Sequence[int] | IntArray, n: int) -> IntArray:
    """`rows` as an array of row numbers 0..n-1. Raises ValueError on anything else."""
    numbers = np.asarray(rows)
    if numbers.size == 0:
        return np.empty(0, dtype=np.intp)
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"{name}: got {numbers.dtype} of shape {numbers.shape}, wanted a list of whole row numbers")
    outside = numbers[(numbers < 0) | (numbers >= n)]
    if len(outside):
        raise ValueError(f"{name}: got row {int(outside[0])}, wanted 0 <= row < {n}, the number of rows")
    return numbers.astype(np.intp)


def whole_number(name: str, value: int, *, low: int, high: int | None = None) -> int:
    """`value` as int. Raises ValueError if it is not a whole number in low..high."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name}: got {value!r}, wanted a whole number")
    if value < low or (high is not None and value > high):
        wanted = f">= {low}" if high is None else f"in {low}..{high}"
        raise ValueError(f"{name}: got {value}, wanted a whole number {wanted}")
    return int(value)
