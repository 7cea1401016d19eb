"""Work over the whole history: completeness, retention, erasure, explanations.

Every function raises ``SinkError`` if a sink cannot be read, and ``SourceError`` if the source cannot be read.
"""
