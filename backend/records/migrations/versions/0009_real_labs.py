"""Renamed labels, Label Studio's settings before us, the first free round number, the overlap, and empty masks."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    for column in ("label_renames", "settings_before"):
        op.add_column("project", sa.Column(column, sa.Text(), nullable=False, server_default=""))
    op.add_column("project", sa.Column("first_round", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("project", sa.Column("overlap", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("label", sa.Column("empty", sa.Integer(), nullable=False, server_default="-1"))
    op.add_column("label", sa.Column("unknown", sa.Text(), nullable=False, server_default=""))
    for column in ("shown_empty", "label_empty"):
        op.add_column("shown", sa.Column(column, sa.Integer(), nullable=False, server_default="-1"))
