"""Secrets that are found by the name beside them, in any syntax: code, configuration, headers, markup and prose."""

import re
import string
from collections.abc import Iterator

from trajectory_pipeline.judge.redaction.code_values import code_values, joined_literals, markup_values, members
from trajectory_pipeline.judge.redaction.literals import Literals
from trajectory_pipeline.judge.redaction.span import Span
from trajectory_pipeline.judge.redaction.values import (
    HEX,
    LONGEST_OPAQUE,
    LONGEST_VALUE,
    QUOTE,
    SCHEME,
    UUID,
    NameKind,
    checked,
    has_odd_inside,
    is_mixed,
    is_value,
    looks_opaque,
    looks_strong,
    quoted,
    quoted_or_bare,
    trimmed,
)

# An ending says what a name is for, whatever stands before it: DB_PASSWORD, dbtoken, x-vendor-api-key.
_ENDINGS = {
    NameKind.HEADER: r"authorization",
    NameKind.PHRASE: r"phrase(?! secr)|words|mnemonic",
    NameKind.PASSWORD: (
        r"pass[ _-]?(?:word|phrase|code)|passw(?:or)?d|passwort|passord(?:et)?|pass(?:wd|wrd)|pwd|pswd"
        r"|kennwort|geheimwort"
        r"|contrase(?:ñ|n)a|palavra[ -]passe|mots?[ _-]de[ _-]passe|motdepasse|wachtwoord(?:en)?|adgangskoden?"
        r"|salasana[a-z]{0,4}|slapta(?:ž|z)odis|lykilor(?:ð|d)|zugangs(?:wort|code)|phrase secr(?:è|e)te"
        r"|parola d'ordine|community string"
    ),
    NameKind.SECRET: (
        r"secret(?:[ _-]?(?:access)?[ _-]?key)?|token|credential"
        r"|(?:clé|clave|chave|chiave|sleutel)[ _-](?:de |d'|del |da )?(?:api|secr(?:è|e)te|privée|secreta|privada"
        r"|segreta|privata)|schl(?:ü|ue)ssel|geheimnis|session[ _-]?id"
    ),
    NameKind.OPAQUE: r"key(?:[_-]id)?|signature|sessid|verifier|assertion|saml(?:response|request)",
}
# These say so only as a word of their own: DB_PASS and dbPass, but not bypass.
_WORDS = {
    NameKind.PASSWORD: (
        r"pass|passw|pw|psw|psk|mdp|senha|parola|heslo|has(?:ł|l)o|l(?:ö|o)senord(?:et)?|jelsz(?:ó|o"
        r"|av)[a-z]{0,4}|(?:ş|s)ifre[a-z]{0,4}|mật khẩu"
        r"|kata sandi|sandi|mat khau|parol(?:ă|e)|parool|geslo|lozinka|zaporka|masterauth|identified by"
    ),
    NameKind.LIKELY: r"clave(?: de acceso)?|llave|jeton(?: d'accès)?|segreto|segredo|kodu?",
    NameKind.SECRET: r"creds?",
    NameKind.OPAQUE: (
        r"sig|auth|sid|session|jwt|bearer|hmac|cookie|salt|seed|oauth|pepper|webhook|login|private|access|refresh|nonce|csrf"
        r"|xsrf"
    ),
    NameKind.DIGITS: (
        r"pin(?:[ _-]?code)?|otp|totp|tan|puk|cvv|cvc|code(?: secret| d'accès| d'accesso)?|c(?:ó|o)digo de acc?es?so"
    ),
}
_OTHER_SCRIPTS = (
    r"парол[ьяюе]м?|密码|密碼|口令|パスワード|暗証番号|비밀번호|암호|كلمة (?:المرور|السر)|סיסמ[הא]"
    r"|κωδικ(?:ό|ο)ς(?: πρόσβασης)?|รหัสผ่าน|पासवर्ड|গোপন নম্বর|পাসওয়ার্ড|கடவுச்சொல்|гасл[оа]|лозинк[ае]|비번"
    r"|암호문|ססמ[הא]"
    r"|رمز (?:المرور|الدخول|عبور)|گذرواژه|კოდური სიტყვა|պարոլ|գաղտնաբառ"
)
_OTHER_SECRETS = (
    r"密钥|密鑰|令牌|トークン|токен|ключ(?: api)?|секрет(?:н(?:ый|ого) ключ|ная фраза)?"
    r"|秘密鍵|暗号鍵|私钥|私鑰|秘钥|秘鑰|凭证"
    r"|토큰|비밀 ?키|인증 ?키|api ?키|مفتاح|رمز|गुप्त(?: कुंजी)?"
)
_OTHER_DIGITS = r"код(?: доступа| подтверждения)?|验证码|驗證碼|認証コード|인증번호"
_STEM_WORDS = """
    pass pw ps mdp kennwort geheim contrase palavra mot wachtwoord adgangskode salasana secret token cred clave chave
    chiave sleutel session sessid key sig auth sid jwt bearer hmac cookie salt seed pepper phrase words mnemonic pin
    otp tan puk cv code senha parol heslo haslo hasło losenord jelsz sifre kata identified llave jeton segre kod slapta
    lykilor zugangs community sandi mat_khau parool geslo lozinka zaporka webhook login private access refresh
    nonce csrf xsrf masterauth verifier assertion saml codigo schluessel
    clé schlüssel lösenord şifre mật парол 密 口令 パスワード 暗証番号 비밀번호 암호 كلمة סיסמ κωδικ รหัสผ่าน
    पासवर्ड 令牌 トークン токен ключ 秘密鍵 토큰 مفتاح código গোপন পাসওয়ার্ড கடவுச்சொல் гасл лозинк 비번 ססמ
    رمز گذرواژه კოდური պարոլ գաղտնաբառ секрет 暗号鍵 私钥 私鑰 秘钥 秘鑰 凭证 비밀 인증 api गुप्त код 验证码 驗證碼
    認証コード 인증번호
"""
_STEMS = frozenset(word.replace("_", " ") for word in _STEM_WORDS.split())
"""What names begin with."""
_TAIL = (
    r"(?:[ _-]?(?:[0-9]{1,3}|value|val|data|raw|plain|plaintext|text|base64|b64|str|string|old|new|prod"
    r"|production|dev"
    r"|staging|live|env|current|previous|hash|base|var|b|v[0-9]{1,2}|backup|readonly|ro|rw|test|qa|local"
    r"|primary|secondary"
    r"|main|default|temp|tmp|content))?"
)
_ENDS = r"(?![a-z0-9_])"
_NAME = re.compile(
    "|".join(
        f"(?P<{kind}{suffix}>(?:{words}){_TAIL}{_ENDS})"
        for suffix, by_kind in (("", _ENDINGS), ("_word", _WORDS))
        for kind, words in by_kind.items()
    )
    + f"|(?P<password_other>{_OTHER_SCRIPTS})|(?P<secret_other>{_OTHER_SECRETS})"
    + f"|(?P<digits_other>{_OTHER_DIGITS})"
)
_SECRET_KEY = re.compile(
    r"(?:api|access|account|private|encryption|decryption|signing|secret|shared|master|subscription|service"
    r"|client|deploy"
    r"|license|host|ssh|app|application|function|webhook|admin|auth|crypt|cipher|wallet|wireguard|preshared"
    r"|integration"
    r"|ingest|write|read|project|publishable|restricted|pass|wi-?fi|wpa[23]?|instrumentation|ingestion|sdk"
    r"|mobile|sending"
    r"|delivery|hmac|jwt|sign|recovery|unseal|pre-shared|vapid|sas|consumer|symmetric)[ _-]?$"
)
_SECRET_PHRASE = re.compile(r"(?:seed|recovery|mnemonic|secret|backup|wallet)[ _-]?$")
_SECRET_CODE = re.compile(
    r"(?:verification|security|login|2fa|mfa|auth|pin|one[- ]?time|access|door|gate|alarm|unlock|entry|backup"
    r"|recovery"
    r"|confirmation|sms|secret|lock|activation|your)[ _-]?$"
)
_COMPOUNDS_TEXT = """
    user db ssh key store root admin my require php j smb ftp imap pop pop3 smtp ldap vnc rdp wifi mail sql pg mysql
    redis mongo sudo login auth new old master server proxy http bind sftp svn git vpn ppp wpa email psk olcroot
"""
_COMPOUNDS = tuple(_COMPOUNDS_TEXT.split())
_IN_WORD = re.compile(r"[\w.-]")
_TEST_RESULT = re.compile(
    r":[ \t]{1,4}(?:[A-Za-z_./:-]{0,64}_|[A-Za-z/.-]{1,64}(?![\w!#$%&*+@^~-])|[0-9]{1,9}(?![A-Za-z]))"
)
_MARKUP_NAME = re.compile(r"<[\w.:-]{0,60}$")
_OPTION_NAME = re.compile(r"(?:^|[\s\"'])--?[\w-]{0,40}$")
_PLURALS = frozenset(("passwords", "secrets", "tokens", "keys", "credentials", "creds", "passcodes"))
_PLURAL = re.compile(rf"(?:{'|'.join(sorted(_PLURALS))})(?![a-z0-9_])")
LITERALS = _STEMS | _PLURALS
"""What has to be found in a text before it is searched for names."""
_NOT_SECRET_KEYS = re.compile(
    r"(?:primary|foreign|partition|sort|cache|idempotency|dedup|routing|public|row|unique|group|object"
    r"|message|translation"
    r"|registry|hot|context|lookup|map|dict|json|issue|project|state|query|ssh[_-]public|site|index|storage)[ _.-]?$"
)

