"""Secrets that are found by where they stand: a command's option, a URL, a call, or a line of a known file."""

import base64
import binascii
import re
from collections.abc import Callable, Iterator

from trajectory_pipeline.judge.redaction.literals import Literals, Starts
from trajectory_pipeline.judge.redaction.span import Span
from trajectory_pipeline.judge.redaction.values import HEX, is_mixed, is_random, is_value

_Q = r"""\\{0,4}["']?"""
_BASIC = re.compile(r"(?i:(?<![A-Za-z0-9])basic)\s{1,4}([A-Za-z0-9+/_-]{6,1024}={0,2})")
_BEARER = re.compile(r"(?i:(?<![A-Za-z0-9])bearer)\s{1,4}(?:\\{1,4}(?:n|\r?\n)\s{0,40})?([A-Za-z0-9._~+/=-]{8,8192})")
_COOKIE = re.compile(
    r"""(?i:(?<![A-Za-z0-9])(?:set-)?cookie)\\{0,4}["']?\s{0,4}[:=]\s{0,4}\\{0,4}["']?([^\r\n"'\\]{1,4096})"""
)
_URL_PASSWORD = re.compile(
    r"""://[^\s:/@"'<>\\]{0,256}:(?![0-9]{1,5}[/?#])([^\s@"'<>]{1,256}(?:@[^\s/@"'<>]{1,64}(?=@))?)@"""
)
_URL_TOKEN = re.compile(r"://([A-Za-z0-9_=-]{20,256})(?::[^\s:/@\"'<>]{0,64})?@")
_URL_KEY = re.compile(r"(?i:trojan|ss|vless|vmess|hysteria2?|tuic|snell)://([^\s:/@\"'<>]{4,256})@")
_USER_AT_HOST = re.compile(
    r"""(?<![^\s"'=(])(?:[A-Za-z][\w.-]{0,40}[/\\])?[A-Za-z][\w.-]{0,40}:([^\s:/@"'<>]{6,128})@(?:"""
    r"""[A-Za-z0-9.-]{1,80}(?:(?<=[A-Za-z0-9]\.[a-z]{2})|(?<=\.[a-z]{3})|:[0-9]{2,5}|/|(?<=[0-9]\.[0-9]))"""
    r"""|(?:tcp|unix|udp)\()"""
)
_ORACLE = re.compile(
    r"""(?i:\b(?:jdbc:oracle:\w{2,8}:|sqlplus(?:[ ]-\w{1,4}){0,3}[ ]|exp[ ]|imp[ ]|rman target )"""
    rf"""{_Q})[\w$#]{{1,40}}/([^\s"'@/]{{1,128}})@"""
)
_USER_OPTION = re.compile(
    r"""(?:(?<=[\s"'])-u|--(?:proxy-)?user|--(?:proxy-)?auth)(?:\\{0,4}["'],[ ]{0,4}|[ =]{0,4})\\{0,4}["']?"""
    r"""[A-Za-z0-9_.@+-]{1,100}:([^\s"'\\]{1,256})"""
)
_USER_OPTION_OF_SOME = re.compile(
    r"""(?:(?<=[\s"'])-a[ ]{1,4}"""
    r"""|(?<=[\s"'])-u[ ]{0,4})["']?[A-Za-z0-9_.@+-]{1,100}[:,]([^\s"'\\,:/]{4,256})(?=[\s"']|$)"""
)
_USER_AND_PASSWORD = re.compile(
    r"""(?<=\s)(?:-[uUlj]|--user(?:name)?|--login)[ =]?[^\s|;&]{1,64}[^\n|;&]{0,60}?[ ](?:-p|-P|-w|--pass"""
    r"""|--pw)[ =]?"""
    r"""\\{0,4}["']?([^\s"'\\/:]{6,128})"""
)
_QUERY = re.compile(
    r"""(?i:[?&;](?:amp;)?(?:sig|signature|x-amz-signature|x-amz-security-token|x-goog-signature|hmac|auth"""
    r"""|key|code|sid"""
    r"""|ticket|jwt|assertion|session|otp|hash|pass|pw|pwd|x-amz-credential|policy|st|hdnts|awsaccesskeyid))="""
    r"""([^\s&?"'<>#;\\]{8,2048})"""
)
_PGPASS = re.compile(
    r""":(?<=[\w*]:)(?:[0-9]{4,5}|\*):[\w*-]{1,64}:[\w*.-]{1,64}:([^\s:"'\\]{6,128})(?=$|[\r\n"'`\\])"""
)
_WIFI = re.compile(r"WIFI:(?:[A-OQ-Z]:[^;\n]{0,64};){0,6}P:((?:[^;\\\n]|\\.){1,64});")
_ACCOUNT = re.compile(
    r"""(?i:(?<![A-Za-z])(?:log[ -]?in|credentials?|creds?|account|user(?:name)?[ ]?[/:][ ]?(?:pass(?:word)?|pw)"""
    r"""|(?:basic|http|stats)?[ _-]?auth|wi-?fi|zugangsdaten|логин(?:[ ]?/[ ]?пароль)?|identifiants|credenciales))"""
    r"""(?:[ ](?:is|are|with|as))?(?:\\{0,4}["']?[ ]{0,4}[:=][ ]{0,4}\\{0,4}"""
    r"""|[ ]{1,4}(?:[-–—][ ]{1,4})?)[`"']?[\w.@+-]{1,64}[`"']?"""
    r"""(?:[ ]{1,4}[/|][ ]{1,4}|[/:](?!/))[`"']?([^\s"'`,;/\\]{4,128})"""
)
_LOGGED_IN = re.compile(
    r"""(?i:\b(?:log(?:ged)?|sign(?:ed)?)[ -]?(?:in|on)|authenticate|connect)[ ](?i:as|with"""
    r"""|using)[ ][`"']?[\w.@+-]{1,64}[`"']?"""
    r"""[ ](?i:and|using|with|/)[ ](?i:the[ ])?(?i:password[ ])?[`"']?([^\s"'`,;]{6,128})"""
)
_SHORT_NAMES = re.compile(
    r"""(?i:(?<![A-Za-z0-9])u(?:ser)?[:=][ ]?[\w.@+-]{1,64}[ ,;&|\n]{1,4}p(?:w"""
    r"""|ass)?[:=][ ]?)[`"']?([^\s"'`,;&]{4,128})"""
)
_WIFI_KEY = re.compile(
    r"""(?i:(?<![A-Za-z])ssid\b[^\n]{0,60}?(?:\n[ \t]{0,20})?[ ,;:]{0,4}\b(?:key"""
    r"""|pass)[ ]?[:=]?[ ]{1,4})[`"']?([^\s"'`,;]{6,128})"""
)
_PROTOCOL = re.compile(
    r"""(?:(?:^|[\n>])[ ]?(?:[a-zA-Z]?[0-9]{1,4}[ ])?(?:PASS|AUTH(?:[ ]default)?|LOGIN[ ]"?[\w.@+-]{1,64}"?)"""
    r"""|HELLO[ ]3[ ]AUTH[ ]\w{1,40})"""
    r"""[ ]{1,4}"?([^\s"'\\]{4,256})"?(?=$|[\r\n]|\\n)"""
)
_ENTRY = re.compile(r"(?:^|\n)[a-z_][\w.-]{0,31}:(?![*!])([^\s:]{3,256}):[0-9]{0,10}:[0-9]{0,10}:")
_HASHED = re.compile(
    r"""(?:hashpw|bcrypt\.hash\w{0,8}|hash_password|password_hash|make_password|encode_password|pbkdf2_hmac)"""
    r"""\(\s{0,4}[bfru]?["']([^"'\s\\]{3,256})["']"""
)
_COMPARED = re.compile(
    r"""(?i:(?:strcmp|compare\w{0,12}|equals?|eq|verify\w{0,12})\(\s{0,2}[\w.$]{0,24}(?:password|passwd|pwd"""
    r"""|secret|token)\w{0,12}"""
    r"""|(?:password|passwd|pwd|secret|token)\.(?:equals\w{0,12}|eq|compareTo"""
    r"""|isEqual)\()(?:,\s{0,4})?\s{0,2}[bfru]?["']"""
    r"""([^"'\s\\]{3,256})["']"""
)
_COOKIE_VALUE = re.compile(
    r"""["']value["']\s{0,4}:\s{0,4}["']([^"'\s\\]{12,4096})["'](?=[^{}]{0,240}?["'](?:httpOnly|sameSite"""
    r"""|hostOnly)["'])"""
)
_KEPT = re.compile(
    r"""(?i:\.(?:set|setex|hset|put)\(\s{0,2}["'][^"'\n]{0,40}(?:session|token|auth|sess"""
    r"""|cred)[^"'\n]{0,40}["'],\s{0,2}["'])"""
    r"""([^\s"']{12,4096})"""
)
_PUT = re.compile(
    r"""(?:\b(?:kv[ ])?(?:put|set)[ ]\S{0,80}(?i:password|passwd|secret|token|pwd|credential"""
    r"""|_key)\S{0,16}[ ](?:value=)?"""
    r"""|--name[ =]\S{0,80}(?i:password|passwd|secret|token|pwd|key)\S{0,16}[ ][^\n]{0,60}?--value[ =]"""
    r"""|\bunseal[ ]|(?:input|user|owner)_pw[ ]|\bldappasswd[ ](?:-\w[ ]\S{1,64}[ ]){0,4}-s[ ]"""
    r"""|-U[ ]?[\w.\\/-]{1,64}%"""
    r"""|redis-cli[ ][^\n]{0,60}AUTH[ ])\\{0,4}["']?(?![-|&])([^\s"'\\]{4,256})"""
)
_USER_THEN_PASSWORD = re.compile(r"""(?:^|[\n>])[ ]?AUTH[ ][\w.@+-]{1,40}[ ]([^\s"']{6,128})(?=$|[\r\n])""")
_OF_NETWORK = re.compile(r"""(?i:\b(?:wi-?fi|wlan|hotspot)[ ]?[:=][ ]?|\bkey[ ]s:)["'`]?([^\s"'`,;]{8,63})""")
_SENT_CODE = re.compile(r"""(?i:\b(?:use|enter|with|type)[ ](?:the[ ]|this[ ])?code[: ]{1,2})([0-9]{4,8})(?![\w.-])""")
_CODE_BEFORE = re.compile(
    r"""(?<![\w.])(?:[A-Z]-)?([0-9]{4,8})[ ](?i:is[ ]your[ ](?:[a-z0-9-]{1,20}[ ]){0,4}(?:code|password|pin"""
    r"""|otp|passcode))"""
)
_SASL = re.compile(
    r"""AUTH(?:ENTICATE)?[ ](?:PLAIN|LOGIN|XOAUTH2)(?:[ ]"""
    r"""|\s{1,4})(?:[A-Za-z0-9+/]{2,256}={0,2}\s{1,4})?([A-Za-z0-9+/]{8,1024}={0,2})(?![\w/])"""
)
_NETWORK_DEVICE = re.compile(
    r"""(?:snmp-server[ ]community|rocommunity|rwcommunity|tacacs-server[ ]key|radius-server[ ]key"""
    r"""|neighbor[ ]\S{1,64}[ ]password"""
    r"""|insecure-password|option[ ](?:key|psk|password)|[: ](?:PSK|EAP|XAUTH|NTLM)"""
    r"""|pre-shared-key(?:[ ]ascii-text)?"""
    r"""|(?:enable|username[ ]\S{1,64}(?:[ ]privilege[ ][0-9]{1,2})?)[ ](?:secret|password)|(?:^"""
    r"""|\n)[ ]{0,8}password(?=[ ][0-9][ ]))"""
    r"""[ ](?:[0-9][ ])?\\{0,4}["']?([^\s"'\\]{4,256})"""
)
_HERE_STRING = re.compile(
    r"""(?i:pass|token|secret|login|auth|kinit|cryptsetup|unlock|credential|sudo|\bsu[ ]|gpg"""
    r"""|ssh)[^\n<]{0,80}<<<[ ]{0,2}\\{0,4}["']?([^\s"'\\]{6,512})"""
)
_CIPHER = re.compile(
    r"""(?i:encrypt|decrypt|hmac|fernet|aes\.new|jwt\.[a-z]{2,8}|sp_addlogin|_connect|\b(?:psycopg2?|pymysql"""
    r"""|mysqldb)\.connect"""
    r"""|\bnew[ ]PDO)\w{0,12}(?:\.\w{1,8})?[ (][^\n"']{0,40}"""
    r"""((?:[bfruN]?["'][^"'\n]{0,256}["']|[^"'\n()]{1,60}){1,10})"""
)
_CONNECTS = re.compile(
    r"""(?:(?i:login|log_in|sign_?in|sequelize|minio)|Client|Session|Transport|Bot|Connection)\([^\n"']{0,40}"""
    r"""((?:[bfruN]?["'][^"'\n]{0,256}["']|[^"'\n()]{1,60}){1,10})"""
)
_LITERAL = re.compile(r"""["']([^"'\n]{6,256})["']""")
_ALGORITHM = re.compile(
    r"(?i:(?:sha|hs|rs|es|ps|aes|md|pbe|rsa|base|utf|iso|latin|a)[-_]?[0-9]|[a-z]{1,6}://|[a-z]{1,12}:host=)"
)
_AWS_PAIR = re.compile(r"(?:AKIA|ASIA)[A-Z0-9]{16}[^A-Za-z0-9+/]{1,12}([A-Za-z0-9+/]{40})(?![A-Za-z0-9+/])")
_JWK = re.compile(r"""\\{0,8}["'](?:d|p|q|dp|dq|qi|k)\\{0,8}["']\s{0,4}:\s{0,4}\\{0,8}["']([A-Za-z0-9_-]{16,4096})""")
_RSA_VALUE = re.compile(r"<(?:D|P|Q|DP|DQ|InverseQ)>\s{0,20}([A-Za-z0-9+/=\s]{16,4096})</")
_LINK = re.compile(
    r"""://[^\s"'<>]{0,120}?/(?i:reset|invite|verify|confirm|magic|activate|unlock|join|share|sso|recover"""
    r"""|unsubscribe|auth"""
    r"""|send|push|notify|trigger|ping|robot)(?:[_-]\w{0,16})?/([A-Za-z0-9_-]{20,512})"""
)
_COOKIE_JAR = re.compile(r"(?:TRUE|FALSE)\t[0-9]{1,12}\t[^\t\n]{1,64}\t([^\t\n]{12,4096})(?=$|[\r\n])")
_STORED = re.compile(
    r"""(?i:(?:local|session)storage\.setItem\(\s{0,2}["'][^"'\n]{1,40}["'],\s{0,2}["']|(?:^|[\n>])[ ]?(?:SET"""
    r"""|HSET|SETEX)[ ]"""
    r"""\S{0,40}(?:session|token|auth|sess|cred)\S{0,40}[ ](?:[0-9]{1,9}[ ])?"?)([^\s"']{12,4096})"""
)
_APP_PASSWORD = re.compile(
    r"""(?i:(?:app|application|specific)[ -]password|(?:recovery|backup|security|rescue)[ ](?:key"""
    r"""|code)s?)[:=]?[ ]{1,4}"""
    r"""((?:[a-z]{4}[ ]){3}[a-z]{4}|(?:(?=[A-Za-z]{0,3}[0-9])[A-Za-z0-9]{4}[ ]"""
    r"""|[A-Za-z0-9]{4}[ ]){1,11}[A-Za-z0-9]{4}|(?:[A-Z0-9]{4,6}-){2,8}[A-Z0-9]{4,6}"""
    r"""|[A-Z][0-9]-(?:[A-Z0-9]{5,6}-){4,6}[A-Z0-9]{5,6})(?![\w-])"""
)
_CODES = re.compile(
    r"""(?i:(?:recovery|backup|rescue|scratch|one-time)[ _-]?(?:codes"""
    r"""|keys))[^\n]{0,20}?[:=](\s{0,8}(?:[-*\d.)]{0,3}[ ]?[A-Za-z0-9]{4,10}-[A-Za-z0-9]{4,10}[,;]?\s{0,8}){1,16})"""
)
_TOTP = re.compile(
    r"(?i:totp|otp|2fa|mfa|authenticator)[ ](?i:seed|secret|key)[ :=]{1,4}([A-Z2-7]{16,64})(?![A-Za-z0-9])"
)
_COMBINATION = re.compile(
    r"(?i:(?:safe|lock|padlock)[ ](?:combination|code))(?i:[ ]is)?[ :=]{1,4}([0-9]{1,2}(?:-[0-9]{1,2}){2,4})"
)
_CALL = re.compile(
    r"""(?i:(?:(?:log_?in|sign_?in|authenticate|basic_?auth\w{0,12}|password_?auth\w{0,12}"""
    r"""|(?:with_?)?credentials?|connect|auth\\{0,4}["']?\s{0,4}[:=]|auth|add_?user|create_?user"""
    r"""|set_?user\w{0,12}))\s{0,4}(?:=\s{0,4})?[(\[]{1,2}\s{0,4})"""
    r"""(?:\w{1,20}\s{0,4}[=:]\s{0,4})?[bfru]?\\{0,4}["'][^"'\n]{1,80}["']\s{0,4},\s{0,4}[bfru]?\\{0,4}["']"""
    r"""([^"'\\\n]{4,256})\\{0,4}["']"""
)
_STDIN = re.compile(
    r"""(?:echo|printf)[ ]{1,4}(?:-\w{1,3}[ ])?["']?(?:[\w.-]{1,40}:)?([^\s"'|\\]{3,128}(?:(?:\\n"""
    r"""|\n)[^\s"'|\\]{0,128}){0,2})(?:\\n|\n)?["']?[ ]{0,4}\|[ ]{0,4}"""
    r"""(?:sudo[ ](?:-\w{1,6}[ ]){0,3})?(?:(?<=sudo -S )"""
    r"""|passwd|chpasswd|docker[ ]login|podman[ ]login|gh[ ]auth|kinit|cryptsetup|smbpasswd)"""
)
_PASS_SOURCE = re.compile(r"-pass(?:in|out)?[ =]{1,4}pass:([^\s\"']{3,128})")

