"""The masks of the quick model that are shown before the first training."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "quick_mask",
        sa.Column("project", sa.BigInteger(), primary_key=True),
        sa.Column("task", sa.BigInteger(), primary_key=True),
        sa.Column("version", sa.String(40), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("drawn", sa.String(64), nullable=False),
        sa.Column("names", sa.Text(), nullable=False),
        sa.Column("learnt", sa.Integer(), nullable=False),
        sa.Column("dice", sa.Float()),
    )
