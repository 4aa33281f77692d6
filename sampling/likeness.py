"""Scans that look like given ones: which scans could show what few labelled scans show."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import FloatArray, IntArray


def alike(candidates: FloatArray, examples: FloatArray, others: FloatArray) -> IntArray:
    """Rows of the candidates whose nearest labelled scan is an example, the most similar to an example first.

    Similarity is the cosine of two embeddings. The rule is that of the nearest neighbour (Cover & Hart 1967), so it
    corrects itself: a scan that was chosen in vain becomes one of `others`, and its neighbours are left out. Ties
    between an example and another scan count for the example; equally similar candidates keep their order.

    candidates  (K, D), finite
    examples    (E, D), E >= 1: embeddings of scans that show it
    others      (O, D), O >= 0: of scans that do not

    Raises ValueError on other shapes, and without examples.

    >>> alike(np.array([[0, 1.0], [1, 1], [9, 1]]), np.array([[1.0, 0]]), np.array([[0.0, 1]]))
    array([2, 1])
    """
    parts = [np.asarray(part, dtype=np.float64) for part in (candidates, examples, others)]
    if any(part.ndim != 2 or part.shape[1] != parts[0].shape[1] for part in parts) or not len(parts[1]):
        shapes = ", ".join(str(part.shape) for part in parts)
        raise ValueError(f"candidates, examples, others: got {shapes}, wanted (K, D), (E, D), (O, D) with E >= 1")
    rows, there, absent = (_unit(part) for part in parts)
    nearest = (rows @ there.T).max(axis=1)
    found = np.flatnonzero(nearest >= (rows @ absent.T).max(axis=1, initial=-np.inf))
    return found[np.argsort(-nearest[found], kind="stable")]


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rows at length 1; all-zero ones stay zero."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    found: NDArray[np.float64] = rows / np.where(length > 0, length, 1)
    return found
