"""Replaces secrets and personal data by placeholders before a transcript is sent.

A placeholder has the kind of the value and a tag, ``[secret:api_key:3f2a91bc]``. Equal values have equal tags, so that
a judge can tell that two keys are the same. The tag is a keyed hash (HMAC), and its key is never sent: without it, no
dictionary can be tried against the tag.
"""

import hashlib
import hmac
import math
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from trajectory_pipeline.judge.redaction.patterns import find_secrets
from trajectory_pipeline.judge.redaction.personal_data import find_personal_data
from trajectory_pipeline.judge.redaction.span import Span
from trajectory_pipeline.judge.redaction.visible_text import visible_text
from trajectory_pipeline.schema.enums import RedactionMode

REDACTION_VERSION = "4"
"""Raised with any change of what is found, or of what it is replaced by."""
_PLACEHOLDER = re.compile(r"\[(?:secret|personal):[a-z_0-9]{1,20}:[0-9a-f]{8}\]")
_LINE_BREAKS = re.compile(r"""\\[nr]|\\|["'+]?\s+["']?""")
_TAG_LENGTH = 8
_MAX_ROUNDS = 8
_REMEMBERED_CHARACTERS = 2_000
"""Shorter texts are remembered: names and arguments recur in a transcript, and all of it as context of later runs."""
_SPECIFIC = ("private_key", "jwt", "api_key", "basic", "iban", "card", "email", "phone", "ip")
"""Kinds found by the form of the value itself, by their precedence where findings overlap."""


class RedactionTimeoutError(Exception):
    """The deadline of a redactor has passed."""


@dataclass(frozen=True)
class Redactor:
    """Redacts texts; ``personal`` includes secrets. Machines with different keys make different placeholders.

    After ``deadline``, a time of ``time.monotonic``, it raises RedactionTimeoutError.
    """

    mode: RedactionMode = RedactionMode.SECRETS
    key: bytes = field(default=b"", repr=False)
    deadline: float = field(default=math.inf, compare=False)

    def __call__(self, text: str) -> str:
        """Return a text with placeholders in place of what was found; a redacted text stays as it is."""
        self._check_deadline()
        if self.mode == RedactionMode.OFF:
            return text
        if len(text) <= _REMEMBERED_CHARACTERS:
            return _remembered(self.mode, self.key, text)
        return self._redacted(text)

    def _redacted(self, text: str) -> str:
        # A placeholder may expose a value that its neighbor hid.
        for _ in range(_MAX_ROUNDS):
            redacted = self._once(text)
            if redacted == text:
                break
            text = redacted
        return text

    def _check_deadline(self) -> None:
        if time.monotonic() > self.deadline:
            raise RedactionTimeoutError

    def _once(self, text: str) -> str:
        found = [("secret", span) for span in find_secrets(text, self._check_deadline)]
        if self.mode == RedactionMode.PERSONAL:
            found += [("personal", span) for span in find_personal_data(text, self._check_deadline)]
        if not found:
            return text
        parts, at = [], 0
        placeholders = [match.span() for match in _PLACEHOLDER.finditer(text)]
        for span, family in _resolve_overlaps(found, placeholders, len(text)):
            value = _LINE_BREAKS.sub("", visible_text(text[span.start : span.end]).text).encode(
                "utf-8", "surrogatepass"
            )
            tag = hmac.new(self.key, value, hashlib.sha256).hexdigest()[:_TAG_LENGTH]
            parts += [text[at : span.start], f"[{family}:{span.kind}:{tag}]"]
            at = span.end
        return "".join([*parts, text[at:]])


@lru_cache(maxsize=1_024)
def _remembered(mode: RedactionMode, key: bytes, text: str) -> str:
    return Redactor(mode, key)._redacted(text)


def _resolve_overlaps(
    found: Iterable[tuple[str, Span]], placeholders: Iterable[tuple[int, int]], length: int
) -> list[tuple[Span, str]]:
    """Return findings that do not overlap, in order: the form of a value goes before its name."""

    def order(item: tuple[str, Span]) -> tuple[int, int, int]:
        kind = item[1].kind
        return (_SPECIFIC.index(kind) if kind in _SPECIFIC else len(_SPECIFIC), item[1].start, -item[1].end)

    taken = bytearray(length)
    for start, end in placeholders:
        taken[start:end] = b"\1" * (end - start)
    apart: list[tuple[Span, str]] = []
    for family, span in sorted(found, key=order):
        apart.extend((Span(start, end, span.kind), family) for start, end in _take_free(taken, span.start, span.end))
    return sorted(apart)


def _take_free(taken: bytearray, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Take all free characters between two positions; yields the runs of them."""
    while (start := taken.find(0, start, end)) >= 0:
        stop = taken.find(1, start, end)
        stop = stop if stop >= 0 else end
        taken[start:stop] = b"\1" * (stop - start)
        yield start, stop
        start = stop
