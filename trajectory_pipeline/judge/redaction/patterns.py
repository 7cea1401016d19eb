"""Finds secrets in text: by their own form, by a name, by their place, in tables, in keys and in encoded text.

A text of n characters is read in time that grows with n alone: no repetition in a repetition, every length bounded, and
no start inside a run of its own characters. A long text is read in pieces, so that no search takes long.
"""

import base64
import binascii
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator

from trajectory_pipeline.judge.redaction.credentials import find_credentials
from trajectory_pipeline.judge.redaction.named_values import find_named_values
from trajectory_pipeline.judge.redaction.span import Span
from trajectory_pipeline.judge.redaction.tables import find_table_secrets
from trajectory_pipeline.judge.redaction.visible_text import visible_text

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
    r"(?:SK|AC)[0-9a-f]{32}(?::[0-9a-f]{32})?(?![A-Za-z0-9])",  # Twilio
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
    r"(?:bot)?[0-9]{8,10}:AA[A-Za-z0-9_-]{32,33}(?![A-Za-z0-9_-])",  # Telegram
    r"api_org_[A-Za-z0-9]{30,64}",  # Hugging Face
    r"[0-9a-f]{32}-us[0-9]{1,2}(?![A-Za-z0-9])",  # Mailchimp
    r"fm[12][ar]?_[A-Za-z0-9+/=_-]{40,1024}",  # Fly
    r"figd_[A-Za-z0-9_-]{30,64}",  # Figma
    r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}",  # Postman
    r"AQ\.[A-Za-z0-9_-]{40,128}",  # Google
    r"1//0[A-Za-z0-9_-]{40,256}",
    r"fw_[A-Za-z0-9]{22,64}",  # Fireworks
    r"[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34}",  # Azure
    r"dckr_[po]at_[A-Za-z0-9_-]{20,64}",  # Docker
    r"nvapi-[A-Za-z0-9_-]{40,128}",
    r"xkeysib-[0-9a-f]{64}-[A-Za-z0-9]{16}",  # Brevo
    r"sntry[su]_[A-Za-z0-9_=+/-]{40,512}",  # Sentry
    r"ph[cx]_[A-Za-z0-9]{30,64}",  # PostHog
    r"pul-[0-9a-f]{40}",  # Pulumi
    r"rubygems_[0-9a-f]{48}",
    r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,80}",  # Terraform
    r"AT(?:CTT3|BB)[A-Za-z0-9_=-]{20,512}",  # Atlassian, Bitbucket
    r"EAA[A-Za-z0-9]{60,512}",  # Facebook
    r"LTAI[A-Za-z0-9]{12,30}(?![A-Za-z0-9])",  # Alibaba
    r"AKID[A-Za-z0-9]{32}(?![A-Za-z0-9])",  # Tencent
    r"re_[A-Za-z0-9]{8}_[A-Za-z0-9]{20,32}",  # Resend
    r"sb_secret_[A-Za-z0-9_-]{20,64}",  # Supabase
    r"ops_eyJ[A-Za-z0-9_-]{100,4096}",  # 1Password
    r"apify_api_[A-Za-z0-9]{30,64}",
    r"e2b_[0-9a-f]{40}",
    r"fc-[0-9a-f]{32}(?![A-Za-z0-9])",  # Firecrawl
    r"jina_[A-Za-z0-9]{40,128}",
    r"csk-[A-Za-z0-9]{40,64}",  # Cerebras
    r"[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,40}(?![A-Za-z0-9_-])",  # Discord
    r"amzn\.mws\.[0-9a-f-]{36}",
    r"ABSK[A-Za-z0-9+/=]{80,256}",  # AWS Bedrock
    r"v1\.0-[0-9a-f]{24}-[0-9a-f]{100,160}",  # Cloudflare
    r"(?:[a-z0-9]{2,12}[_-]){1,3}(?:pat|key|token|secret|api|tok|sk|auth|live|prod|oauth|rw)[_-]"
    r"(?=[A-Za-z_-]{0,24}[0-9])(?=[0-9a-z_-]{0,24}[A-Z])"
    r"[A-Za-z0-9]{16,255}(?:[_-][A-Za-z0-9]{16,255}){0,2}",  # any that says what it is
    r"[xyz]prv[1-9A-HJ-NP-Za-km-z]{100,112}",  # wallets
    r"[5KL][1-9A-HJ-NP-Za-km-z]{50,51}(?![A-Za-z0-9])",
    r"LS0tLS1CRUdJTi[A-Za-z0-9+/]{40,16384}={0,2}",  # a key in PEM, in base64
)
_HASHES = re.compile(
    r"\$(?:apr1|[156]|2[abxy]|y|argon2(?:id?|d)|pbkdf2[a-z0-9-]{0,12}|scrypt)\$[A-Za-z0-9$./+=,-]{16,256}"
    r"|pbkdf2_sha\w{1,6}\$[A-Za-z0-9$./+=:,-]{16,256}|SCRAM-SHA-256\$[A-Za-z0-9$./+=:,-]{16,256}|\{S?SHA\}[A-Za-z0-9/+=]{16,256}"
)
"""Hashes of passwords: they can be guessed from."""
_KEY = re.compile(_BEFORE + "(?:" + "|".join(_KEY_FORMS) + ")")
_SHORTEST_KEY = 18
_LONG_WORD = re.compile(rf"[A-Za-z0-9_+/=.:~-]{{{_SHORTEST_KEY},}}")
"""A word that may contain a key; nearly all words are shorter and need not be searched."""
_DOTTED = re.compile(r"[A-Za-z0-9_.-]{1,131072}")
_JWT_BEGINS = re.compile(_BEFORE + r"eyJ[A-Za-z0-9_-]{8}")
_FEWEST_JWT_PARTS, _JWT_PARTS = 2, 5
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

