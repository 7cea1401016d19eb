"""Finds secrets in text: by their own form, by a name, by their place, in tables, in keys and in encoded text.

A text of n characters is read in time that grows with n alone: no repetition in a repetition, every length bounded, and
no start inside a run of its own characters. A long text is read in pieces, so that no search takes long.
"""

import base64
import binascii
import re
import string
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

from trajectory_pipeline.judge.redaction import credentials, named_values, tables
from trajectory_pipeline.judge.redaction.literals import Literals, LiteralSet
from trajectory_pipeline.judge.redaction.span import Span
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
    r"xox[a-z]-[A-Za-z0-9-]{10,255}",  # Slack
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
    r"(?:live|test|prod|tok|token|key|apikey|secret|whk|pat|pass|auth|api|sess)_(?:[0-9a-f]{32,128}(?![A-Za-z0-9])"
    r"|(?=[A-Za-z]{0,24}[0-9])(?=[0-9a-z]{0,24}[A-Z])[A-Za-z0-9]{24,255})",
    # Netlify, Render, RunPod, Typeform, Sourcegraph, Lichess, SonarQube, PlanetScale, Matrix and others.
    r"(?:nfp|rnd|rpa|tfp|lip|ddp|sgp|sq[apu]|pnu|dtn|cf(?:at|ut|k)|bkua|waka|esecret|napi|arc|gcntfy|cal_live|tgp_v1"
    r"|wandb_v1|bb_live|trdb|rdme|slk|vck|rkt|lt|snyk_uat|ctp|frp|asn|sbs|hk|syt|pscale_(?:tkn|pw|oauth)"
    r"|ory_(?:pat|at|rt))_(?:[0-9a-f]{32,128}(?![A-Za-z0-9])|(?=[A-Za-z_=.-]{0,40}[0-9])(?=[0-9a-z_=.-]{0,40}[A-Z])"
    r"[A-Za-z0-9_=.-]{20,255})",
    r"(?:CLOJARS|CCIPAT|CCIPRJ|ATTA|BSA|EZAK|EZTK|AKLT|JDC|SCW)_?(?=[A-Za-z_]{0,24}[0-9])[A-Za-z0-9_]{24,255}",
    # New Relic, Flutterwave, Contentful, Mandrill, Voyage, Inngest, Plaid, LaunchDarkly, PubNub, Bedrock and others.
    r"(?:CFPAT|NR(?:II|JS|RA|BR)|FLW(?:SEC|PUB)K(?:_TEST)?|APP_USR|ZT0|ico|fio-u|tk-us|md|pa|p8e|PMAK|m0|signkey-[a-z]{1,8}"
    r"|secret-(?:live|test)|access-(?:sandbox|production|development)|sdk|mob|api|(?:pub|sub|sec)-c|bedrock-api-key"
    r"|gl(?:imt|agent|oas|ffct)|dnkey|xsmtpsib|zpka|shippo_(?:live|test))-"
    r"(?:[0-9a-f]{32,128}(?:-X)?(?![A-Za-z0-9])|[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
    r"|(?=[A-Za-z_-]{0,40}[0-9])(?=[0-9a-z_-]{0,40}[A-Z])[A-Za-z0-9_]{24,255})",
    r"sha256~[A-Za-z0-9_-]{40,64}",  # OpenShift
    r"secret-token:[A-Za-z0-9._~%+/=-]{8,512}",  # RFC 8959
    r"dt0c01\.[A-Z0-9a-z]{20,26}\.[A-Za-z0-9]{60,72}",  # Dynatrace
    r"v[1-4]\.(?:local|public)\.[A-Za-z0-9_-]{40,4096}(?:\.[A-Za-z0-9_-]{1,512})?",  # Paseto
    r"v1\.[0-9a-f]{32}[A-Za-z0-9]{8,64}(?![A-Za-z0-9])",
    r"sl\.(?:u\.)?[A-Za-z0-9_-]{100,512}",  # Dropbox
    r"(?:IQoJb3JpZ2luX2Vj|F[wQ]oGZXIvYXdz|FwoDYXdz)[A-Za-z0-9/+=%]{60,4096}",  # AWS, of a session
    r"(?:[A-Za-z0-9_-]{8,24}:)?APA91b[A-Za-z0-9_-]{60,512}",  # Firebase
    r"oauth:(?=[A-Za-z]{0,30}[0-9])[a-z0-9A-Z]{28,40}(?![A-Za-z0-9])",  # Twitch
    r"IG[A-Z]{2,4}[A-Za-z0-9_-]{60,512}",  # Instagram
    r"6L[A-Za-z0-9_-]{6}AAAAA[A-Za-z0-9_-]{20,32}",  # reCAPTCHA
    r"eyJrIjoi[A-Za-z0-9+/=_-]{40,512}",  # Grafana
    r"oy2[a-z0-9]{43}(?![A-Za-z0-9])",  # NuGet
    r"cio[A-Za-z0-9]{32,40}(?![A-Za-z0-9])",  # crates.io
    r"AKCp[A-Za-z0-9]{30,80}",  # Artifactory
    r"SCT[0-9]{3,8}T[A-Za-z0-9]{16,64}",  # ServerChan
    r"[xyz]prv[1-9A-HJ-NP-Za-km-z]{100,112}",  # wallets
    r"[5KL][1-9A-HJ-NP-Za-km-z]{50,51}(?![A-Za-z0-9])",
    r"LS0tLS1CRUdJTi[A-Za-z0-9+/]{40,16384}={0,2}",  # a key in PEM, in base64
)
_HASHES = re.compile(
    r"\$(?:apr1|[156]|2[abxy]|y|argon2(?:id?|d)|pbkdf2[a-z0-9-]{0,12}|scrypt)\$[A-Za-z0-9$./+=,-]{16,256}"
    r"|pbkdf2_sha\w{1,6}\$[A-Za-z0-9$./+=:,-]{16,256}|SCRAM-SHA-256\$[A-Za-z0-9$./+=:,-]{16,256}"
    r"|\{S?SHA\}[A-Za-z0-9/+=]{16,256}"
)
"""Hashes of passwords: they can be guessed from."""
_HASH_HINTS = frozenset(("$", "{sha}", "{ssha}"))
"""One of these stands in every such hash, in any case."""
_KEY = re.compile(_BEFORE + "(?:" + "|".join(_KEY_FORMS) + ")")
_SHORTEST_KEY = 18
_IN_WORD = string.ascii_letters + string.digits + "_+/=.:~-"
_SHAPE = bytes(b"w"[0] if chr(byte) in _IN_WORD else b" "[0] for byte in range(256))
_SHORTEST = b"w" * _SHORTEST_KEY
_LONGEST_ESCAPE = 6
"""Characters of an escape before a key."""
_DOTTED = re.compile(r"[A-Za-z0-9_.-]{1,131072}")
_JWT_BEGINS = re.compile(_BEFORE + r"eyJ[A-Za-z0-9_-]{8}")
_FEWEST_JWT_PARTS, _JWT_PARTS = 2, 5
_DASHED = re.compile(r"[sp]k-")

