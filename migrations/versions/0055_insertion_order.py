"""Inserts the rows of a run by one statement: the SQL stands beside this file."""

from pathlib import Path

from alembic import op

revision = "0055"
down_revision = "0054"


def upgrade() -> None:
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().connection.cursor().execute(sql)
