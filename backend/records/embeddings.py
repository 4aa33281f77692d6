"""Embeddings of scans, by embedder and digest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from backend.records.database import VARIABLES, Database
from backend.records.tables import embedding_table


class EmbeddingRecords(Database):
    """Reads and writes the table `embedding`."""

    def put_embeddings(self, embedder: str, digests: Sequence[str], vectors: NDArray[np.float32]) -> None:
        rows = [
            {"embedder": embedder, "digest": d, "vector": np.ascontiguousarray(v, dtype="<f4").tobytes()}
            for d, v in zip(digests, vectors, strict=True)
        ]
        if rows:
            with self.write() as connection:
                self._upsert(connection, embedding_table, rows)

    def embedded(self, embedder: str) -> frozenset[str]:
        statement = select(embedding_table.c.digest).where(embedding_table.c.embedder == embedder)
        return frozenset(r["digest"] for r in self.rows(statement))

    def embeddings(self, embedder: str, digests: Sequence[str]) -> NDArray[np.float32]:
        """(N, D), N >= 1, one row per digest, in the given order; KeyError names a missing one.

        Memory besides the result: a few thousand embeddings, unless digests are repeated.
        """
        at = {digest: row for row, digest in enumerate(dict.fromkeys(digests))}
        wanted = list(at)
        found = np.empty((0, 0), dtype=np.float32)
        for start in range(0, len(wanted), VARIABLES):
            chunk = wanted[start : start + VARIABLES]
            here = (embedding_table.c.embedder == embedder, embedding_table.c.digest.in_(chunk))
            vectors = {r["digest"]: r["vector"] for r in self.rows(select(embedding_table).where(*here))}
            part = np.stack([np.frombuffer(vectors[d], dtype="<f4") for d in chunk])
            if not start:
                found = np.empty((len(wanted), part.shape[1]), dtype=np.float32)
            found[start : start + len(chunk)] = part
        return found if len(wanted) == len(digests) else found[[at[d] for d in digests]]