_LINE_BREAK = r"""(?:(?<=\n)|(?<=\r)\n|(?<=\\)\\{0,3}(?:\r?\n|n|r\\{1,4}n))[ \t]{0,80}"""
_BETWEEN_LITERALS = r"""(?<=["'])[ \t]{0,8}\+?[ \t]{0,8}\\?\r?\n[ \t]{0,80}["']"""
_AFTER_BREAK = r"(?=[A-Za-z0-9_.+/=-])"
_BREAK = re.compile(
    rf"""[\\\r\n"'](?<=[A-Za-z0-9_.+/=-].)(?:{_LINE_BREAK}|{_BETWEEN_LITERALS}){_AFTER_BREAK}""", re.DOTALL
)
"""A break in the middle of a token: a terminal's, one written as an escape, one between two literals.

The text before it is tested after its first character, since the search jumps to that: several times faster.
"""
_BREAK_OF_LINE = re.compile(rf"""[\\\r\n](?<=[A-Za-z0-9_.+/=-].){_LINE_BREAK}{_AFTER_BREAK}""", re.DOTALL)
_LITERAL_BELOW = re.compile(r"""\n[ \t]{0,80}["']""")
"""Stands in every break between two literals."""
_WORDLIKE = re.compile(r"[A-Za-z]?[a-z]*[.=:]*|[A-Z]+[.=:]*")

