"""Signals of a scan in addition to its entropy, and its stratum. Existing rows keep their values."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    for table, column in (("entropy", "more"), ("scan", "stratum"), ("project", "stratify_by")):
        op.add_column(table, sa.Column(column, sa.Text(), nullable=False, server_default=""))
