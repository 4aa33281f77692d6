"""Volume, slice, patient and pixel size of a scan; whether they were read from the task data."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    for column in ("volume", "patient"):
        op.add_column("scan", sa.Column(column, sa.Text(), nullable=False, server_default=""))
    op.add_column("scan", sa.Column("slice", sa.Integer(), nullable=False, server_default="0"))
    for column in ("row_mm", "column_mm"):
        op.add_column("scan", sa.Column(column, sa.Float(), nullable=False, server_default="0"))
    op.add_column("project", sa.Column("taken", sa.Integer(), nullable=False, server_default="0"))