_PEM_BEGINS = re.compile(r"-{4,5} ?BEGIN [A-Za-z0-9 ]{0,40}(?:PRIVATE KEY(?: BLOCK)?|Static key V[0-9]) ?-{4,5}")
_PEM_ENDS = re.compile(r"-{4,5} ?END [A-Za-z0-9 ]{0,40}(?:PRIVATE KEY(?: BLOCK)?|Static key V[0-9]) ?-{4,5}")
_LONGEST_KEY = 16_384
_PEM_BODY = re.compile(rf"""[A-Za-z0-9+/=\s\\:,"'>|-]{{0,{_LONGEST_KEY}}}""")
_PUTTY = re.compile(r"Private-Lines: [0-9]{1,3}\s{1,4}")
_PEM_HINTS = ("PRIVATE KEY", "Static key V", "Private-Lines: ")

_PIECE, _OVERLAP = 65_536, 12_288
"""Characters of a long text that are read at once, and how many of them are read again with the next piece."""
_ENCODED = re.compile(
    r"(?<![A-Za-z0-9+/_.-])[A-Za-z0-9+/_-]{20,4096}(?:(?:\r?\n|\\{1,4}n)[A-Za-z0-9+/_-]{4,4096}){0,64}={0,2}"
    r"(?![A-Za-z0-9+/_=-])"
)
_PART_OF_WORD = re.compile(r"[A-Za-z0-9+/_-]{20,4096}")
_LINE_OF_ENCODED = re.compile(r"\r?\n|\\{1,4}n")
_HEX = re.compile(r"(?<![A-Za-z0-9])(?:[0-9a-f]{2}){10,2048}(?![A-Za-z0-9])")
_DEEPEST = 2
"""How often a text may be encoded."""
_FROM_URL_SAFE = str.maketrans("-_", "+/")

_LITERALS = LiteralSet(credentials.LITERALS | named_values.LITERALS | tables.HINTS | _HASH_HINTS)
_Words = list[tuple[int, int]]
"""Spans of words that may contain a key; nearly all words are shorter and need not be searched."""


def find_secrets(text: str, checkpoint: Callable[[], None] = lambda: None) -> Iterator[Span]:
    """Yield the spans of secrets; they may overlap. ``checkpoint`` is called often, and may raise to end the search."""
    visible = visible_text(text)
    for span in _find(visible.text, checkpoint):
        yield Span(*visible.original(span.start, span.end), span.kind)
    if visible.text != text:
        yield from credentials.find_url_logins(text)


def _find(text: str, checkpoint: Callable[[], None], depth: int = 0) -> Iterator[Span]:
    yield from _private_keys(text)
    may_have_tables = False
    for at in range(0, max(len(text) - _OVERLAP, 1), _PIECE - _OVERLAP):
        checkpoint()
        literals = _LITERALS.find(text[at : at + _PIECE])
        may_have_tables = may_have_tables or not literals.positions.keys().isdisjoint(tables.HINTS)
        for span in _find_in_piece(literals, checkpoint, depth):
            yield Span(at + span.start, at + span.end, span.kind)
    if may_have_tables:
        yield from tables.find_table_secrets(text, checkpoint)


def _find_in_piece(literals: Literals, checkpoint: Callable[[], None], depth: int) -> Iterator[Span]:
    text = literals.text
    words = _long_words(text)
    yield from _keys(literals, words)
    yield from _broken_keys(text)
    yield from credentials.find_credentials(literals)
    yield from named_values.find_named_values(literals)
    if depth < _DEEPEST and words:
        yield from _encoded_secrets(text, words, checkpoint, depth)


def _long_words(text: str) -> _Words:
    """Return the spans of all runs of ``_IN_WORD`` that are as long as a key; ten times as fast as a pattern."""
    shape = text.encode("ascii", "replace").translate(_SHAPE)
    words, start = [], shape.find(_SHORTEST)
    while start >= 0:
        end = shape.find(b" ", start)
        end = end if end >= 0 else len(shape)
        words.append((start, end))
        start = shape.find(_SHORTEST, end)
    return words


def _private_keys(text: str) -> Iterator[Span]:
    if _PEM_HINTS[0] not in text and _PEM_HINTS[1] not in text and _PEM_HINTS[2] not in text:
        return
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