_SQL = re.compile(
    r"""(?i:\bidentified[ ]{1,4}(?:with[ ]{1,4}[\w"']{1,60}[ ]{1,4})?(?:by|as)[ ]{1,4}"""
    r"""|=[ ]{0,4}password[ ]?\(\s{0,4})[nN]?"""
    r"""(?:\\{0,4}["']([^"'\\\n]{3,256})\\{0,4}["'])"""
)
_SQL_BARE = re.compile(r"(?i:\bidentified[ ]{1,4}by[ ]{1,4})([A-Za-z0-9_$#!]{3,128})(?=[ ]{0,4}(?:;|$|\n))")
_WEBHOOK = re.compile(
    r"""://[^\s"'<>]{0,120}?(?i:hooks?(?:b2)?(?:[.][\w.-]{1,80})?|/key|/token|/secret|/services"""
    r"""|/webhooks?)/([A-Za-z0-9/@_%.-]{16,512})"""
)
_ARGUMENT = re.compile(
    r"""(?:--from-literal[ =]["']?[\w.-]{1,64}=|\bsecrets?[ ]set[ ][^\n"']{0,80}?[ ](?:--body|-b|--value)[ =]?"""
    r"""|openssl[ ]enc[ ][^\n"']{0,120}?[ ]-(?:k|K|pass)[ ](?:pass:)?"""
    r"""|\bnet[ ]user[ ][^\s]{1,64}[ ]|[ ]/rp[ ]|\bwinrm[ ][^\n]{0,80}?-p:"""
    r"""|(?i:\b(?:poetry|npm|pip|yarn|gem|cargo)[ ]config[ ](?:set[ ])?(?:http-basic\.\S{1,40}[ ]\S{1,64}"""
    r"""|\S{0,60}token\S{0,20})[ ])"""
    r"""|\bauth[ ](?:init|login|add)[ ](?:\S{1,40}[ ]){0,3}-t[ ]|\buser(?:add"""
    r"""|mod)[ ](?:-\w[ ]\S{1,40}[ ]){0,4}-p[ ]|\bbw[ ]unlock[ ]"""
    r"""|\bmc[ ]alias[ ]set[ ]\S{1,64}[ ]\S{1,128}[ ]\S{1,64}[ ]|\bpasswd[ ]-[ ]|password-command[ ="']{1,4}echo[ ]"""
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
    r"(?<![\w.-])(?:(?P<N>ssh-keygen)|(?P<attached>mysql\w{0,12}|mariadb[\w-]{0,12}|7za?|rar|unrar)"
    r"|(?P<p>sshpass|(?:docker|podman|oc|helm|az|nerdctl|buildah|skopeo|cf|bw)(?=[ ][\w -]{0,40}login)"
    r"|mongo\w{0,8}|impala-shell)"
    r"|(?P<P>unzip|zip|zipcloak|sqlcmd|bcp|tsql|isql|ipmitool|snmp\w{2,8})|(?P<a>redis-cli|keydb-cli|valkey-cli)"
    r"|(?P<w>ldap\w{2,12}|influx|pgbench|security)|(?P<U>smbclient|rpcclient|smbmap|nxc|crackmapexec)|(?P<b>htpasswd)"
    r"|(?P<n>xfreerdp|rdesktop|mosquitto_\w{3}|snowsql))"
    r"""(?=[ ]|\\{0,4}["'],)"""
)
_HAS_OPTION = re.compile(r"""-(?<=[\s"']-)[A-Za-z]|/p:""")
_REST = re.compile(r"""(?:[^\r\n|;&\\]|\\(?![nr])){1,400}""")
_VALUE = rf"""(?:\\{{0,4}}["'],[ ]{{0,4}})?{_Q}([^\s"'\\]{{3,128}})"""
_POSITIONAL = re.compile(
    r"(?:rabbitmqctl[ ](?:-\S{1,40}[ ]){0,3}(?:add_user|change_password)[ ]\S{1,64}"
    r"|(?i:ConvertTo-SecureString(?:[ ]-String)?)"
    r"|net[ ]use[ ]\S{1,64}(?:[ ]\\\S{1,128})?(?:[ ]/\w{1,12}(?::\S{1,64})?){0,3}|snmp-server[ ]community"
    r"|rocommunity|rwcommunity"
    rf"|wpa_passphrase[ ]\S{{1,64}}|vault[ ]login|svn[ ].{{0,80}}--password|snmpwalk)[ ]{_VALUE}"
)
_COMMON_WORDS = """
    this that with from have your will were been they them then when what keep safe each only need note sure used
"""
_COMMON_FOURS = frozenset(_COMMON_WORDS.split())
_OPTIONS = {
    "N": re.compile(rf"(?<=[\s\"'])-[NP][ ]?{_VALUE}"),
    "attached": re.compile(rf"(?<=[\s\"'])-p{_VALUE}"),
    "p": re.compile(rf"(?<=[\s\"'])-p[ =]?{_VALUE}"),
    "P": re.compile(rf"(?<=[\s\"'])-[PAX][ ]?{_VALUE}"),
    "a": re.compile(rf"(?<=[\s\"'])-a[ ]?{_VALUE}"),
    "w": re.compile(rf"(?<=[\s\"'])-(?:w|password)[ ]?{_VALUE}"),
    "U": re.compile(rf"(?<=[\s\"'])(?:-U[ ]?{_Q}[\w.\\/-]{{1,64}}%|-p[ ]?){_VALUE}"),
    "b": re.compile(rf"(?<=[\s\"'])-[a-zA-Z]{{0,6}}b[a-zA-Z]{{0,6}}[ ](?:[^\s]{{1,200}}[ ]){{1,2}}{_VALUE}\s{{0,4}}$"),
    "n": re.compile(rf"(?:(?<=[\s\"'])-[Pp][ ]?|/p:){_VALUE}"),
}


