"""The labels that the label config had when an annotation was made; for present ones, those of the last config.

And the figures of each label for masks that were shown and then submitted.
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("label", sa.Column("known", sa.Text(), nullable=False, server_default=""))
    op.add_column("shown", sa.Column("per_label", sa.Text(), nullable=False, server_default=""))
    connection = op.get_bind()
    for project, config in connection.execute(sa.text("SELECT id, config FROM project WHERE config <> ''")).all():
        tags = json.loads(config)[1]  # [image, [[name, kind, object, labels, ...], ...], ...]
        known = json.dumps(list(dict.fromkeys(label for tag in tags for label in tag[3])))
        fill = sa.text("UPDATE label SET known = :known WHERE project = :project")
        connection.execute(fill, {"known": known, "project": project})
