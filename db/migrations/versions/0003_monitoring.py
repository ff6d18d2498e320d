"""The prediction log, outcomes, windows of counts, leases; and an audit of more than moves."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers rows only in INTEGER columns


def upgrade() -> None:
    op.create_table(
        "predictions",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("request_id", sa.String, nullable=False, index=True),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("latency_ms", sa.Double, nullable=False),
        sa.Column("inputs", sa.Text),
        sa.Column("outputs", sa.Text, nullable=False),
    )
    op.create_table(
        "outcomes",
        sa.Column("request_id", sa.String, primary_key=True),
        sa.Column("row", sa.Integer, primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("predicted_at", sa.Double, nullable=False, index=True),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("actual", sa.Text, nullable=False),
        sa.Column("correct", sa.Integer),
        sa.Column("error", sa.Double),
        sa.Column("confidence", sa.Double),
    )
    op.create_index("ix_outcomes_version", "outcomes", ["model", "version", "predicted_at"])
    op.create_table(
        "windows",
        sa.Column("writer", sa.String, primary_key=True),
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("role", sa.String, primary_key=True),
        sa.Column("trial", sa.String, primary_key=True),
        sa.Column("source", sa.String, primary_key=True),
        sa.Column("started", sa.Double, primary_key=True),
        sa.Column("counts", sa.Text, nullable=False),
    )
    op.create_index("ix_windows_model", "windows", ["model", "started"])
    op.create_table(
        "leases",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("holder", sa.String, nullable=False),
        sa.Column("until", sa.Double, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("model", sa.String, index=True),
        sa.Column("role", sa.String),
        sa.Column("from_version", sa.Integer),
        sa.Column("to_version", sa.Integer),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("evidence", sa.JSON),
    )
    op.execute(
        "INSERT INTO audit (at, action, model, role, from_version, to_version, actor, reason)"
        " SELECT at, 'move', model, role, from_version, to_version, actor, reason FROM role_moves ORDER BY id"
    )
    op.drop_table("role_moves")


def downgrade() -> None:
    raise NotImplementedError("The older form has no tables for what was recorded since; restore a backup.")
