"""Secrets that are found by where they stand: a command's option, a URL, a call, or a line of a known file."""

import base64
import binascii
import re
from collections.abc import Callable, Iterator

from trajectory_pipeline.judge.redaction.named_values import is_value
from trajectory_pipeline.judge.redaction.span import Span

_Q = r"""\\{0,4}["']?"""
_BASIC = re.compile(r"(?i:(?<![A-Za-z0-9])basic)\s{1,4}([A-Za-z0-9+/_-]{6,1024}={0,2})")
_BEARER = re.compile(r"(?i:(?<![A-Za-z0-9])bearer)\s{1,4}([A-Za-z0-9._~+/=-]{8,8192})")
_COOKIE = re.compile(
    r"""(?i:(?<![A-Za-z0-9])(?:set-)?cookie)\\{0,4}["']?\s{0,4}[:=]\s{0,4}\\{0,4}["']?([^\r\n"'\\]{1,4096})"""
)
_URL_PASSWORD = re.compile(
    r"""://[^\s:/@"'<>\\]{0,256}:(?![0-9]{1,5}[/?#])([^\s@"'<>]{1,256}(?:@[^\s/@"'<>]{1,64}(?=@))?)@"""
)
_URL_TOKEN = re.compile(r"://([A-Za-z0-9_-]{20,256})@")
_USER_AT_HOST = re.compile(
    r"""(?<![^\s"'=(])[A-Za-z][\w.-]{1,40}:([^\s:/@"'<>]{6,128})@[A-Za-z0-9.-]{1,80}(?:(?<=[A-Za-z0-9]\.[a-z]{2})|(?<=\.[a-z]{3})|:[0-9]{2,5}|/)"""
)
_ORACLE = re.compile(
    r"""(?i:\b(?:jdbc:oracle:\w{2,8}:|sqlplus(?:[ ]-\w{1,4}){0,3}[ ]|exp[ ]|imp[ ]|rman target )"""
    rf"""{_Q})[\w$#]{{1,40}}/([^\s"'@/]{{1,128}})@"""
)
_USER_OPTION = re.compile(
    r"""(?:(?<=\s)-u|--(?:proxy-)?user)[ =]{0,4}\\{0,4}["']?[A-Za-z0-9_.@+-]{1,100}:([^\s"'\\]{1,256})"""
)
_QUERY = re.compile(
    r"""(?i:[?&;](?:amp;)?(?:sig|signature|x-amz-signature|x-amz-security-token|x-goog-signature|hmac|auth|key|code|sid"""
    r"""|ticket|jwt|assertion|session|otp|hash|pass|pw|pwd|x-amz-credential|policy|st|hdnts|awsaccesskeyid))="""
    r"""([^\s&?"'<>#;\\]{8,2048})"""
)
_PGPASS = re.compile(
    r"""(?<=[\w*]):(?:[0-9]{4,5}|\*):[\w*-]{1,64}:[\w*.-]{1,64}:([^\s:"'\\]{6,128})(?=$|[\r\n"'`\\])"""
)
_WIFI = re.compile(r"WIFI:(?:[A-OQ-Z]:[^;\n]{0,64};){0,6}P:((?:[^;\\\n]|\\.){1,64});")
_ACCOUNT = re.compile(
    r"""(?i:(?<![A-Za-z])(?:log[ -]?in|credentials?|creds?|account|user(?:name)?[ ]?[/:][ ]?(?:pass(?:word)?|pw)))"""
    r"""(?:[ ](?:is|are|with|as))?[ ]{0,4}[:=]?[ ]{1,4}[`"']?[\w.@+-]{1,64}[`"']?"""
    r"""(?:[ ]{1,4}[/|][ ]{1,4}|[/:](?!/))[`"']?([^\s"'`,;/]{4,128})"""
)
_CALL = re.compile(
    r"""(?i:(?:(?:log_?in|sign_?in|authenticate|basic_?auth\w{0,12}|password_?auth\w{0,12}"""
    r"""|(?:with_?)?credentials?|connect|auth|add_?user|create_?user|set_?user\w{0,12}))\s{0,4}(?:=\s{0,4})?[(\[]{1,2}\s{0,4})"""
    r"""(?:\w{1,20}\s{0,4}[=:]\s{0,4})?[bfru]?\\{0,4}["'][^"'\n]{1,80}["']\s{0,4},\s{0,4}[bfru]?\\{0,4}["']([^"'\\\n]{4,256})\\{0,4}["']"""
)
_STDIN = re.compile(
    r"""(?:echo|printf)[ ]{1,4}(?:-\w{1,3}[ ])?["']?(?:[\w.-]{1,40}:)?([^\s"'|]{3,128})["']?[ ]{0,4}\|[ ]{0,4}"""
    r"""(?:sudo[ ](?:-\w{1,6}[ ]){0,3})?(?:(?<=sudo -S )"""
    r"""|passwd|chpasswd|docker[ ]login|podman[ ]login|gh[ ]auth|kinit|cryptsetup|smbpasswd)"""
)
_PASS_SOURCE = re.compile(r"-pass(?:in|out)?[ =]{1,4}pass:([^\s\"']{3,128})")

