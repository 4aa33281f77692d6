"""How far each scan has come, indexed, so that no look at a project reads all of its scans."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("project", sa.Column("stages", sa.Text(), nullable=False, server_default=""))
    for column in ("changes", "reach"):
        op.add_column("round", sa.Column(column, sa.Integer(), nullable=False, server_default="0"))
    op.add_column("scan", sa.Column("stage", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("scan", sa.Column("draw", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute("UPDATE scan SET draw = ((task % 1000003) * 2654435761) % 4294967296")
    op.create_index("scan_stage", "scan", ["project", "stage", "annotated", "draw"])
    op.create_index("scan_counted", "scan", ["project", "annotated", "skipped"])
    op.create_index("scan_volume", "scan", ["project", "volume"])
    for name, few in (("problem", sa.text("problem != ''")), ("priority", sa.text("priority != 0"))):
        op.create_index(f"scan_{name}", "scan", ["project"], sqlite_where=few, postgresql_where=few)
