"""Alembic's entry: runs the migrations on the connection that ``storage.postgres.migrate`` opened."""

from alembic import context

from trajectory_pipeline.schema.types import SCHEMA_NAME

context.configure(
    connection=context.config.attributes["connection"],
    version_table_schema=SCHEMA_NAME,
    transactional_ddl=True,
)
context.run_migrations()
