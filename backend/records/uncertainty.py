"""Uncertainties of models about scans, by model fingerprint and digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select

from backend.records.database import VARIABLES, Database, from_json, to_json
from backend.records.tables import uncertainty_table


class UncertaintyRecords(Database):
    """Reads and writes the table `uncertainty`."""

    def put_uncertainty(self, model: str, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Write a model's uncertainty about scans, by digest: {"image": mean entropy, name: number or numbers, ...}.

        Stored measures that are not in `found` stay: two projects may share a model.
        """
        with self.write() as connection:
            for start in range(0, len(found), VARIABLES):
                chunk = sorted(found)[start : start + VARIABLES]
                here = (uncertainty_table.c.model == model, uncertainty_table.c.digest.in_(chunk))
                old = connection.execute(select(uncertainty_table.c.digest, uncertainty_table.c.more).where(*here))
                had = {digest: from_json(more or "{}") for digest, more in old}
                rows = []
                for digest in chunk:
                    more = had.get(digest, {}) | {k: v for k, v in found[digest].items() if k != "image"}
                    row = {"model": model, "digest": digest, "value": found[digest]["image"]}
                    rows.append(row | {"more": to_json(more)})
                self._upsert(connection, uncertainty_table, rows)

    def image_entropies(self, model: str) -> dict[str, float]:
        """A model's mean entropy per scan, by digest."""
        columns = (uncertainty_table.c.digest, uncertainty_table.c.value)
        return dict(self._each(select(*columns).where(uncertainty_table.c.model == model)))

    def uncertainty(self, model: str) -> dict[str, dict[str, Any]]:
        """All uncertainty measures of a model per scan, by digest; "image" is the mean entropy."""
        rows = self.rows(select(uncertainty_table).where(uncertainty_table.c.model == model))
        return {r["digest"]: {**from_json(r["more"] or "{}"), "image": r["value"]} for r in rows}

    def forget_uncertainty(self, models: Sequence[str]) -> int:
        """Delete the uncertainty of these models (fingerprints); returns the number of rows."""
        found = 0
        with self.write() as connection:
            for start in range(0, len(models), VARIABLES):
                chunk = models[start : start + VARIABLES]
                found += connection.execute(
                    delete(uncertainty_table).where(uncertainty_table.c.model.in_(chunk))
                ).rowcount
        return found
