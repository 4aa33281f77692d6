"""What models have learnt from is recorded once for all models of a project, and their held-out scans compressed.

Batch work is no longer shared through the database.
"""

import json
import lzma

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.drop_table("shard")
    op.add_column("model", sa.Column("held_out", sa.LargeBinary(), nullable=True))
    lesson = op.create_table(
        "lesson",
        sa.Column("project", sa.BigInteger(), primary_key=True),
        sa.Column("n", sa.Integer(), primary_key=True),
        sa.Column("task", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("mask", sa.String(64), nullable=False),
        sa.Column("belongs_to", sa.Text(), nullable=False),
        sa.Column("unknown", sa.Text(), nullable=False, server_default=""),
    )
    names = ("project", "version", "trained_on", "details", "held_out", "created_at")
    model = sa.table("model", *(sa.column(name) for name in names))
    connection = op.get_bind()
    keys = connection.execute(sa.select(model.c.project, model.c.version).order_by(model.c.created_at)).all()
    numbers: dict[int, dict[tuple[object, ...], int]] = {}
    for project, version in keys:  # one at a time, as each may be large
        here = (model.c.project == project, model.c.version == version)
        row = connection.execute(sa.select(model.c.trained_on, model.c.details).where(*here)).one()
        details = json.loads(row.details)
        held_out = json.dumps(details.pop("held_out", []), ensure_ascii=False, separators=(",", ":"))
        values: dict[str, str | bytes] = {"details": json.dumps(details, ensure_ascii=False, separators=(",", ":"))}
        values["held_out"] = lzma.compress(held_out.encode())
        entries = json.loads(row.trained_on)
        if all(isinstance(entry, list) for entry in entries):  # still older rows have the keys of annotations
            known = numbers.setdefault(project, {})
            found, new = [], []
            for task, digest, mask, belongs_to, *more in entries:
                unknown = json.dumps(more[0]) if more and more[0] else ""
                key = (task, digest, mask, belongs_to, unknown)
                if key not in known:
                    known[key] = len(known) + 1
                    new.append(dict(zip(("task", "digest", "mask", "belongs_to", "unknown"), key, strict=True)))
                    new[-1] |= {"project": project, "n": known[key]}
                found.append(known[key])
            if new:
                connection.execute(lesson.insert(), new)
            values["trained_on"] = _text(found)
        connection.execute(sa.update(model).where(*here).values(**values))


def _text(numbers: list[int]) -> str:
    """Ascending numbers as ranges: "1-3 7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
