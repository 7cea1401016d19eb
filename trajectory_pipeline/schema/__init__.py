"""Every column, declared once: Arrow schemas, SQL tables, Dagster metadata and the data dictionary follow from it."""
