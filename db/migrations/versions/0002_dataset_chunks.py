"""Rows of datasets in chunks, column by column, instead of one by one."""

import json

import numpy as np
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

ROWS = 65_536


def upgrade() -> None:
    chunks = op.create_table(
        "dataset_chunks",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("dataset_id", sa.Integer, sa.ForeignKey("datasets.id"), nullable=False, index=True),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
    )
    cells = op.create_table(
        "dataset_cells",
        sa.Column("chunk_id", sa.Integer, sa.ForeignKey("dataset_chunks.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    connection = op.get_bind()
    datasets = sa.table(
        "datasets", sa.column("id"), sa.column("columns", sa.JSON), sa.column("loaded_at", sa.DateTime(True))
    )
    rows = sa.table("dataset_rows", sa.column("id"), sa.column("dataset_id"), sa.column("cells", sa.JSON))
    for dataset, columns, loaded_at in connection.execute(sa.select(datasets)).all():
        query = sa.select(rows.c.cells).where(rows.c.dataset_id == dataset).order_by(rows.c.id)
        for batch in connection.execute(query).scalars().partitions(ROWS):
            row = {"dataset_id": dataset, "rows": len(batch), "added_at": loaded_at}
            chunk = connection.execute(chunks.insert().values(row).returning(chunks.c.id)).scalar_one()
            for position, (column, values) in enumerate(zip(columns, zip(*batch, strict=True), strict=True)):
                is_number = column["type"] == "number"
                data = np.array(values, "<f8").tobytes() if is_number else json.dumps(values).encode()
                connection.execute(cells.insert().values(chunk_id=chunk, position=position, data=data))
    op.drop_table("dataset_rows")


def downgrade() -> None:
    raise NotImplementedError("Rows in chunks cannot be turned back into single rows; restore a backup.")
