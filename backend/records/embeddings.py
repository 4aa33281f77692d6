"""Embeddings of scans, by embedder and digest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, select

from backend.errors import LostEmbeddings
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

    def embeddings(self, embedder: str, digests: Sequence[str], width: int = 0) -> NDArray[np.float32]:
        """(N, D), one row per digest, in the given order.

        width  D, where it is known: of the map that they belong to; 0: as most of them

        Damaged ones are deleted. Raises LostEmbeddings for these and missing ones.
        """
        columns, found = (embedding_table.c.digest, embedding_table.c.vector), np.zeros((len(digests), 0), np.float32)
        for start in range(0, len(digests), VARIABLES):
            chunk = digests[start : start + VARIABLES]
            here = (embedding_table.c.embedder == embedder, embedding_table.c.digest.in_(chunk))
            read: dict[str, bytes] = dict(self._tuples(select(*columns).where(*here)))
            width = width or Counter(map(len, read.values())).most_common(1)[0][0] // 4 if read else width
            if not start:
                found = np.empty((len(digests), width), np.float32)
            part = found[start : start + len(chunk)]
            for row, digest in zip(part, chunk, strict=True):
                vector = read.get(digest, b"")
                row[:] = np.frombuffer(vector, dtype="<f4") if len(vector) == 4 * width else np.nan
            known = np.all(np.isfinite(part), axis=1, keepdims=True)[:, 0]
            if bad := [digest for digest, is_known in zip(chunk, known, strict=True) if not (width and is_known)]:
                self._lost(embedder, bad)
        return found

    def _lost(self, embedder: str, digests: Sequence[str]) -> NoReturn:
        here = (embedding_table.c.embedder == embedder, embedding_table.c.digest.in_(digests))
        with self.write() as connection:
            connection.execute(delete(embedding_table).where(*here))
        raise LostEmbeddings(
            f"The embeddings of {len(digests)} scans in the records are missing or damaged, such as that of the file "
            f"{digests[0]}. They are computed again."
        )