def find_credentials(literals: Literals) -> Iterator[Span]:
    """Yield the spans of secrets in commands, URLs, calls and lines of known files; they may overlap."""
    text, found = literals.text, literals.positions.keys()
    for line in _PGPASS.finditer(text):
        if _is_guessable(line[1]):
            yield Span(*line.span(1), "password")
    if found.isdisjoint(LITERALS):
        return
    for number in sorted({number for hint in found & _RULES_BY_HINT.keys() for number in _RULES_BY_HINT[hint]}):
        _, pattern, kind, is_valid = _RULES[number]
        starts = _STARTS.get(pattern)
        for match in literals.finditer(pattern, starts) if starts else pattern.finditer(text):
            if is_valid(match.group(1)):
                yield Span(match.start(1), match.end(1), kind)
    yield from _in_commands(literals)
    for call in literals.finditer(_CONNECTS, _STARTS[_CONNECTS]):
        for literal in _LITERAL.finditer(text, *call.span(1)):
            if is_mixed(literal[1]) or HEX.fullmatch(literal[1]):
                yield Span(*literal.span(1), "secret")
    for call in literals.finditer(_CIPHER, _STARTS[_CIPHER]):
        for literal in _LITERAL.finditer(text, *call.span(1)):
            if _is_guessable(literal[1]) and not _ALGORITHM.match(literal[1]) and not set(" ;") & set(literal[1]):
                yield Span(*literal.span(1), "secret")


