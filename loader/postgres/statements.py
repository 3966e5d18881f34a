"""Reads SQL statements from the files beside the modules that run them."""

from pathlib import Path


def read_statement(module: str, name: str) -> str:
    """Return a statement from the file beside a module that is named after both: `landing_quarantine.sql`.

    psycopg takes parameters as `%(name)s` and SQLAlchemy as `:name`.

    Args:
        module: The module's `__file__`.
        name: The statement's name.
    """
    path = Path(module)
    return path.with_name(f"{path.stem}_{name}.sql").read_text(encoding="utf-8")
