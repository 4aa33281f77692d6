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
        """(N, D), one row per digest, in the given order; KeyError names a missing one."""
        found: dict[str, bytes] = {}
        wanted = list(dict.fromkeys(digests))
        for start in range(0, len(wanted), VARIABLES):
            chunk = wanted[start : start + VARIABLES]
            here = (embedding_table.c.embedder == embedder, embedding_table.c.digest.in_(chunk))
            found.update({r["digest"]: r["vector"] for r in self.rows(select(embedding_table).where(*here))})
        return np.stack([np.frombuffer(found[d], dtype="<f4") for d in digests]).astype(np.float32)
