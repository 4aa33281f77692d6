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
        return frozenset(digest for (digest,) in self._tuples(statement))

    def embeddings(self, embedder: str, digests: Sequence[str]) -> NDArray[np.float32]:
        """(N, D), one row per digest, in the given order; KeyError names a missing one."""
        columns, found = (embedding_table.c.digest, embedding_table.c.vector), np.zeros((len(digests), 0), np.float32)
        for start in range(0, len(digests), VARIABLES):
            chunk = digests[start : start + VARIABLES]
            here = (embedding_table.c.embedder == embedder, embedding_table.c.digest.in_(chunk))
            read: dict[str, bytes] = dict(self._tuples(select(*columns).where(*here)))
            part = np.stack([np.frombuffer(read[digest], dtype="<f4") for digest in chunk])
            if not start:
                found = np.empty((len(digests), part.shape[1]), np.float32)
            found[start : start + len(chunk)] = part
        return found
