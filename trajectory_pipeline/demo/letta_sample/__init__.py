"""Sample data: rows of a real Letta server, kept in the package, and how they get into a database.

Belongs here: the data file, how it was made (`stretch`), how it is read (`dump`) and loaded (`load`). Does not belong
here: anything that reads a Letta database as the pipeline does; the pipeline does not know the sample from real rows.
"""