_KEY_IN_BASE64 = re.compile(
    r"""\\{0,8}["']?\s{0,4}[:=]\s{0,4}\\{0,8}["']?[A-Za-z0-9+/]{43}(?:[A-Za-z0-9+/]{43})?={1,2}(?![A-Za-z0-9+/])"""
)
_ENVIRONMENT_KEY = re.compile(r"[A-Z0-9]_KEY=")
_REMARK = (
    r"(?:[ ](?:\([^()\n]{1,40}\)|(?:for|of|on|to|at|in|der|des|de|du|für|pour|para|von"
    r"|del)[ ][^\n:=,;.\"'`]{1,40}?|(?P<word>(?!(?:is|are|was|ist|est|es|to)\b)[^\W\d_]{2,12}(?=[ ]?:)))"
    r")?"
)
_IS = r"is|was|are|ist|war|lautet|est|es|é|è|er|är|jest|to|это"
_CONNECTOR = re.compile(
    r"""(?:\\{0,8}["'`][\])}]{0,2}|\[[0-9]{0,5}\]|\]\\{0,8}["']|[\]}]{0,2})[*_]{0,3}""" + _REMARK + r"[ \t]{0,40}"
    rf"(?P<mark><-|->|=>|[?|+.~]{{0,2}}={{1,3}}>?|:[-=]?=?|%3[dD]|(?<=[ \t])(?P<is>(?i:{_IS}))"
    rf"(?::|[ \t]{{1,4}}(?:set to[ \t])?:?)"
    r"|(?<=['’])(?P<genitive>s)(?=[ \t])|(?P<below>[ \t]{0,4}\n[ \t]{0,20}:(?=[ \t]))|(?P<cjk>[は是为為는은]))"
    r"(?P<gap>[*_]{0,3}\s{0,40}(?:(?<=\s)(?:-|value:)[ \t]{1,4})?(?:\\{1,4}(?:n|\r?\n)\s{0,40})?)"
    r"""(?:&?(?:[A-Za-z_][A-Za-z0-9_.:<>?|]{0,40}[ \t]{0,4}=[ \t]{0,4})(?=[bfru]?["'`]))?"""
)
_BLOCK = re.compile(r"[ \t]{0,4}[|>][+-]?[0-9]?[ \t]{0,4}(?:\n|\\n)\s{1,40}")
_PREFIX = re.compile(
    r"""(?:[bBfFrRuUlLsSeEnNqQ@$]{1,2}(?=\\{0,8}["'`])|new[ ]|&[\w-]{1,40}[ ]{1,4}|![\w!/:.-]{0,40}[ ]{1,4}|&)"""
)
_CALL = re.compile(r"""(?:\[\])?(?:[A-Za-z_][A-Za-z0-9_.:<>]{0,60}!?\(\s{0,4}){1,3}(?=[bfru]?\\{0,8}["'`])""")
_HEADER_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{1,40}[ \t]{1,4}(?=\S)")
_LINE = re.compile(r"""(?:[^\r\n\\]|\\(?![nr])){1,4096}""")
_ANY_QUOTE = re.compile(r"""\\{0,4}["']""")
_IN_BRACKETS = re.compile(r"""\\{0,8}(["'])((?:[^"'\\\n]|\\.){1,512}?)\\{0,8}\1(?!\s{0,4}:)""")
_NESTED = re.compile(
    r"""\{\s{0,40}(?:\\{0,8}["'])?(?:(?:string|secret|secure)?_?value|default|current|plain|plaintext|secret"""
    r"""|content"""
    r"""|raw|text|val|data|secure|s|_|\$|#text)"""
    r"""(?:\\{0,8}["'])?\s{0,4}(?::|=>|=)\s{0,4}""",
    re.IGNORECASE,
)
_LISTED = re.compile(r"""[ \t]{0,4}(?:\n[ \t]{0,40}-[ \t]{1,4}(?:\\{0,8}["'])?[^\s"']{1,512}(?:["'](?=\n|$))?){1,64}""")
_LIST_ITEM = re.compile(r"""-[ \t]{1,4}(?:\\{0,8}["'])?([^\s"']{1,512})""")
_MARKUP = re.compile(r"[^<>]{0,200}>\s{0,20}(?:<!\[CDATA\[)?([^<\]]{1,1024})")
_OPTION = re.compile(r"""[ \t]{1,4}(?=[^\s-])""")
_BESIDE = re.compile(
    r"""\\{0,8}["'`]?[*_]{0,2}(?:[ \t]{0,24}\|[ \t]{0,4}|\??[ \t]{1,4}"""
    r"""|</\w{1,10}>\s{0,20}<\w{1,10}(?:\s[^<>]{0,60})?>)"""
    r"""(?P<quoted>\\{0,8}["'`])?"""
)
_SECOND = re.compile(r"""\\{0,8}["'`]\s{0,4},\s{0,4}(?=\\{0,8}["'`])""")
_WRAPPERS = re.compile(
    r"(?i:\w{0,12}string(?:::from)?|some|secret\w{0,12}|bytes|str|text|just|quote|literal|raw|plain|\w{1,20}[.]of"
    r"|buffer[.]from)!?\(\s{0,4}$"
)
"""Calls that give back what they are given."""
_JOINED = re.compile(r"""["'][^"'\n]{0,3}["']\.join\(""")
_MORE_WORDS = re.compile(r"(?:[ ][a-z0-9]{2,12}){1,11}[ \t]{0,4}(?=$|[\r\n])")
_TO_LIST = re.compile(r"""(?:\\{0,8}["'])?\s{0,4}[:=]?=?>?[ \t]{0,4}""")
_FORM_FIELD = re.compile(r"""\\{0,8}["'](?:\r?\n|\\r\\n){2}([^\r\n\\]{1,1024})""")
_NAMED = re.compile(
    r"""(?i:name|key|id|field|variable|property|setting|env|label|header|option|attribute|type|item|title|k"""
    r"""|param\w{0,20}"""
    r"""|(?<![A-Za-z])n)"""
    r"""(?:\\{0,8}["'])?(?:\s{0,4}[:=>]\s{0,4}(?:\\{0,8}["'])?|\s{1,4}\\{0,8}["'])[\w.:/-]{0,40}$"""
)
"""What stands before a name that is itself the value of a name, as in ``name: DB_PASSWORD``."""
_NAME_CHARACTERS = string.ascii_letters + string.digits + "_.:/-"
_VALUE_BEFORE = re.compile(
    r"""(?i:value)(?:\\{0,8}["'])?\s{0,4}[:=]\s{0,4}(?:\\{0,8}["'])([^"'\\\n]{3,256})(?:\\{0,8}["'])"""
    r"""(?:\s{0,4},\s{0,40}|\s{1,40})(?:\\{0,8}["'])?(?i:name|key|id|variable|type|label|field)"""
    r"""(?:\\{0,8}["'])?\s{0,4}[:=]\s{0,4}(?:\\{0,8}["'])?$"""
)
_LINE_BEFORE = re.compile(r"""value:[ ]["']?([^\s"']{3,256})["']?\n[ ]{0,40}(?:-[ ])?(?:name|key):[ ]["']?$""")
_ITS_VALUE = re.compile(
    r"(?i:(?<![A-Za-z])(?:parameter|secret|secure|default|plain|string|current)?_?(?:value|val|default"
    r"|content|string|text"
    r"|plaintext|current|answer|data|(?<=[\"'])v))"
    r"""\\{0,8}["']?\s{0,8}[:=>]\s{0,4}(?:<!\[CDATA\[)?"""
)
_OTHER_NAME = re.compile(r"""(?i:(?<![A-Za-z])(?:name|key)\\{0,8}["']?\s{0,4}[:=])|\n\s{0,8}\n""")
_FARTHEST_VALUE = 240
"""Characters between a name and its value, with other attributes between them."""
_INNER_TEXT = re.compile(r"""\\{0,8}["']\s{0,4}>(?:<!\[CDATA\[)?([^<>\]]{1,1024})(?:\]\]>|<)""")
_LOGIN = re.compile(r"""(?<![A-Za-z])login\s{1,4}[^\s]{1,80}\s{1,40}$""")

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z_.]{0,200}")
_ENVIRONMENT_NAME = re.compile(r"[A-Z][A-Z0-9]{0,40}_[A-Z0-9_]{1,80}")
_NEARBY = 64
"""Characters after a name, on its line or the next, in which a value that looks drawn at random is taken for its."""
_WORD = re.compile(r"(?<![A-Za-z0-9+/_~.%!$^#-])[A-Za-z0-9+/=_~.%!$^#-]{8,64}(?![A-Za-z0-9+/=_~%$^#-])")
_LEAD = re.compile(r"""\\{0,8}["'`]?\s{0,4}[:=]{0,2}>?\s{0,4}""")
_OTHER_FIELD = re.compile(r"""[.!?;][ \t]|[{}]|["'`]\s{0,4}[:=,]|[,;]\s{0,4}["'`]""")
"""The end of a sentence, or the beginning of another field."""
_LETTERS = re.compile(r"[A-Za-z]{1,64}")
_LINKING_WORDS = """
    a as ascii been changed current for has have here is it me new now old reset rotated set str string temporary that
    the to updated use value was which with you
"""
_LINKING = frozenset(_LINKING_WORDS.split())
"""Words that may stand between a name and its value."""
_LONGER_NAME = re.compile(
    r"(?:(?:password|passwd|passphrase|pwd|token|secret|credential)s?|(?P<key>key"
    r"|code)s?)(?P<rest>[_.-][a-z0-9_.-]{1,40})?"
)
_NO_SECRET_REST = re.compile(r"[_.-](?:id|ids|name|file|path|url|uri|type|count)$")
_RECOVERY = re.compile(r"(?:recovery|backup|rescue|scratch)[ _-]?$")
_ITS_LIST = re.compile(r"""\\{0,8}["'`]?\s{0,4}[:=]{1,2}>?\s{0,4}[\[({]?\s{0,4}\\{0,8}["'`]?""")
_NEXT_ITEM = re.compile(r"""\\{0,8}["'`]?\s{0,4},\s{0,4}\\{0,8}["'`]?""")
_AS_A_NAME = re.compile(
    r"""(?:\\{0,8}["'`)]|[.,])?[ \t]as[ \t](?:(?:an?|the|my|your|his|her|its|our|their)[ \t])?(?:\w{1,20}[ \t])?$"""
)


