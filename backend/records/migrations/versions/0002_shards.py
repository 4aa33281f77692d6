"""Shards: parts of bulk work that any worker may take. Label Studio's ids get 64 bits, as in Label Studio."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

IDS = {
    "project": ["id"],
    "scan": ["project", "task"],
    "label": ["project", "task", "annotation", "completed_by"],
    "model": ["project"],
    "round": ["project"],
    "shown": ["project", "task"],
    "progress": ["project"],
}


def upgrade() -> None:
    for table, columns in IDS.items():
        with op.batch_alter_table(table) as batch:  # SQLite copies the table, PostgreSQL alters it
            for column in columns:
                nullable = column == "completed_by"
                batch.alter_column(
                    column, existing_type=sa.Integer(), type_=sa.BigInteger(), existing_nullable=nullable
                )
    op.create_table(
        "shard",
        sa.Column("project", sa.BigInteger(), nullable=False),
        sa.Column("run", sa.String(length=32), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("needs", sa.Text(), nullable=False),
        sa.Column("tasks", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("beat", sa.Float(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project", "run", "n"),
    )
