"""Tables and columns get the names that the code uses."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.rename_table("entropy", "uncertainty")
    op.rename_table("measure", "counter")
    for table, old, new in (
        ("project", "levers", "overrides"),
        ("project", "asked", "training_requests"),
        ("project", "taken", "task_data_version"),
        ("scan", "wish", "priority"),
        ("shard", "needs", "requirements"),
    ):
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