def _keys(literals: Literals, words: _Words) -> Iterator[Span]:
    text = literals.text
    if not literals.positions.keys().isdisjoint(_HASH_HINTS):
        for found in _HASHES.finditer(text):
            yield Span(*found.span(), "password")
    for start, end, kind in _in_long_tokens(text, words):
        yield Span(start, end, kind)


def _in_long_tokens(text: str, words: _Words) -> Iterator[tuple[int, int, str]]:
    for start, end in words:
        for match in _KEY.finditer(text, max(start - _LONGEST_ESCAPE, 0), end):
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


def _encoded_secrets(text: str, words: _Words, checkpoint: Callable[[], None], depth: int) -> Iterator[Span]:
    """Find secrets in text that is encoded in base64 or as hexadecimal digits."""
    for matches, decode in ((_base64_matches, _from_base64), (_hex_matches, _from_hex)):
        for word in matches(text, words):
            decoded = decode(word.group())
            if decoded and next(_find(decoded, checkpoint, depth + 1), None) is not None:
                yield Span(*word.span(), "encoded")


def _base64_matches(text: str, words: _Words) -> Iterator[re.Match[str]]:
    """Yield what ``_ENCODED.finditer(text)`` does: a match begins in a long word, and may go on in later ones."""
    at = 0
    for start, end in words:
        for part in _PART_OF_WORD.finditer(text, start, end):
            if part.start() >= at and (match := _ENCODED.match(text, part.start())):
                yield match
                at = match.end()


def _hex_matches(text: str, words: _Words) -> Iterator[re.Match[str]]:
    """Yield what ``_HEX.finditer(text)`` does: a match is in one long word."""
    for start, end in words:
        yield from _HEX.finditer(text, start, end)


def _from_base64(word: str) -> str | None:
    """Return the text that a word in base64 stands for; None where it is none."""
    plain = _LINE_OF_ENCODED.sub("", word).rstrip("=").translate(_FROM_URL_SAFE)
    try:
        return _as_text(base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True))
    except (binascii.Error, ValueError):
        return None


def _from_hex(word: str) -> str | None:
    return _as_text(bytes.fromhex(word))


def _as_text(decoded: bytes) -> str | None:
    """Return what bytes say if they are text, in UTF-8, or in UTF-16 as PowerShell has it."""
    encoding = "utf-16-le" if decoded[1:8:2] == b"\0\0\0\0" else "utf-8"
    try:
        text = decoded.decode(encoding)
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c in "\r\n\t" for c in text) else None


def _is_key(value: str) -> bool:
    # "sk-learn-contrib-and-friends" has the form of a key, but is not one.
    return not _DASHED.match(value) or any(c.isdigit() for c in value)


def _broken_keys(text: str) -> Iterator[Span]:
    """Find keys with breaks in them, in the text without breaks; what follows a break must look like part of a key."""
    if not _may_have_broken_key(text):
        return
    pieces, starts, shift = [], [0], [0]
    last = 0
    for found in _BREAK.finditer(text):
        pieces.append(text[last : found.start()])
        starts.append(starts[-1] + found.start() - last)
        last = found.end()
        shift.append(last - starts[-1])
    joined = "".join([*pieces, text[last:]])
    # A key without a break is found in the text itself.
    words = [
        (start, end)
        for start, end in _long_words(joined)
        if bisect_right(starts, start - _LONGEST_ESCAPE) < bisect_left(starts, end)
    ]
    for start, found_end, kind in _in_long_tokens(joined, words):
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


def _may_have_broken_key(text: str) -> bool:
    """Whether there are other long words without the breaks, and a key among them."""
    if "\n" not in text and "\\" not in text and "\r" not in text:
        return False
    # Quotes are frequent. One after a backslash begins and ends no break, and no other does where no literal is below.
    text = text.replace('\\"', "  ")
    broken = (_BREAK if _LITERAL_BELOW.search(text) else _BREAK_OF_LINE).sub("\0", text)
    joined = broken.replace("\0", "")
    words = _long_words(joined)
    if not words or [end - start for start, end in words] == [end - start for start, end in _long_words(broken)]:
        return False
    return next(_in_long_tokens(joined, words), None) is not None


def _is_whole_key(value: str) -> bool:
    match = _KEY.fullmatch(value)
    return match is not None and _is_key(value)
