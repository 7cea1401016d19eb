"""Patterns of secrets in text: where each begins and ends.

Each pattern reads a text of n characters in time that grows with n alone: no repetition in a repetition, every length
bounded, and no start inside a run of its own characters.
"""

import base64
import binascii
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LONGEST_VALUE = 4096
"""Characters of a password or token after its name; a longer one is ordinary text."""


@dataclass(frozen=True, order=True)
class Span:
    """A finding: ``text[start:end]``, and its kind."""

    start: int
    end: int
    kind: str


# What may precede a key: also the end of an escape, as ``\nsk-…`` in JSON text and ``%3Dsk-…`` in a URL.
_BEFORE = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrtbf])|(?<=\\u[0-9a-fA-F]{4})|(?<=%[0-9A-Fa-f]{2}))"

_KEY_FORMS = (
    # OpenAI, Anthropic, OpenRouter, DeepSeek, Letta, Langfuse and those who took the form over.
    r"[sp]k-(?:(?:proj|ant|or|svcacct|admin|let|lf|None)-)?[A-Za-z0-9_-]{20,512}",
    r"(?:A3T[A-Z0-9]|AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"ya29\.[A-Za-z0-9_-]{20,512}",
    r"GOCSPX-[A-Za-z0-9_-]{20,64}",
    r"gh[pousr]_[A-Za-z0-9]{30,255}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{22,255}",
    r"gl(?:pat|dt|rt|ptt|cbt|soat)-[A-Za-z0-9_.-]{20,255}",  # GitLab
    r"xox[abeoprs]-[A-Za-z0-9-]{10,255}",  # Slack
    r"xapp-[A-Za-z0-9-]{10,255}",
    r"hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/_-]{20,255}",
    r"discord(?:app)?\.com/api/webhooks/[0-9]{10,25}/[A-Za-z0-9_-]{30,255}",
    r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,255}",  # Stripe
    r"whsec_[A-Za-z0-9+/=]{20,255}",
    r"hf_[A-Za-z0-9]{30,255}",  # Hugging Face
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-[A-Za-z0-9_-]{50,512}",
    r"SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,128}",  # SendGrid
    r"(?:SK|AC)[0-9a-f]{32}(?![A-Za-z0-9])",  # Twilio
    r"key-[0-9a-f]{32}(?![A-Za-z0-9])",  # Mailgun
    r"do[opr]_v1_[0-9a-f]{64}",  # DigitalOcean
    r"dapi[0-9a-f]{32}(?:-[0-9])?",  # Databricks
    r"gsk_[A-Za-z0-9]{40,128}",  # Groq
    r"xai-[A-Za-z0-9]{40,255}",
    r"r8_[A-Za-z0-9]{30,64}",  # Replicate
    r"pplx-[A-Za-z0-9]{40,128}",
    r"tvly-[A-Za-z0-9-]{20,128}",
    r"lsv2_(?:pt|sk)_[A-Za-z0-9_]{30,128}",
    r"lin_(?:api|oauth)_[A-Za-z0-9]{30,128}",
    r"(?:ntn_|secret_)[A-Za-z0-9]{40,64}",  # Notion
    r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",  # Shopify
    r"hv[sbr]\.[A-Za-z0-9_-]{20,512}",  # Vault
    r"AGE-SECRET-KEY-1[A-Z0-9]{50,64}",
    r"dp\.(?:pt|st|ct|sa|scim|audit)\.[A-Za-z0-9._-]{30,128}",  # Doppler
    r"gl(?:sa|c)_[A-Za-z0-9_=+/-]{30,512}",  # Grafana
    r"NRAK-[A-Z0-9]{20,64}",
    r"sb[p]_[0-9a-f]{40}",
    r"pcsk_[A-Za-z0-9_]{40,255}",  # Pinecone
    r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}",  # Airtable
    r"ATATT3[A-Za-z0-9_=-]{50,512}",  # Atlassian
    r"sq0(?:atp|csp|idp)-[A-Za-z0-9_-]{22,64}",  # Square
    r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])",  # Telegram
)
_KEY = re.compile(_BEFORE + "(?:" + "|".join(_KEY_FORMS) + ")")
_SHORTEST_KEY = 18
_LONG_WORD = re.compile(rf"[A-Za-z0-9_+/=.:-]{{{_SHORTEST_KEY},}}")
"""A word that may contain a key; nearly all words are shorter and need not be searched."""
_JWT = re.compile(_BEFORE + r"eyJ[A-Za-z0-9_-]{8,8192}\.[A-Za-z0-9_-]{2,65536}(?:\.[A-Za-z0-9_-]{0,8192}){1,3}")
_KEYS = ((_KEY, "api_key"), (_JWT, "jwt"))
_DASHED = re.compile(r"[sp]k-")

