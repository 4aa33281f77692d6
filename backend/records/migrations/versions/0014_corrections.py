"""How often masks were corrected with smart tools, and how good the corrections were."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_table(
        "correction",
        sa.Column("project", sa.BigInteger(), primary_key=True),
        sa.Column("task", sa.BigInteger(), primary_key=True),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("answers", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("slow", sa.Integer(), nullable=False),
        sa.Column("names", sa.Text(), nullable=False),
        sa.Column("mask", sa.LargeBinary()),
        sa.Column("before", sa.Float()),
        sa.Column("after", sa.Float()),
    )