def find_url_logins(text: str) -> Iterator[Span]:
    """Yield the spans of passwords in URLs of a text with percent-encoded characters."""
    if "%" in text:
        for match in _URL_PASSWORD.finditer(text):
            if is_value(match[1]):
                yield Span(*match.span(1), "password")


def _in_commands(literals: Literals) -> Iterator[Span]:
    text, at = literals.text, 0
    for command in literals.finditer(_COMMAND, _STARTS[_COMMAND]):
        if command.start() < at:
            continue
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


def _has_digit_at_all(value: str) -> bool:
    return any(c.isdigit() for c in value)


def _is_grouped(value: str) -> bool:
    """Whether groups of four are a key: with a digit, or as an application's password, four groups of letters."""
    return _has_digit_at_all(value) or (value.count(" ") == 3 and not set(value.split()) & _COMMON_FOURS)


def _has_letter_and_digit(value: str) -> bool:
    return is_value(value) and _has_digit_at_all(value) and any(c.isalpha() for c in value)


def _is_guessable(value: str) -> bool:
    """Whether a value beside a user's name may be a password: it has a digit or an odd character."""
    return is_value(value) and not value.isdigit() and any(c.isdigit() or c in "!#$%&*+@^~" for c in value)


_RULES: tuple[tuple[tuple[str, ...], re.Pattern[str], str, Callable[[str], bool]], ...] = (
    (("basic",), _BASIC, "basic", _is_basic),
    (("bearer",), _BEARER, "token", _is_token),
    (("cookie",), _COOKIE, "cookie", is_value),
    (("://",), _URL_PASSWORD, "password", is_value),
    (("://",), _URL_TOKEN, "token", _is_token),
    (("@",), _USER_AT_HOST, "password", _is_guessable),
    (("oracle", "sqlplus", "exp ", "imp ", "rman"), _ORACLE, "password", is_value),
    (("-u", "-auth"), _USER_OPTION, "password", is_value),
    (("-a ", "-u"), _USER_OPTION_OF_SOME, "password", _is_guessable),
    ((" -p", " -w", " --p"), _USER_AND_PASSWORD, "password", _has_letter_and_digit),
    (("trojan:", "ss:", "vmess:", "hysteria", "tuic:", "snell:"), _URL_KEY, "password", is_value),
    (("=",), _QUERY, "secret", _has_digit),
    (("log", "sign", "authenticate ", "connect "), _LOGGED_IN, "password", _is_guessable),
    (("p=", "p:", "pw", "pass"), _SHORT_NAMES, "password", _is_guessable),
    (("ssid",), _WIFI_KEY, "password", _is_guessable),
    (("pass", "auth", "login"), _PROTOCOL, "password", is_value),
    (("auth",), _SASL, "password", is_value),
    ((":/",), _ENTRY, "password", _is_guessable),
    (("hash", "make_password", "encode_password"), _HASHED, "password", is_value),
    (("strcmp", "compare", "equal", "eq(", "verify"), _COMPARED, "password", is_value),
    (("put ", "set ", "--name", "unseal", "_pw ", "ldappasswd", "-u", "redis-cli"), _PUT, "password", is_value),
    (("auth ",), _USER_THEN_PASSWORD, "password", _is_guessable),
    (("wifi", "wi-fi", "wlan", "hotspot", "key s:"), _OF_NETWORK, "password", is_mixed),
    (("code",), _SENT_CODE, "secret", lambda _: True),
    (("is your",), _CODE_BEFORE, "secret", lambda _: True),
    (("httponly", "samesite", "hostonly"), _COOKIE_VALUE, "cookie", _has_digit),
    ((".set", ".hset", ".put"), _KEPT, "token", _has_digit),
    (
        ("community", "server key", "neighbor", "secret", "password", "option", "psk", "eap", "shared"),
        _NETWORK_DEVICE,
        "password",
        is_value,
    ),
    (("<<<",), _HERE_STRING, "password", _is_guessable),
    (("akia", "asia"), _AWS_PAIR, "secret", _has_digit),
    (("kty",), _JWK, "secret", is_random),
    (("rsakeyvalue",), _RSA_VALUE, "private_key", lambda _: True),
    (("://",), _LINK, "token", _has_random_part),
    (("\t",), _COOKIE_JAR, "cookie", is_random),
    (("setitem", "set ", "setex "), _STORED, "token", _has_digit),
    (
        (
            "app password",
            "app-password",
            "tion password",
            "tion-password",
            "specific",
            "recovery ",
            "backup ",
            "rescue ",
        ),
        _APP_PASSWORD,
        "password",
        _is_grouped,
    ),
    (("codes", "keys"), _CODES, "password", _has_digit_at_all),
    (("otp", "2fa", "mfa", "authenticator"), _TOTP, "secret", lambda _: True),
    (("safe", "lock"), _COMBINATION, "password", lambda _: True),
    (("identified",), _SQL_BARE, "password", is_value),
    (("wifi:",), _WIFI, "password", is_value),
    (
        (
            "login",
            "log in",
            "log-in",
            "cred",
            "account",
            "user",
            "auth",
            "wifi",
            "wi-fi",
            "zugang",
            "логин",
            "identifiant",
        ),
        _ACCOUNT,
        "password",
        _is_guessable,
    ),
    (
        ("login", "log_in", "sign", "auth", "credential", "connect", "user"),
        _CALL,
        "password",
        _is_guessable,
    ),
    (("echo ", "printf "), _STDIN, "password", is_value),
    (
        ("rabbitmqctl", "net use", "wpa_passphrase", "vault login", "securestring", "community"),
        _POSITIONAL,
        "password",
        is_value,
    ),
    (("pass:",), _PASS_SOURCE, "password", is_value),
    (("identified", "password"), _SQL, "password", is_value),
    (("hook", "/key/", "/token/", "/secret/"), _WEBHOOK, "token", _has_random_part),
    (
        (
            *(
                "literal",
                "secret set",
                "secrets set",
                "openssl enc",
                "net user",
                "/rp ",
                "winrm",
                "getconnection",
                "setx",
            ),
            *(
                "securestring",
                "setenv",
                "set -",
                "config ",
                "auth init",
                "auth login",
                "auth add",
                "useradd",
                "usermod",
            ),
            *("bw unlock", "alias set", "password-command", "passwd -"),
        ),
        _ARGUMENT,
        "password",
        _is_guessable,
    ),
    (("password", "pass", "token", "secret", "key", "pin"), _AS_PASSWORD, "password", _is_guessable),
)

