"""Whether all pixels of a scan are equal."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("scan", sa.Column("blank", sa.Integer(), nullable=False, server_default="0"))
