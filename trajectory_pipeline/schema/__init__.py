"""Every column of the project, declared once.

From the declarations follow the Arrow schemas, the SQL tables, Dagster's column metadata and the data dictionary.
Belongs here: names, types and meanings. Does not belong here: anything that reads or writes data.
"""
