"""Adds the functions around the rows that a run writes: the SQL stands beside this file."""

from pathlib import Path

from alembic import op

revision = "0038"
down_revision = "0037"


def upgrade() -> None:
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().connection.cursor().execute(sql)
