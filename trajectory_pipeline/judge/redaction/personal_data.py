"""Patterns of personal data in text."""

import ipaddress
import re
from collections.abc import Callable, Iterator

from trajectory_pipeline.judge.redaction.span import Span

_EMAIL = re.compile(
    r"(?:(?<![A-Za-z0-9._%+-])|(?<=\\[nrt]))[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,6}"
)
_PHONE = re.compile(
    r"(?<![\w+.-])(?:\+[0-9](?:[ ./()-]{0,2}[0-9]){6,14}|\([0-9]{2,5}\) ?[0-9]{3,4}[ .-]?[0-9]{3,5}"
    r"|[0-9]{3}[-. ][0-9]{3}[-. ][0-9]{4}|0[0-9]{2,4}[ /-][0-9]{5,9})(?![\w-])"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}(?![A-Za-z0-9])")
_CARD = re.compile(r"(?<![0-9-])[0-9](?:[ -]?[0-9]){12,18}(?![0-9-])")
_ID = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}(?![0-9A-Fa-f])")
"""A UUID, whose digits are no number of a card."""
_IPV4 = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9.]{1,2}[0-9])")
_IPV6 = re.compile(r"(?<![0-9A-Za-z:])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![0-9A-Za-z:])")
_IBAN_MODULUS = 97


_PIECE, _LONGEST = 65_536, 1_024
"""Characters of a long text that are searched at once, so that no search takes long, and more than a match can have."""


def find_personal_data(text: str, checkpoint: Callable[[], None] = lambda: None) -> Iterator[Span]:
    """Yield the spans of personal data; they may overlap. ``checkpoint`` is called often, and may raise to end it."""
    ids = [found.span() for found in _matches(_ID, text, checkpoint)]
    for pattern, kind, is_valid in _PERSONAL:
        for match in _matches(pattern, _without(text, ids) if pattern is _CARD else text, checkpoint):
            if is_valid(match.group()):
                yield Span(match.start(), match.end(), kind)


def _matches(pattern: re.Pattern[str], text: str, checkpoint: Callable[[], None]) -> Iterator[re.Match[str]]:
    """Yield what ``finditer`` yields."""
    end = 0
    for at in range(0, len(text), _PIECE):
        checkpoint()
        for match in pattern.finditer(text, max(at, end), min(at + _PIECE + _LONGEST, len(text))):
            if match.start() >= at + _PIECE:
                break
            end = match.end()
            yield match


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    parts, at = [], 0
    for start, end in spans:
        parts += [text[at:start], "x" * (end - start)]
        at = end
    return "".join([*parts, text[at:]])


def _is_iban(text: str) -> bool:
    plain = text.replace(" ", "")
    digits = "".join(str(int(c, 36)) for c in plain[4:] + plain[:4])
    return int(digits) % _IBAN_MODULUS == 1


def _is_card(text: str) -> bool:
    """Luhn's check."""
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d * 2 - 9 if d > 4 else d * 2 for d in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


_PERSONAL: tuple[tuple[re.Pattern[str], str, Callable[[str], bool]], ...] = (
    (_EMAIL, "email", lambda _: True),
    (_IBAN, "iban", _is_iban),
    (_CARD, "card", _is_card),
    (_PHONE, "phone", lambda _: True),
    (_IPV4, "ip", _is_address),
    (_IPV6, "ip", _is_address),
)
