"""Readings, what is read, by whom, and their verdicts."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "readings",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("definition", sa.JSON, nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("closed", _TIME),
    )
    op.create_table(
        "reading_items",
        sa.Column("reading", sa.String, sa.ForeignKey("readings.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("label", sa.String, nullable=False),
        sa.Column("subject", sa.String, nullable=False),
        sa.Column("instance", sa.String, nullable=False),
        sa.Column("simulation", sa.Integer),
        sa.Column("verdict", sa.String),
        sa.Column("probabilities", sa.JSON, nullable=False),
        sa.Column("out_of_fold", sa.Boolean, nullable=False),
    )
    op.create_table(
        "reading_readers",
        sa.Column("reading", sa.String, sa.ForeignKey("readings.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("token_sha256", sa.String, nullable=False, unique=True),
        sa.Column("order", sa.JSON, nullable=False),
    )
    op.create_table(
        "reading_verdicts",
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("reading", sa.String, nullable=False, index=True),
        sa.Column("reader", sa.String, nullable=False),
        sa.Column("item", sa.Integer, nullable=False),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("likelihood", sa.Double, nullable=False),
        sa.Column("realism", sa.Integer, nullable=False),
        sa.Column("confidence", sa.Integer, nullable=False),
        sa.Column("features", sa.JSON, nullable=False),
        sa.Column("comment", sa.String, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("received", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["reading", "reader"], ["reading_readers.reading", "reading_readers.name"], ondelete="CASCADE"
        ),
        sa.UniqueConstraint("reading", "reader", "id"),
    )
