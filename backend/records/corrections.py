"""What smart tools answered, and how good their masks were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select, update
from sqlalchemy.engine import RowMapping

from backend.records.database import Database, from_json
from backend.records.tables import correction_table

SLOW = 1.0  # seconds after which people no longer feel that a tool follows their hand

_column = correction_table.c


class CorrectionRecords(Database):
    """Reads and writes the table `correction`."""

    def add_correction(
        self, project: int, task: int, at: float, seconds: float, masks: Mapping[str, NDArray[np.bool_]] | None
    ) -> None:
        """Count an answer, and keep the mask (H, W) of each label that it corrected; None: it failed."""
        counted = {"answers": 1, "failed": int(masks is None), "slow": int(seconds > SLOW)}
        where = (_column.project == project, _column.task == task)
        with self.write() as connection:
            old = connection.execute(select(correction_table).where(*where)).mappings().first()
            row = {name: n + (old[name] if old else 0) for name, n in counted.items()} | {"at": at}
            row |= _with_masks(old, masks) if masks else {}
            self._upsert(connection, correction_table, [{"project": project, "task": task, **row}])

    def correction(self, project: int, task: int) -> tuple[list[str], NDArray[np.uint8]] | None:
        """(labels, their mask (H, W) with classes 1..) that was answered last; None if there is nothing to compare."""
        where = (_column.project == project, _column.task == task, _column.mask.is_not(None))
        found = self._tuples(select(_column.names, _column.mask).where(*where))
        return (from_json(found[0][0]), _unpacked(found[0][1])) if found else None

    def judge_correction(self, project: int, task: int, before: float | None, after: float) -> None:
        """Record how good the newest mask was; it is no longer needed."""
        where = (_column.project == project, _column.task == task)
        with self.write() as connection:
            connection.execute(
                update(correction_table).where(*where).values(before=before, after=after, mask=None, names="[]")
            )

    def corrections(self, project: int) -> list[dict[str, Any]]:
        """(task, answers, before, after) of all scans that smart tools answered on, by task."""
        columns = (_column.task, _column.answers, _column.before, _column.after)
        return self.rows(select(*columns).where(_column.project == project).order_by(_column.task))

    def recent_corrections(self, project: int, since: float) -> dict[str, int]:
        """{answers, failed, slow} on the scans with an answer since this time."""
        names = ("answers", "failed", "slow")
        sums = (func.coalesce(func.sum(_column[name]), 0) for name in names)
        ((*found,),) = self._tuples(select(*sums).where(_column.project == project, _column.at >= since))
        return {name: int(n) for name, n in zip(names, found, strict=True)}


def _with_masks(old: RowMapping | None, masks: Mapping[str, NDArray[np.bool_]]) -> dict[str, Any]:
    """The columns `names` and `mask` once these masks are added."""
    names: list[str] = from_json(old["names"]) if old else []
    shape = next(iter(masks.values())).shape
    whole: NDArray[np.uint8] = np.zeros(shape, np.uint8)
    if old and old["mask"] is not None and (before := _unpacked(old["mask"])).shape == shape:
        whole = before
    for label, mask in masks.items():
        if label not in names:
            names.append(label)
        number = names.index(label) + 1
        whole[whole == number] = 0
        whole[mask] = number
    return {"names": json.dumps(names), "mask": cv2.imencode(".png", whole)[1].tobytes()}


def _unpacked(stored: bytes) -> NDArray[np.uint8]:
    found = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None  # it was written above
    return np.array(found, np.uint8)