_STARTS: dict[re.Pattern[str], Starts] = {
    _CALL: {
        **dict.fromkeys(("login", "log_in", "signin", "sign_in", "connect"), (0,)),
        "auth": (0, 5, 6, 8, 9),
        "credential": (0, 4, 5),
        "user": (3, 4, 6, 7),
    },
    _ACCOUNT: {
        **dict.fromkeys(("login", "log in", "log-in", "cred", "account", "user", "wifi", "wi-fi"), (0,)),
        **dict.fromkeys(("zugangsdaten", "логин", "identifiants"), (0,)),
        "auth": (0, 1, 4, 5, 6),
    },
    _ARGUMENT: {
        **dict.fromkeys(("--from-literal", "secret set", "secrets set", "openssl enc", "net user", " /rp "), (0,)),
        **dict.fromkeys(("winrm ", "auth init", "auth login", "auth add", "useradd", "usermod", "bw unlock"), (0,)),
        **dict.fromkeys(("mc alias set", "passwd - ", "password-command", "convertto-securestring"), (0,)),
        **dict.fromkeys(("getconnection(", "setx ", "setenv ", "set -"), (0,)),
        " config ": (3, 4, 5, 6),
    },
    _PUT: {
        **dict.fromkeys(("put ", "set "), (0, 3)),
        **dict.fromkeys(("--name", "unseal ", "ldappasswd ", "-u", "redis-cli "), (0,)),
        "_pw ": (4, 5),
    },
    _CIPHER: {
        **dict.fromkeys(("hmac", "fernet", "aes.new", "jwt.", "sp_addlogin", "_connect", "new pdo"), (0,)),
        **dict.fromkeys(("psycopg", "pymysql.", "mysqldb."), (0,)),
        "crypt": (2,),
    },
    _CONNECTS: dict.fromkeys(
        (
            "login(",
            "log_in(",
            "sign_in(",
            "signin(",
            "sequelize(",
            "minio(",
            "client(",
            "session(",
            "transport(",
            "bot(",
            "connection(",
        ),
        (0,),
    ),
    _LOGGED_IN: {
        **dict.fromkeys((f"{on} {as_} " for on in ("in", "on") for as_ in ("as", "with", "using")), (3, 4, 5, 6, 7)),
        **dict.fromkeys(("authenticate ", "connect "), (0,)),
    },
    _COMPARED: dict.fromkeys(
        ("strcmp(", "compare", "equal", "eq(", "verify", "password.", "passwd.", "pwd.", "secret.", "token."), (0,)
    ),
    _NETWORK_DEVICE: {
        **dict.fromkeys(("snmp-server ", "rocommunity", "rwcommunity", "tacacs-server ", "radius-server "), (0,)),
        **dict.fromkeys(("neighbor ", "insecure-password", "option ", "pre-shared-key", "enable "), (0,)),
        "username ": (0,),
        **dict.fromkeys(("psk ", "eap ", "xauth ", "ntlm "), (1,)),
        "password ": tuple(range(10)),
    },
    _CODES: dict.fromkeys(("recovery", "backup", "rescue", "scratch", "one-time"), (0,)),
    _STORED: {
        **dict.fromkeys(("localstorage.", "sessionstorage."), (0,)),
        **dict.fromkeys(("set ", "setex "), (0, 1, 2, 3)),
    },
    _SHORT_NAMES: dict.fromkeys(("u:", "u=", "user:", "user="), (0,)),
    _WIFI_KEY: {"ssid": (0,)},
    _URL_KEY: dict.fromkeys(
        ("trojan://", "ss://", "vless://", "vmess://", "hysteria://", "hysteria2://", "tuic://", "snell://"), (0,)
    ),
    _COMBINATION: dict.fromkeys((" combination", " code"), (4, 7)),
    _APP_PASSWORD: {
        **dict.fromkeys((" password", "-password"), (3, 11, 8)),
        **dict.fromkeys(("recovery ", "backup ", "security ", "rescue "), (0,)),
    },
    _SENT_CODE: {" code": (3, 4, 5, 7, 8, 9, 10)},
    _COMMAND: {
        **dict.fromkeys(("ssh-keygen", "mysql", "mariadb", "7z", "sshpass", "mongo", "impala-shell", "zip"), (0,)),
        **dict.fromkeys(("sqlcmd", "bcp", "tsql", "isql", "ipmitool", "snmp", "ldap", "influx", "pgbench"), (0,)),
        **dict.fromkeys(("security", "smbclient", "rpcclient", "smbmap", "nxc", "crackmapexec", "htpasswd"), (0,)),
        **dict.fromkeys(("xfreerdp", "rdesktop", "mosquitto_", "snowsql", "unzip", "rar", "unrar"), (0,)),
        **dict.fromkeys(("docker ", "podman ", "oc ", "helm ", "az ", "nerdctl ", "buildah ", "skopeo "), (0,)),
        **dict.fromkeys(("cf ", "bw "), (0,)),
        "-cli": (5, 6),
    },
}
"""Where a match of a costly pattern begins."""

_RULES_BY_HINT = {
    hint: [number for number, rule in enumerate(_RULES) if hint in rule[0]]
    for hint in {hint for rule in _RULES for hint in rule[0]}
}
LITERALS = frozenset(_RULES_BY_HINT).union(*_STARTS.values())
"""What has to be found in a text before it is searched for credentials."""