_BREAK = re.compile(
    r"""[\\\r\n"'](?<=[A-Za-z0-9_.+/=-].)"""
    r"""(?:(?:(?<=\n)|(?<=\r)\n|(?<=\\)(?:\r?\n|n|r\\n))[ \t]{0,80}"""
    r"""|(?<=["'])[ \t]{0,8}\+?[ \t]{0,8}\\?\r?\n[ \t]{0,80}["'])"""
    r"(?=[A-Za-z0-9_.+/=-])",
    re.DOTALL,
)
"""A break in the middle of a token: a terminal's, one written as an escape, one between two literals.

The text before it is tested after its first character, since the search jumps to that: several times faster.
"""
_WORDLIKE = re.compile(r"[A-Za-z]?[a-z]*[.=:]*|[A-Z]+[.=:]*")

_PEM_BEGINS = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_ENDS = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_BODY = re.compile(r"""[A-Za-z0-9+/=\s\\:,"'-]{0,16384}""")

_BASIC = re.compile(r"(?i:(?<![A-Za-z0-9])basic)\s{1,4}([A-Za-z0-9+/_-]{6,1024}={0,2})")
_BEARER = re.compile(r"(?i:(?<![A-Za-z0-9])bearer)\s{1,4}([A-Za-z0-9._~+/=-]{8,8192})")
_COOKIE = re.compile(
    r"""(?i:(?<![A-Za-z0-9])(?:set-)?cookie)\\{0,4}["']?\s{0,4}:\s{0,4}\\{0,4}["']?([^\r\n"'\\]{1,4096})"""
)
_URL_PASSWORD = re.compile(r"""://[^\s:/@"'<>\\]{0,256}:([^\s/@"'<>]{1,256}(?:@[^\s/@"'<>]{1,64}(?=@))?)@""")
_URL_TOKEN = re.compile(r"://([A-Za-z0-9_-]{20,256})@")
_USER_OPTION = re.compile(r"""(?:(?<=\s)-u|--user)[ =]{1,4}\\{0,4}["']?[^\s:"']{1,100}:([^\s"'\\]{1,256})""")
_ELEMENT = re.compile(r"(?i:<(?:password|passwd|pwd|secret|token|api_?key)>)([^<]{1,1024})<")
_SPOKEN_PASSWORD = re.compile(
    r"""(?i:(?<![A-Za-z0-9])(?:password|passphrase|passcode|api key|secret key|access token))\s{1,4}"""
    r"""(?i:is|was|to)\s{0,4}:?\s{0,4}["'`]?([^\s"'`]{4,256})"""
)

_NAMES = (
    r"passw(?:or)?d|passwort|passphrase|passcode|pwd|secret[_-]?access[_-]?key|secret[_-]?key|client[_-]?secret|secret|"
    r"api[_-]?key|access[_-]?key|account[_-]?key|private[_-]?key|encryption[_-]?key|signing[_-]?key|auth[_-]?key|"
    r"shared[_-]?access[_-]?(?:key|signature)|token|credentials?|authorization|session[_-]?id|x-amz-signature"
)
_NAME = re.compile(
    rf"""(?i:{_NAMES})(?:[_-]?[0-9]{{1,3}})?(?:\\{{0,8}}["'])?\s{{0,4}}(?:=>|:=|==?|:|%3[Dd]| = )\s{{0,8}}"""
)
_OPTION = re.compile(rf"--(?:[a-z0-9]{{1,20}}-){{0,3}}(?:{_NAMES})[ \t]{{1,4}}(?=[^\s-])")
_QUOTE = re.compile(r"""\\{0,8}["'`]""")
_BARE = re.compile(r"""(?:[^\s"'`\\,;&<>(){}\[\]|]|,(?=[^\s"'])|\\(?!["'nrt]))+""")
_SCHEME = re.compile(r"(?i:basic|bearer|token|digest|apikey|aws4-hmac-sha256)\s{1,4}")
_NO_VALUE_WORDS = """
    null none nil true false undefined string str int number object array required optional missing invalid incorrect
    wrong expired correct empty needed not set unset stored changed being the a an no my your their this that to too
    is was and or for in on of be reset default hidden redacted protected secret password token type value key
"""
_NO_VALUE = frozenset(_NO_VALUE_WORDS.split())
_SHORTEST = {"password": 3, "secret": 6}


def find_secrets(text: str) -> Iterator[Span]:
    """Yield the spans of secrets; they may overlap."""
    yield from _private_keys(text)
    yield from _keys(text)
    lowered = text.lower()
    for hint, pattern, kind, is_valid in _BY_GROUP:
        for match in pattern.finditer(text) if hint in lowered else ():
            if is_valid(match.group(1)):
                yield Span(match.start(1), match.end(1), kind)
    if any(hint in lowered for hint in _NAME_HINTS):
        yield from _named_values(text)