_PEM_BEGINS = re.compile(r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_PEM_ENDS = re.compile(r"-{4,5} ?END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_LONGEST_KEY = 16_384
_PEM_BODY = re.compile(rf"""[A-Za-z0-9+/=\s\\:,"'>|-]{{0,{_LONGEST_KEY}}}""")
_PUTTY = re.compile(r"Private-Lines: [0-9]{1,3}\s{1,4}")

_PIECE, _OVERLAP = 65_536, 12_288
"""Characters of a long text that are read at once, and how many of them are read again with the next piece."""
_ENCODED = re.compile(r"(?<![A-Za-z0-9+/_=.-])[A-Za-z0-9+/_-]{20,4096}={0,2}(?![A-Za-z0-9+/_=-])")
_FROM_URL_SAFE = str.maketrans("-_", "+/")


def find_secrets(text: str, checkpoint: Callable[[], None] = lambda: None) -> Iterator[Span]:
    """Yield the spans of secrets; they may overlap. ``checkpoint`` is called often, and may raise to end the search."""
    visible = visible_text(text)
    for span in _find(visible.text, checkpoint):
        yield Span(*visible.original(span.start, span.end), span.kind)


def _find(text: str, checkpoint: Callable[[], None], *, is_decoded: bool = False) -> Iterator[Span]:
    yield from _private_keys(text)
    yield from find_table_secrets(text, checkpoint)
    for at in range(0, max(len(text) - _OVERLAP, 1), _PIECE - _OVERLAP):
        checkpoint()
        for span in _find_in_piece(text[at : at + _PIECE], checkpoint, is_decoded=is_decoded):
            yield Span(at + span.start, at + span.end, span.kind)


def _find_in_piece(text: str, checkpoint: Callable[[], None], *, is_decoded: bool) -> Iterator[Span]:
    yield from _keys(text)
    yield from _broken_keys(text)
    yield from find_credentials(text)
    yield from find_named_values(text)
    if not is_decoded:
        yield from _encoded_secrets(text, checkpoint)


def _private_keys(text: str) -> Iterator[Span]:
    at, has_end = 0, True
    while begin := _PEM_BEGINS.search(text, at):
        yield from _ends_of_private_keys(text, at, begin.start())
        end = _PEM_ENDS.search(text, begin.end()) if has_end else None
        # Without an end, no later one is searched for: that would take quadratic time.
        has_end = end is not None
        body = end or _PEM_BODY.match(text, begin.end())
        at = body.end() if body else begin.end()
        yield Span(begin.start(), at, "private_key")
    yield from _ends_of_private_keys(text, at, len(text))
    for lines in _PUTTY.finditer(text):
        body = _PEM_BODY.match(text, lines.end())
        yield Span(lines.end(), body.end() if body else lines.end(), "private_key")


def _ends_of_private_keys(text: str, start: int, stop: int) -> Iterator[Span]:
    """Find keys whose beginning was cut off, by the lines before their end."""
    for end in _PEM_ENDS.finditer(text, start, stop):
        before = text[max(end.start() - _LONGEST_KEY, start) : end.start()]
        body = _PEM_BODY.match(before[::-1])
        yield Span(end.start() - (body.end() if body else 0), end.end(), "private_key")
        start = end.end()


def _keys(text: str) -> Iterator[Span]:
    for found in _HASHES.finditer(text):
        yield Span(*found.span(), "password")
    for start, end, kind in _in_long_tokens(text):
        yield Span(start, end, kind)


def _in_long_tokens(text: str) -> Iterator[tuple[int, int, str]]:
    for word in _LONG_WORD.finditer(text):
        # An escape before the key may be up to six characters long.
        begin = max(word.start() - 6, 0)
        for match in _KEY.finditer(text, begin, word.end()):
            if _is_key(match.group()):
                yield (*match.span(), "api_key")
    if "eyJ" in text:
        for dotted in _DOTTED.finditer(text):
            yield from _jwts(text, *dotted.span())


def _jwts(text: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
    """Find tokens in a run of parts between dots; each part is read once."""
    at = start
    while at < end:
        stop = text.find(".", at, end)
        stop = stop if stop >= 0 else end
        begin = _JWT_BEGINS.search(text, max(at - 6, 0), stop)
        if begin is None or stop == end:
            at = stop + 1
            continue
        parts = 1
        while stop < end and parts < _JWT_PARTS:
            following = text.find(".", stop + 1, end)
            stop = following if following >= 0 else end
            parts += 1
        if parts > _FEWEST_JWT_PARTS or stop == end:
            yield begin.start(), stop, "jwt"
        at = stop + 1


def _encoded_secrets(text: str, checkpoint: Callable[[], None]) -> Iterator[Span]:
    """Find secrets in text that is encoded in base64."""
    for word in _ENCODED.finditer(text):
        decoded = _decoded(word.group())
        if decoded and next(_find(decoded, checkpoint, is_decoded=True), None) is not None:
            yield Span(*word.span(), "encoded")


def _decoded(word: str) -> str | None:
    """Return the text that a word in base64 stands for; None where it is none."""
    plain = word.rstrip("=").translate(_FROM_URL_SAFE)
    try:
        decoded = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return None
    return decoded if all(c.isprintable() or c in "\r\n\t" for c in decoded) else None


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
    for start, found_end, kind in _in_long_tokens(joined):
        first = bisect_right(starts, start) - 1
        end, piece = found_end, first
        while piece + 1 < len(starts) and starts[piece + 1] < end:
            following = starts[piece + 2] if piece + 2 < len(starts) else end
            if _WORDLIKE.fullmatch(joined, starts[piece + 1], min(end, following)):
                end = starts[piece + 1]
                break
            piece += 1
        if piece > first and (end == found_end or _is_whole_key(joined[start:end])):
            yield Span(start + shift[first], end + shift[piece], kind)


def _is_whole_key(value: str) -> bool:
    match = _KEY.fullmatch(value)
    return match is not None and _is_key(value)
