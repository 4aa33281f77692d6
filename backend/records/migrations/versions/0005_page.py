"""Changes made on the page and their authors; the workers; the settings with which a round was ranked."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    for table, column in (("project", "levers"), ("project", "studio_url"), ("round", "settings")):
        op.add_column(table, sa.Column(column, sa.Text(), nullable=False, server_default=""))
    op.add_column("scan", sa.Column("wish", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "change",
        sa.Column("project", sa.BigInteger(), primary_key=True),
        sa.Column("n", sa.Integer(), primary_key=True),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("after", sa.Text(), nullable=False),
        sa.Column("undone", sa.Integer(), nullable=False),
    )
    op.create_table(
        "worker",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("doing", sa.Text(), nullable=False),
    )