def find_named_values(literals: Literals) -> Iterator[Span]:
    """Yield the spans of values that a name beside them makes a secret; they may overlap."""
    if literals.positions.keys().isdisjoint(LITERALS):
        return
    text, lowered = literals.text, literals.lowered
    at = header_end = 0
    for position in literals.starts_of(_STEMS):
        match = _NAME.match(lowered, position) if position >= at else None
        kind = _kind(text, lowered, match) if match else None
        if match is None or kind is None:
            for start, end in _longer_name(text, lowered, position) if position >= at else ():
                yield Span(start, end, "secret")
                at = max(at, end)
            continue
        at = match.end()
        if kind is NameKind.HEADER:
            if position < header_end:
                continue
            # Names of headers within a header are not read: that would take quadratic time.
            header_end = min(_line_end(text, at, mark) for mark in ("\n", "\\n", "\\r"))
        found = [span for span in _values(text, match, kind) if span[0] < span[1]]
        if not found and kind in (NameKind.PASSWORD, NameKind.SECRET, NameKind.DIGITS):
            found = [*_longer_name(text, lowered, position)]
        if not found and kind in (NameKind.PASSWORD, NameKind.SECRET):
            found = [*_nearby(text, position, at)]
        for start, end in found:
            for span in ((start, end), *joined_literals(text, end)):
                yield Span(*span, "password" if kind is NameKind.PASSWORD else "secret")
                at = max(at, span[1])
    for match in filter(None, (_PLURAL.match(lowered, start) for start in literals.starts_of(_PLURALS))):
        kind = NameKind.PASSWORD if match.group().startswith("pass") else NameKind.SECRET
        for start, end in _elements(text, match.end(), kind, is_plural=True):
            if kind is NameKind.PASSWORD or looks_strong(text[start:end], 8):
                yield Span(start, end, "secret")


