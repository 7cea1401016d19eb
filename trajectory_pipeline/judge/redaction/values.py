"""Values that may be secrets: where one begins and ends in a text, and whether it looks like one."""

import re
from collections.abc import Iterator
from enum import StrEnum

LONGEST_VALUE = 4096
"""Characters of a password or token after its name; a longer one is ordinary text."""
LONGEST_OPAQUE = 512
"""The same after a name such as ``key``, which has many other uses."""


class NameKind(StrEnum):
    """How much of a secret a name promises: it decides which values are taken for one."""

    HEADER = "header"
    PASSWORD = "password"  # noqa: S105 — the name of a kind
    SECRET = "secret"  # noqa: S105
    LIKELY = "likely"
    PHRASE = "phrase"
    OPAQUE = "opaque"
    DIGITS = "digits"


_NO_VALUE_WORDS = """
    null none nil true false undefined string str int number object array required optional missing invalid incorrect
    wrong expired correct empty needed not set unset stored changed being the a an no my your their this that to too
    is was and or for in on of be reset default hidden redacted protected secret password token type value key
    bytes boolean bool text any basic bearer digest negotiate
"""
_NO_VALUE = frozenset(_NO_VALUE_WORDS.split())
_SHORTEST = {
    NameKind.PASSWORD: 3, NameKind.SECRET: 6, NameKind.LIKELY: 6, NameKind.HEADER: 6, NameKind.OPAQUE: 12,
    NameKind.DIGITS: 4, NameKind.PHRASE: 20,
}  # fmt: skip
_REFERENCE = re.compile(
    r"\$[A-Z_][A-Z0-9_]{0,80}$|\$\{?[A-Za-z_][A-Za-z_.]{0,80}\}?$|\$[({]|\{\{|<[A-Za-z _-]{1,40}>$"
    r"|%\([a-z_]{1,40}\)s$|%[sdr]$|\{[A-Za-z_][\w.()]{0,60}\}"
    r"|[*•.xX#_-]{1,80}$"
    r"|(?:os|process|self|this|settings|config|env|var|vars|local|data|module|args|opts|options|ctx|req|request|params"
    r"|secrets|vault|app|conf|cfg|Rails|System|environ)(?:\.|->|::)[A-Za-z_]"
)
HEX = re.compile(r"(?:0x)?[0-9a-fA-F]{32,128}")
UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_RANDOM = re.compile(r"[A-Za-z0-9+/=_~.:%-]{1,4096}")
_WORDS_IN_ONE = re.compile(r"(?:[A-Z]{0,6}[0-9]{0,4}[A-Z]?[a-z]{2,24}[0-9]{0,2}[._-]?){1,12}")
_MOST_SLASHES = 3
_CHANGES = re.compile(r"[0-9](?=[A-Za-z])|[A-Za-z](?=[0-9])|[a-z](?=[A-Z])")
_ODD_INSIDE = re.compile(r"[A-Za-z0-9][!$%^#][A-Za-z0-9]")
QUOTE = re.compile(r'''\\{0,8}(?:"""|\'\'\'|["'`])''')
_BARE = re.compile(r"""(?:[^\s"'`\\,;&<>(){}\[\]|]|,(?=[^\s"'])|\\(?!["'nrt])){1,4096}""")
SCHEME = re.compile(r"(?i:basic|bearer|token|digest|apikey|aws4-hmac-sha256)\s{1,4}")


def checked(text: str, start: int, end: int, kind: NameKind) -> Iterator[tuple[int, int]]:
    """Yield the span of a value if it may be that of a name of this kind."""
    if is_value(text[start:end], kind):
        yield start, end


def is_value(value: str, kind: NameKind = NameKind.PASSWORD) -> bool:
    """Whether a text may be the value of a name of this kind, and is no placeholder, reference or ordinary word."""
    plain = value.strip(" .,:;*!?").lower()
    if len(value) < _SHORTEST[kind] or plain in _NO_VALUE or not any(c.isalnum() for c in plain):
        return False
    if _REFERENCE.match(value):
        return False
    if kind is NameKind.DIGITS:
        return value.strip(".").isdigit() and len(value) <= 8
    if kind is NameKind.OPAQUE:
        return is_random(value)
    return kind is not NameKind.LIKELY or (looks_opaque(value) and " " not in value and not UUID.search(value))


def is_random(value: str) -> bool:
    """Whether a value looks drawn at random: no word, path, date or id."""
    if not _RANDOM.fullmatch(value) or _WORDS_IN_ONE.fullmatch(value) or UUID.search(value):
        return False
    if value.count("/") > _MOST_SLASHES or "://" in value:
        return False
    fewest = 3 if any(c.isdigit() for c in value) else 4
    return len(_CHANGES.findall(value)) >= max(fewest, len(value) // 12)


def looks_opaque(value: str) -> bool:
    """Whether a value is more than a word: it has a digit or an odd character, or is long."""
    return (
        any(c.isdigit() for c in value)
        or bool(re.search(r"[!#$%&*+@^~]", value))
        or (len(value) >= 20 and " " not in value and "_" not in value)
    )


def looks_strong(value: str, shortest: int) -> bool:
    """Whether a value has letters and digits, and nothing that divides values or paths."""
    return (
        len(value) >= shortest
        and any(c.isdigit() for c in value)
        and any(c.isalpha() for c in value)
        and re.fullmatch(r"[!-~]+", value) is not None
        and not re.search(r"[()\[\]{}<>/\\:=|,]", value)
        and not UUID.search(value)
    )


def quoted_or_bare(text: str, at: int, longest: int = LONGEST_VALUE) -> tuple[int, int]:
    """Return the span of a value that begins here."""
    quote = QUOTE.match(text, at)
    start = quote.end() if quote else at
    if scheme := SCHEME.match(text, start):
        start = scheme.end()
    if quote is not None and (end := _closing(text, quote.group(), start)) >= 0:
        return start, end
    bare = _BARE.match(text, start, min(len(text), start + longest))
    return start, bare.end() if bare else start


def quoted(text: str, at: int) -> tuple[int, int]:
    """Return the span of a quoted value; an empty one where the quote is not closed."""
    quote = QUOTE.match(text, at)
    if quote is None:
        return at, at
    end = _closing(text, quote.group(), quote.end())
    return quote.end(), max(end, quote.end())


def _closing(text: str, quote: str, start: int) -> int:
    end = text.find(quote, start, start + LONGEST_VALUE)
    while len(quote) == 1 and end > start and _escaped(text, end, start):
        end = text.find(quote, end + 1, start + LONGEST_VALUE)
    return end


def _escaped(text: str, at: int, start: int) -> bool:
    before = text[max(start, at - 64) : at]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the span of a value without the blanks around it."""
    value = text[start:end]
    return start + len(value) - len(value.lstrip()), end - len(value) + len(value.rstrip())


def has_odd_inside(value: str) -> bool:
    """Whether a sign stands between letters or digits, as in passwords that people choose."""
    return _ODD_INSIDE.search(value) is not None


def is_mixed(value: str) -> bool:
    """Whether a value is so mixed that no word, name or id is."""
    kinds = [any(map(test, value)) for test in (str.isdigit, str.islower, str.isupper)]
    if has_odd_inside(value):
        return kinds[0] and any(kinds[1:]) and looks_strong(value, 8)
    return len(value) >= 10 and all(kinds) and is_random(value)
