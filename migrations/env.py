"""Runs the revisions on the connection `loader migrate` hands over, one transaction for all of them."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table_schema="raw", transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
