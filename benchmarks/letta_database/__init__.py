"""Letta-shaped databases of any size, whose rows are of the kinds that the sample holds.

Belongs here: making rows and bringing them into a Postgres database. Does not belong here: measuring.

A `prototypes` run is composed of rows of the sample; `rows` writes as many copies of it as are wanted, each with ids,
times and texts (`prose`) of its own; `load` brings them in by COPY; `others` adds rows that no partition needs.
"""
