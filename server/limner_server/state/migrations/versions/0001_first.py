"""The tables of 0.1, as it made them without migrations: those that such a database has already are left alone."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create what is missing."""
    there = set(sa.inspect(op.get_bind()).get_table_names())
    for table, columns, indexes in _TABLES:
        if table in there:
            continue
        op.create_table(table, *columns)
        for column in indexes:
            op.create_index(f"ix_{table}_{column}", table, [column])


_TABLES = (
    (
        "cohorts",
        (
            sa.Column("name", sa.String, primary_key=True),
            sa.Column("labels", sa.JSON, nullable=False),
            sa.Column("created", _TIME, nullable=False),
        ),
        (),
    ),
    (
        "slices",
        (
            sa.Column("cohort", sa.String, sa.ForeignKey("cohorts.name", ondelete="CASCADE"), primary_key=True),
            sa.Column("instance", sa.String, primary_key=True),
            sa.Column("subject", sa.String, nullable=False),
            sa.Column("series", sa.String, nullable=False),
            sa.Column("label", sa.String, nullable=False),
            sa.Column("slice_label", sa.Boolean, nullable=False),
            sa.Column("pixels_sha256", sa.String, nullable=False),
            sa.Column("row_spacing_mm", sa.Double, nullable=False),
            sa.Column("column_spacing_mm", sa.Double, nullable=False),
            sa.Column("orientation", sa.JSON),
            sa.Column("position", sa.JSON),
        ),
        ("subject",),
    ),
    (
        "jobs",
        (
            sa.Column("id", sa.String, primary_key=True),
            sa.Column("kind", sa.String, nullable=False),
            sa.Column("cohort", sa.String, nullable=False),
            sa.Column("request", sa.JSON, nullable=False),
            sa.Column("state", sa.String, nullable=False),
            sa.Column("progress", sa.JSON, nullable=False),
            sa.Column("result", sa.JSON, nullable=False),
            sa.Column("error", sa.String, nullable=False),
            sa.Column("resumed", sa.Integer, nullable=False),
            sa.Column("created", _TIME, nullable=False),
            sa.Column("ended", _TIME),
        ),
        ("kind", "cohort", "state"),
    ),
    (
        "servers",
        (
            sa.Column("id", sa.String, primary_key=True),
            sa.Column("machine", sa.String, nullable=False),
            sa.Column("beats", sa.Integer, nullable=False),
        ),
        ("machine",),
    ),
    (
        "claims",
        (
            sa.Column("job", sa.String, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
            sa.Column("server", sa.String, sa.ForeignKey("servers.id", ondelete="CASCADE"), nullable=False),
            sa.Column("cancelled", sa.Boolean, nullable=False),
        ),
        ("server",),
    ),
    (
        "loaded",
        (
            sa.Column("server", sa.String, sa.ForeignKey("servers.id", ondelete="CASCADE"), primary_key=True),
            sa.Column("model", sa.String, primary_key=True),
            sa.Column("version", sa.Integer, primary_key=True),
        ),
        (),
    ),
    (
        "aliases",
        (
            sa.Column("model", sa.String, primary_key=True),
            sa.Column("alias", sa.String, primary_key=True),
            sa.Column("version", sa.String, nullable=False),
        ),
        (),
    ),
)