def _private_keys(text: str) -> Iterator[Span]:
    at, has_end = 0, True
    while begin := _PEM_BEGINS.search(text, at):
        end = _PEM_ENDS.search(text, begin.end()) if has_end else None
        # Without an end, no later one is searched for: that would take quadratic time.
        has_end = end is not None
        body = end or _PEM_BODY.match(text, begin.end())
        at = body.end() if body else begin.end()
        yield Span(begin.start(), at, "private_key")


def _keys(text: str) -> Iterator[Span]:
    for match, kind in _in_long_words(text):
        if _is_key(match.group()):
            yield Span(match.start(), match.end(), kind)
    yield from _broken_keys(text)


def _in_long_words(text: str) -> Iterator[tuple[re.Match[str], str]]:
    for word in _LONG_WORD.finditer(text):
        for pattern, kind in _KEYS:
            # An escape before the key may be up to six characters long.
            for match in pattern.finditer(text, max(word.start() - 6, 0), word.end()):
                yield match, kind


def _is_key(value: str) -> bool:
    # "sk-learn-contrib-and-friends" has the form of a key, but is not one.
    return not _DASHED.match(value) or any(c.isdigit() for c in value)


def _broken_keys(text: str) -> Iterator[Span]:
    """Find keys with breaks in them, in the text without breaks; what follows a break must look like part of a key."""
    pieces, starts, shift = [], [0], [0]
    last = 0
    for found in _BREAK.finditer(text):
        pieces.append(text[last : found.start()])
        starts.append(starts[-1] + found.start() - last)
        last = found.end()
        shift.append(last - starts[-1])
    if not pieces:
        return
    joined = "".join([*pieces, text[last:]])
    for match, kind in _in_long_words(joined):
        first = bisect_right(starts, match.start()) - 1
        end, piece = match.end(), first
        while piece + 1 < len(starts) and starts[piece + 1] < end:
            following = starts[piece + 2] if piece + 2 < len(starts) else end
            if _WORDLIKE.fullmatch(joined, starts[piece + 1], min(end, following)):
                end = starts[piece + 1]
                break
            piece += 1
        if piece > first and match.re.fullmatch(value := joined[match.start() : end]) and _is_key(value):
            yield Span(match.start() + shift[first], end + shift[piece], kind)


def _named_values(text: str) -> Iterator[Span]:
    for pattern in (_NAME, _OPTION):
        at = 0
        while match := pattern.search(text, at):
            start, end = _value(text, match.end())
            value = text[start:end]
            name = match.group().lower()
            kind = "password" if "pass" in name or "pwd" in name else "secret"
            if _is_value(value, kind):
                yield Span(start, end, kind)
            at = max(match.end(), end)


def _value(text: str, at: int) -> tuple[int, int]:
    """Return the span of a value that follows a name and an equals sign."""
    quote = _QUOTE.match(text, at)
    start = quote.end() if quote else at
    if scheme := _SCHEME.match(text, start):
        start = scheme.end()
    if quote is not None:
        end = text.find(quote.group(), start, start + LONGEST_VALUE)
        while len(quote.group()) == 1 and end > start and _escaped(text, end, start):
            end = text.find(quote.group(), end + 1, start + LONGEST_VALUE)
        if end >= 0:
            return start, end
    bare = _BARE.match(text, start, min(len(text), start + LONGEST_VALUE))
    return start, bare.end() if bare else start


def _escaped(text: str, at: int, start: int) -> bool:
    before = text[max(start, at - 64) : at]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _is_value(value: str, kind: str) -> bool:
    plain = value.strip(" .,:;*!?").lower()
    return len(value) >= _SHORTEST[kind] and plain not in _NO_VALUE and any(c.isalnum() for c in plain)


def _is_basic(value: str) -> bool:
    try:
        return b":" in base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_" if "-" in value else None)
    except (binascii.Error, ValueError):
        return False


def _is_token(value: str) -> bool:
    return any(c.isdigit() for c in value) or len(value) >= 20


def _is_password(value: str) -> bool:
    return _is_value(value, "password")


_NAME_HINTS = ("pass", "pwd", "secret", "key", "token", "credential", "authorization", "session", "signature")
_BY_GROUP: tuple[tuple[str, re.Pattern[str], str, Callable[[str], bool]], ...] = (
    ("basic", _BASIC, "basic", _is_basic),
    ("bearer", _BEARER, "token", _is_token),
    ("cookie", _COOKIE, "cookie", _is_password),
    ("://", _URL_PASSWORD, "password", _is_password),
    ("://", _URL_TOKEN, "token", _is_token),
    ("-u", _USER_OPTION, "password", _is_password),
    ("</", _ELEMENT, "secret", _is_password),
    ("pass", _SPOKEN_PASSWORD, "password", _is_password),
    ("key", _SPOKEN_PASSWORD, "password", _is_password),
    ("token", _SPOKEN_PASSWORD, "password", _is_password),
)
