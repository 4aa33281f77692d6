"""Deletes everything recorded about a project."""

from __future__ import annotations

from sqlalchemy import delete, select

from backend.records.attempts import forgotten
from backend.records.backup_format import FLEETING, NAMING, OWN
from backend.records.maps import map_name
from backend.records.store import Store
from backend.records.tables import embedding_table, label_table, model_table, project_table, scan_table


def forget_project(store: Store, project: int) -> None:
    """Delete the project's rows, and the embeddings, models, masks and map that no other project uses.

    The caller holds the project's lock. Cached pixels and predicted masks expire later (`retention`).
    """
    row = store.known_project(project)
    with store.settled() as connection:
        named = {}
        for column in NAMING:
            found = connection.execute(select(column).where(column.table.c.project == project)).scalars()
            elsewhere = connection.execute(select(column).where(column.table.c.project != project)).scalars()
            named[column] = sorted(set(found) - set(elsewhere) - {""})
        others = select(scan_table.c.digest).where(scan_table.c.project != project)
        these = select(scan_table.c.digest).where(scan_table.c.project == project)
        digest = embedding_table.c.digest
        connection.execute(delete(embedding_table).where(digest.in_(these), digest.not_in(others)))
        for table in (*OWN, *FLEETING):
            column = table.c.id if table is project_table else table.c.project
            connection.execute(delete(table).where(column == project))
        connection.execute(forgotten(project))
        for name in named[model_table.c.fingerprint]:
            store.remove_folder("models", name)
    store.forget_uncertainty(named[model_table.c.fingerprint])
    for name in named[label_table.c.mask]:
        store.path("labels", name).unlink(missing_ok=True)
    if row["embedder"]:
        store.path("maps", map_name(project, row["embedder"])).unlink(missing_ok=True)
    store.forget_trouble(project)