_SQL = re.compile(
    r"""(?i:\bidentified[ ]{1,4}(?:with[ ]{1,4}[\w"']{1,60}[ ]{1,4})?(?:by|as)[ ]{1,4}|password[ ]?\(\s{0,4})[nN]?"""
    r"""\\{0,4}["']([^"'\\\n]{3,256})\\{0,4}["']"""
)
_WEBHOOK = re.compile(
    r"""://[^\s"'<>]{0,120}?(?i:hooks?(?:b2)?(?:[.][\w.-]{1,80})?|/key|/token|/secret)/([A-Za-z0-9/@_%.-]{16,512})"""
)
_ARGUMENT = re.compile(
    r"""(?:--from-literal[ =]["']?[\w.-]{1,64}=|\bsecrets?[ ]set[ ][^\n"']{0,80}?[ ](?:--body|-b|--value)[ =]?"""
    r"""|openssl[ ]enc[ ][^\n"']{0,120}?[ ]-(?:k|K|pass)[ ](?:pass:)?"""
    r"""|\bnet[ ]user[ ][^\s]{1,64}[ ]|[ ]/rp[ ]|\bwinrm[ ][^\n]{0,80}?-p:"""
    r"""|(?i:ConvertTo-SecureString[ ](?:-String[ ])?)|getConnection\([^,\n]{1,200},\s{0,4}"[^"\n]{0,64}",\s{0,4}"""
    r"""|\b(?:setx|setenv|set[ ]-\w{1,3})[ ](?i:\w{0,40}(?:key|pass|secret|token|pwd)\w{0,16})[ ])"""
    r"""\\{0,4}["']?([^\s"'\\]{3,256})"""
)
_LONG_PART, _FEWEST_CHANGES = 16, 3
_CHANGES = re.compile(r"[0-9](?=[A-Za-z])|[A-Za-z](?=[0-9])")
_AS_PASSWORD = re.compile(
    r"""[`"']([^\s`"']{6,128})[`"'][ ](?i:(?:as|for|is)[ ](?:the|your|my|its|a|our)[ ](?:[a-z]{1,16}[ ]){0,2}"""
    r"""(?:password|passphrase|passcode|token|secret|api[ ]key|pin))"""
)

_COMMAND = re.compile(
    r"(?<![\w.-])(?:(?P<attached>mysql\w{0,12}|mariadb[\w-]{0,12}|7za?|rar|unrar)"
    r"|(?P<p>sshpass|(?:docker|podman|oc|helm|az|nerdctl|buildah|skopeo|cf|bw)(?=[ ][\w -]{0,40}login)"
    r"|mongo\w{0,8}|impala-shell)"
    r"|(?P<P>unzip|zip|zipcloak|sqlcmd|bcp|tsql|isql|ipmitool|snmp\w{2,8})|(?P<a>redis-cli|keydb-cli|valkey-cli)"
    r"|(?P<w>ldap\w{2,12}|influx|pgbench)|(?P<U>smbclient|rpcclient|smbmap|nxc|crackmapexec)|(?P<b>htpasswd)"
    r"|(?P<n>xfreerdp|rdesktop|mosquitto_\w{3}|snowsql))"
    r"(?=[ ])"
)
_REST = re.compile(r"""(?:[^\r\n|;&\\]|\\(?![nr])){1,400}""")
_VALUE = rf"""{_Q}([^\s"'\\]{{3,128}})"""
_POSITIONAL = re.compile(
    r"(?:rabbitmqctl[ ](?:-\S{1,40}[ ]){0,3}(?:add_user|change_password)[ ]\S{1,64}"
    r"|net[ ]use[ ]\S{1,64}(?:[ ]\\\S{1,128})?"
    rf"|wpa_passphrase[ ]\S{{1,64}}|vault[ ]login|svn[ ].{{0,80}}--password|snmpwalk)[ ]{_VALUE}"
)
_OPTIONS = {
    "attached": re.compile(rf"(?<=\s)-p{_VALUE}"),
    "p": re.compile(rf"(?<=\s)-p[ =]?{_VALUE}"),
    "P": re.compile(rf"(?<=\s)-[PAX][ ]?{_VALUE}"),
    "a": re.compile(rf"(?<=\s)-a[ ]?{_VALUE}"),
    "w": re.compile(rf"(?<=\s)-(?:w|password)[ ]?{_VALUE}"),
    "U": re.compile(rf"(?<=\s)(?:-U[ ]?{_Q}[\w.\\/-]{{1,64}}%|-p[ ]?){_VALUE}"),
    "b": re.compile(rf"(?<=\s)-[a-zA-Z]{{0,6}}b[a-zA-Z]{{0,6}}[ ](?:[^\s]{{1,200}}[ ]){{1,2}}{_VALUE}\s{{0,4}}$"),
    "n": re.compile(rf"(?:(?<=\s)-[Pp][ ]?|/p:){_VALUE}"),
}


