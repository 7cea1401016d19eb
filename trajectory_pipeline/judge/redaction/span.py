"""A finding of redaction: where it stands in a text, and its kind."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Span:
    """A finding: ``text[start:end]``, and its kind."""

    start: int
    end: int
    kind: str
