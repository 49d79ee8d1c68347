"""Who made cohorts and jobs, and who made the calls of the audit log; unknown for what is older."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns."""
    for table, column in (("cohorts", "owner"), ("jobs", "owner"), ("audit", "principal")):
        op.add_column(table, sa.Column(column, sa.String))