def _nearby(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield a value that stands near a name in any other syntax, in prose too: it must look drawn at random."""
    stop = min(end + _NEARBY, len(text))
    line = text.find("\n", end, stop)
    if line >= 0 and not text[end:line].strip(" \t\r:|"):
        line = text.find("\n", line + 1, stop)
    stop = line if line >= 0 else stop
    found = False
    lead = _LEAD.match(text, end, stop)
    end = lead.end() if lead else end
    for word in _WORD.finditer(text, end, min(stop + 64, len(text))):
        between = text[end : word.start()]
        if word.start() >= stop or _OTHER_FIELD.search(between):
            break
        value = word.group().rstrip(".!?")
        # A password with a sign in it is known by itself; other values only after words that lead to them.
        if is_mixed(value) and (
            has_odd_inside(value) or (not found and _LINKING.issuperset(_LETTERS.findall(between.lower())))
        ):
            found = True
            yield word.start(), word.start() + len(value)
    if found:
        return
    before = text[max(start - 48, 0) : start]
    if " as " in before and (link := _AS_A_NAME.search(before)):
        stop = start - len(before) + link.start()
        words = text[max(stop - 64, 0) : stop].split()
        value = words[-1].lstrip("\"'`(") if words else ""
        if is_mixed(value):
            yield stop - len(value), stop


def _longer_name(text: str, lowered: str, start: int) -> Iterator[tuple[int, int]]:
    """Yield what follows a name that goes on after its word, such as TOKEN_GITHUB, or that is a plural."""
    name = _LONGER_NAME.match(lowered, start)
    if name is None or _is_end_of_word(text, start) or _NO_SECRET_REST.search(name["rest"] or ""):
        return
    before = lowered[max(start - 24, 0) : start]
    if name["key"] and not (_SECRET_KEY if name["key"] == "key" else _RECOVERY).search(before):
        return
    item = _ITS_LIST.match(text, name.end())
    while (
        item
        and (word := _WORD.match(text, item.end()))
        and (is_mixed(word.group().rstrip(".!")) or HEX.fullmatch(word.group()))
    ):
        yield word.start(), word.start() + len(word.group().rstrip(".!"))
        item = _NEXT_ITEM.match(text, word.end())


def _line_end(text: str, at: int, mark: str) -> int:
    found = text.find(mark, at, at + LONGEST_VALUE)
    return found if found >= 0 else at + LONGEST_VALUE


def _kind(text: str, lowered: str, name: re.Match[str]) -> NameKind | None:
    """Return what a name promises, by the words before it too; None where it is no name of a secret."""
    start = name.start()
    word, _, form = str(name.lastgroup).partition("_")
    kind = NameKind(word)
    before = lowered[max(start - 24, 0) : start]
    is_alone = not _IN_WORD.match(text[start - 1 : start])
    if name.group() == "pass" and is_alone and _TEST_RESULT.match(text, name.end()):
        return None
    if form == "word" and _is_end_of_word(text, start) and not before.endswith(_COMPOUNDS):
        return None
    if kind is NameKind.PHRASE and not name.group().startswith("mnemonic") and not _SECRET_PHRASE.search(before):
        return None
    if name.group().startswith("code") and " " not in name.group() and not _SECRET_CODE.search(before):
        return None
    if name.group().startswith("key"):
        if _NOT_SECRET_KEYS.search(before) and not (
            before.endswith("primary") and _KEY_IN_BASE64.match(text, name.end())
        ):
            return None
        if _SECRET_KEY.search(before):
            return NameKind.SECRET
        return NameKind.OPAQUE if name.group() != "key_id" and not _is_end_of_word(text, start) else None
    return kind


def _values(text: str, name: re.Match[str], kind: NameKind) -> Iterator[tuple[int, int]]:
    """Yield the spans of the values of a name."""
    end = name.end()
    if connector := _CONNECTOR.match(text, end):
        if kind is NameKind.HEADER:
            yield from _header(text, connector)
        else:
            found = [*_after(text, name, connector, kind)]
            yield from found or markup_values(text, end, kind)
        return
    before = text[max(name.start() - 64, 0) : name.start()]
    if _MARKUP_NAME.search(before):
        if inner := _MARKUP.match(text, end):
            yield from checked(text, *trimmed(text, *inner.span(1)), kind)
        return
    if kind in (NameKind.PASSWORD, NameKind.SECRET, NameKind.OPAQUE, NameKind.DIGITS):
        if found := [*code_values(text, name.start(), end, before, kind)]:
            yield from found
        elif before.endswith(('name="', "name='", 'name=\\"')) and (field := _FORM_FIELD.match(text, end)):
            yield from checked(text, *field.span(1), kind)
        elif _NAMED.search(before):
            yield from _paired(text, end, kind)
            yield from _paired_before(text, name.start() - len(before) + len(before.rstrip(_NAME_CHARACTERS)), kind)
        elif _OPTION_NAME.search(before) and (option := _OPTION.match(text, end)):
            yield from checked(text, *quoted_or_bare(text, option.end()), kind)
        elif found := [*markup_values(text, end, kind)]:
            yield from found
        elif beside := _BESIDE.match(text, end):
            yield from _after_blank(text, name, beside, kind)


def _is_end_of_word(text: str, at: int) -> bool:
    """Whether a word begins in the middle of another: the ``pass`` of ``bypass``, unlike that of ``dbPass``."""
    return at > 0 and text[at - 1].isalpha() and not (text[at].isupper() and text[at - 1].islower())


def _header(text: str, connector: re.Match[str]) -> Iterator[tuple[int, int]]:
    """Yield the value of an authorization header: all of it, but for the word that names its scheme."""
    if connector["is"] or connector["cjk"]:
        return
    at = connector.end()
    if QUOTE.match(text, at):
        start, end = quoted(text, at)
        if SCHEME.fullmatch(text, start, end):
            yield from joined_literals(text, end)
            return
    else:
        start, end = at, _header_end(text, at)
    start, end = trimmed(text, start, end)
    if scheme := _HEADER_SCHEME.match(text, start, end):
        credentials = text[scheme.end() : end]
        if SCHEME.match(text, start, end) or looks_opaque(credentials) or len(credentials.split()[0]) >= 16:
            known = SCHEME.match(text, start, end) and not re.search(r"[\"'=,]", credentials)
            stop = scheme.end() + len(credentials.split()[0]) if known else end
            yield from checked(text, scheme.end(), stop, NameKind.HEADER)
        return
    if not re.search(r"[\s(\[]", text[start:end]):
        yield from checked(text, start, end, NameKind.SECRET)


def _header_end(text: str, at: int) -> int:
    """Return where a header ends: at the end of its line, or at a quote that is not of one of its parameters."""
    line = _LINE.match(text, at)
    opened = None
    for quote in _ANY_QUOTE.finditer(text, at, line.end() if line else at):
        if opened is None and text[quote.start() - 1] != "=":
            return quote.start()
        opened = quote.group() if opened is None else None if opened == quote.group() else opened
    return line.end() if line else at


def _after(text: str, name: re.Match[str], connector: re.Match[str], kind: NameKind) -> Iterator[tuple[int, int]]:
    """Yield what follows a name and a colon, an equals sign or the like."""
    at = connector.end()
    is_prose = any(connector[form] is not None for form in ("is", "genitive", "cjk"))
    if kind is NameKind.PHRASE:
        yield from _phrase(text, at)
        return
    if block := _BLOCK.match(text, connector.start("gap")):
        line = _LINE.match(text, block.end())
        if line:
            yield from checked(text, *trimmed(text, *line.span()), kind)
        return
    if text.startswith(("[", "{"), at) and not _CALL.match(text, at):
        if nested := _NESTED.match(text, at):
            yield from checked(text, *quoted_or_bare(text, nested.end()), kind)
        elif text[at] == "[":
            yield from _elements(text, connector.end("mark"), kind)
        elif kind in (NameKind.PASSWORD, NameKind.SECRET):
            yield from members(text, at, kind)
        return
    if prefix := _PREFIX.match(text, at):
        at = prefix.end()
    if call := _CALL.match(text, at):
        start, end = quoted(text, call.end())
        second = _SECOND.match(text, end) if text[start:end].isupper() else None
        if second:
            start, end = quoted(text, second.end())
        is_word = second is not None or _WRAPPERS.search(call.group())
        if not _ENVIRONMENT_NAME.fullmatch(text, start, end) and (
            looks_opaque(text[start:end])
            or (is_word and kind is not NameKind.OPAQUE and text[start:end].split() == [text[start:end]])
        ):
            yield from checked(text, start, end, kind)
        return
    quote = QUOTE.match(text, at)
    start, end = quoted_or_bare(text, at, LONGEST_OPAQUE if kind is NameKind.OPAQUE else LONGEST_VALUE)
    value = text[start:end]
    if "\n" in connector["gap"] and not ((looks_opaque(value) or quote) and len(value.split()) == 1):
        return
    if not value and (joined := _JOINED.match(text, at)):
        yield from _elements(text, joined.end(), kind)
        return
    if quote is None:
        if connector["mark"] in ("==", "===") or (
            connector["mark"] == "->" and text[connector.start("mark") - 2] == ")"
        ):
            return
        # A call, an index or another name is code, not a value.
        if text.startswith(("(", "["), end) and _IDENTIFIER.fullmatch(value):
            return
        is_code = kind is NameKind.SECRET and connector["gap"] == " " and connector["mark"] == "="
        if is_code and value.isalpha() and value.islower():
            return
        if _is_name_in_code(value):
            return
    if (connector["below"] or connector["word"]) and not looks_opaque(value):
        return
    if is_prose and not _may_follow_is(name.group(), value):
        return
    if (
        kind is NameKind.OPAQUE
        and UUID.fullmatch(value)
        and _ENVIRONMENT_KEY.search(text, max(name.start() - 40, 0), end)
    ):
        yield start, end
        return
    if not is_value(value, kind):
        return
    if "phrase" in name.group() and quote is None and (words := _MORE_WORDS.match(text, end)):
        end = words.end()
    yield start, end


def _may_follow_is(name: str, value: str) -> bool:
    return looks_opaque(value) or name in (
        "password", "passphrase", "passcode", "api key", "secret key", "access token"
    )  # fmt: skip


def _is_name_in_code(value: str) -> bool:
    return (
        "_" in value
        and _IDENTIFIER.fullmatch(value) is not None
        and value == value.lower()
        and _NAME.search(value) is not None
    )


def _phrase(text: str, at: int) -> Iterator[tuple[int, int]]:
    words = re.compile(r"""\\{0,8}["']?((?:[a-z]{3,8}[ \t,]{1,3}){11,23}[a-z]{3,8})""").match(text, at)
    if words:
        yield words.span(1)


def _elements(
    text: str, at: int, kind: NameKind = NameKind.SECRET, *, is_plural: bool = False
) -> Iterator[tuple[int, int]]:
    """Yield the values of a list or a map after a plural name, or of a YAML list."""
    connector = _TO_LIST.match(text, at)
    at = connector.end() if connector else at
    if is_plural and (text.startswith("{", at) or connector):
        yield from members(text, at, kind, is_plural=True)
    if text.startswith(("[", "{", "("), at) or text[at : at + 2] in ("=[", ":["):
        end = min((found for c in "]})" if (found := text.find(c, at, at + LONGEST_VALUE)) > 0), default=at)
        for item in _IN_BRACKETS.finditer(text, at, end):
            is_alone = kind is NameKind.PASSWORD and item.group() == text[at + 1 : end].strip()
            if is_value(item[2], kind) and (looks_opaque(item[2]) or (is_alone and item[2].split() == [item[2]])):
                yield item.span(2)
    elif connector and (listed := _LISTED.match(text, at)):
        for item in _LIST_ITEM.finditer(text, listed.start(), listed.end()):
            if looks_opaque(item[1]):
                yield item.span(1)


def _paired(text: str, end: int, kind: NameKind) -> Iterator[tuple[int, int]]:
    """Yield the value of a pair such as ``name: DB_PASSWORD`` and ``value: …``."""
    if (inner := _INNER_TEXT.match(text, end)) and not inner[1].isspace():
        yield from checked(text, *trimmed(text, *inner.span(1)), kind)
        return
    pair = _ITS_VALUE.search(text, end, end + _FARTHEST_VALUE)
    if pair is None or _OTHER_NAME.search(text, end, pair.start()):
        return
    start = pair.end()
    if text.startswith("{", start) and (inner := _NESTED.match(text, start)):
        start = inner.end()
    if text[start - 1] == ">" or text.startswith("CDATA[", start - 6):
        stop = text.find("<", start, start + LONGEST_VALUE)
        yield from checked(text, *trimmed(text, start, max(stop, start)), kind)
    else:
        yield from checked(text, *quoted_or_bare(text, start), kind)


def _paired_before(text: str, at: int, kind: NameKind) -> Iterator[tuple[int, int]]:
    """Yield the value of a pair whose value comes first."""
    if pair := _VALUE_BEFORE.search(text, max(at - 400, 0), at) or _LINE_BEFORE.search(text, max(at - 400, 0), at):
        yield from checked(text, *pair.span(1), kind)


def _after_blank(text: str, name: re.Match[str], beside: re.Match[str], kind: NameKind) -> Iterator[tuple[int, int]]:
    """Yield a value that only a blank divides from its name: it must look like one."""
    start, end = quoted(text, beside.start("quoted")) if beside["quoted"] else quoted_or_bare(text, beside.end())
    value = text[start:end].rstrip(".,:;!?")
    in_netrc = _LOGIN.search(text, max(name.start() - 120, 0), name.start())
    if kind is NameKind.PASSWORD and in_netrc:
        yield from checked(text, start, end, kind)
    elif kind is not NameKind.OPAQUE and looks_strong(value, 6 if kind is NameKind.PASSWORD else 16):
        yield from checked(text, start, start + len(value), kind)
