"""How uncertain models are about scans, by model fingerprint and digest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select

from backend.records.database import VARIABLES, Database, to_json
from backend.records.tables import uncertainty_table


class UncertaintyRecords(Database):
    """Reads and writes the table `uncertainty`."""

    def put_uncertainty(self, model: str, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Write what a model said of scans, by digest: {"image": number, name: number or numbers, ...}.

        Signals that are there and were not asked for this time stay: two projects may share a model.
        """
        with self.write() as connection:
            for start in range(0, len(found), VARIABLES):
                chunk = sorted(found)[start : start + VARIABLES]
                here = (uncertainty_table.c.model == model, uncertainty_table.c.digest.in_(chunk))
                old = connection.execute(select(uncertainty_table.c.digest, uncertainty_table.c.more).where(*here))
                had = {digest: json.loads(more or "{}") for digest, more in old}
                rows = []
                for digest in chunk:
                    more = had.get(digest, {}) | {k: v for k, v in found[digest].items() if k != "image"}
                    row = {"model": model, "digest": digest, "value": found[digest]["image"]}
                    rows.append(row | {"more": to_json(more)})
                self._upsert(connection, uncertainty_table, rows)

    def image_entropies(self, model: str) -> dict[str, float]:
        """The mean entropy of scans under a model, by digest."""
        columns = (uncertainty_table.c.digest, uncertainty_table.c.value)
        return dict(self._tuples(select(*columns).where(uncertainty_table.c.model == model)))

    def uncertainty(self, model: str) -> dict[str, dict[str, Any]]:
        """All that a model said of scans, by digest; "image" is what `image_entropies` gives."""
        rows = self.rows(select(uncertainty_table).where(uncertainty_table.c.model == model))
        return {r["digest"]: {**json.loads(r["more"] or "{}"), "image": r["value"]} for r in rows}

    def forget_uncertainty(self, models: Sequence[str]) -> int:
        """Drop what these models found, by fingerprint; returns how many values that were."""
        found = 0
        with self.write() as connection:
            for start in range(0, len(models), VARIABLES):
                chunk = models[start : start + VARIABLES]
                found += connection.execute(
                    delete(uncertainty_table).where(uncertainty_table.c.model.in_(chunk))
                ).rowcount
        return found
