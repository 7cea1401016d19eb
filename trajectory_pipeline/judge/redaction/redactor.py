"""Redaction at egress: what is secret in a transcript is replaced before anything leaves.

A placeholder names the kind of what stood there and a tag, ``[secret:api_key:3f2a91bc]``: the same value has the same
tag wherever it stands, so that a judge sees that two keys are one. The tag is a hash under a key that never leaves: who
does not have it cannot try a dictionary against it.
"""

import hashlib
import hmac
import re
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from trajectory_pipeline.judge.redaction.patterns import Span, find_secrets
from trajectory_pipeline.judge.redaction.personal_data import find_personal_data
from trajectory_pipeline.schema.enums import RedactionMode

REDACTION_VERSION = "1"
"""Goes up with any change of what is found, or of what it is replaced by."""


_PLACEHOLDER = re.compile(r"\[(?:secret|personal):[a-z_0-9]{1,20}:[0-9a-f]{8}\]")
_LINE_BREAKS = re.compile(r"""\\[nr]|\\|["'+]?\s+["']?""")
_TAG_LENGTH = 8
_MAX_ROUNDS = 8
_SPECIFIC = ("private_key", "jwt", "api_key", "basic", "iban", "card", "email", "phone", "ip")
"""Kinds that a value's own form gives, in the order in which they go first where findings overlap."""


@dataclass(frozen=True)
class Redactor:
    """What is replaced, and the key that tags are made with.

    Attributes:
        mode: ``secrets``; ``personal``: secrets and personal data; ``off``: nothing.
        key: of the tags; the same on every machine, or placeholders differ between them.
    """

    mode: RedactionMode = RedactionMode.SECRETS
    key: bytes = field(default=b"", repr=False)

    def __call__(self, text: str) -> str:
        """Return a text with placeholders where secrets stood; what is redacted once stays as it is."""
        if self.mode == "off":
            return text
        # A value may have been hidden by another that stood beside it.
        for _ in range(_MAX_ROUNDS):
            redacted = self._once(text)
            if redacted == text:
                break
            text = redacted
        return text

    def _once(self, text: str) -> str:
        found = [("secret", span) for span in find_secrets(text)]
        if self.mode == "personal":
            found += [("personal", span) for span in find_personal_data(text)]
        if not found:
            return text
        parts, at = [], 0
        for span, family in _resolve_overlaps(found, [match.span() for match in _PLACEHOLDER.finditer(text)]):
            parts += [text[at : span.start], self._placeholder(family, span.kind, text[span.start : span.end])]
            at = span.end
        return "".join([*parts, text[at:]])

    def _placeholder(self, family: str, kind: str, value: str) -> str:
        plain = _LINE_BREAKS.sub("", value)
        tag = hmac.new(self.key, plain.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:_TAG_LENGTH]
        return f"[{family}:{kind}:{tag}]"


def _resolve_overlaps(
    found: Iterable[tuple[str, Span]], placeholders: Iterable[tuple[int, int]]
) -> list[tuple[Span, str]]:
    """Return findings that do not overlap, in order: what a value's own form says goes before what its name says."""

    def order(item: tuple[str, Span]) -> tuple[int, int, int]:
        kind = item[1].kind
        return (_SPECIFIC.index(kind) if kind in _SPECIFIC else len(_SPECIFIC), item[1].start, -item[1].end)

    taken = _TakenSpans(placeholders)
    apart: list[tuple[Span, str]] = []
    for family, span in sorted(found, key=order):
        apart.extend((Span(start, end, span.kind), family) for start, end in taken.free(span.start, span.end))
    return sorted(apart)


class _TakenSpans:
    """Stretches of a text that are spoken for, in order."""

    def __init__(self, stretches: Iterable[tuple[int, int]]) -> None:
        self._stretches = sorted(stretches)

    def free(self, start: int, end: int) -> list[tuple[int, int]]:
        """Take what is free between two places; returns it."""
        free, at = [], start
        number = max(bisect_left(self._stretches, (start,)) - 1, 0)
        while number < len(self._stretches) and self._stretches[number][0] < end:
            begins, ends = self._stretches[number]
            if ends > at:
                if begins > at:
                    free.append((at, begins))
                at = max(at, ends)
            number += 1
        if at < end:
            free.append((at, end))
        for stretch in free:
            insort(self._stretches, stretch)
        return free
