"""Letta-shaped databases of any size, with the kinds of rows that the sample has.

A `prototypes` run is composed of rows of the sample; `rows` writes any number of copies of it, each with its own ids,
times and texts (`prose`); `load` inserts them by COPY; `others` adds rows that no partition needs.
"""
