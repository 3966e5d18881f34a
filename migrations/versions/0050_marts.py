"""Adds the books of the marts, and the functions that plan their runs: the SQL stands beside this file."""

from pathlib import Path

from alembic import op

revision = "0050"
down_revision = "0046"


def upgrade() -> None:
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().connection.cursor().execute(sql)