def find_credentials(text: str) -> Iterator[Span]:
    """Yield the spans of secrets in commands, URLs, calls and lines of known files; they may overlap."""
    lowered = text.lower()
    for hints, pattern, kind, is_valid in _BY_GROUP:
        for match in pattern.finditer(text) if any(hint in lowered for hint in hints) else ():
            if is_valid(match.group(1)):
                yield Span(match.start(1), match.end(1), kind)
    yield from _in_commands(text)


def _in_commands(text: str) -> Iterator[Span]:
    at = 0
    while command := _COMMAND.search(text, at):
        rest = _REST.match(text, command.end())
        at = rest.end() if rest else command.end()
        for option in _OPTIONS[str(command.lastgroup)].finditer(text, command.end(), at):
            if is_value(option.group(1)):
                yield Span(*option.span(1), "password")


def _is_basic(value: str) -> bool:
    try:
        return b":" in base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_" if "-" in value else None)
    except (binascii.Error, ValueError):
        return False


def _is_token(value: str) -> bool:
    return any(c.isdigit() for c in value) or len(value) >= 20


def _has_random_part(path: str) -> bool:
    """Whether a part of a path is long, and its letters and digits alternate: more than words and a number."""
    parts = (part for part in path.split("/") if len(part) >= _LONG_PART)
    return any(len(_CHANGES.findall(part)) >= _FEWEST_CHANGES for part in parts)


def _has_digit(value: str) -> bool:
    return is_value(value) and any(c.isdigit() for c in value) and not value.isdigit()


def _is_guessable(value: str) -> bool:
    """Whether a value beside a user's name may be a password: it has a digit or an odd character."""
    return is_value(value) and not value.isdigit() and any(c.isdigit() or c in "!#$%&*+@^~" for c in value)


_BY_GROUP: tuple[tuple[tuple[str, ...], re.Pattern[str], str, Callable[[str], bool]], ...] = (
    (("basic",), _BASIC, "basic", _is_basic),
    (("bearer",), _BEARER, "token", _is_token),
    (("cookie",), _COOKIE, "cookie", is_value),
    (("://",), _URL_PASSWORD, "password", is_value),
    (("://",), _URL_TOKEN, "token", _is_token),
    (("@",), _USER_AT_HOST, "password", _is_guessable),
    (("oracle", "sqlplus", "exp ", "imp ", "rman"), _ORACLE, "password", is_value),
    (("-u",), _USER_OPTION, "password", is_value),
    (("=",), _QUERY, "secret", _has_digit),
    ((":",), _PGPASS, "password", _is_guessable),
    (("wifi:",), _WIFI, "password", is_value),
    (("login", "log in", "log-in", "cred", "account", "user"), _ACCOUNT, "password", _is_guessable),
    (
        ("login", "log_in", "sign", "auth", "credential", "connect", "user"),
        _CALL,
        "password",
        _is_guessable,
    ),
    (("echo ", "printf "), _STDIN, "password", is_value),
    (("rabbitmqctl", "net use", "wpa_passphrase", "vault login"), _POSITIONAL, "password", is_value),
    (("pass:",), _PASS_SOURCE, "password", is_value),
    (("identified", "password"), _SQL, "password", _is_guessable),
    (("hook", "/key/", "/token/", "/secret/"), _WEBHOOK, "token", _has_random_part),
    (
        ("literal", "secret", "openssl", "net user", "/rp ", "winrm", "getconnection", "securestring", "set"),
        _ARGUMENT,
        "password",
        _is_guessable,
    ),
    (("password", "pass", "token", "secret", "key", "pin"), _AS_PASSWORD, "password", _is_guessable),
)
