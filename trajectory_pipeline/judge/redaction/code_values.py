"""Values that code, markup or configuration gives to a name without a colon or an equals sign between them."""

import re
from collections.abc import Iterator

from trajectory_pipeline.judge.redaction.values import (
    HEX,
    UUID,
    NameKind,
    checked,
    is_mixed,
    is_random,
    looks_opaque,
    looks_strong,
    quoted,
    quoted_or_bare,
)

_Q = r"""\\{0,8}["'`]"""
_COMMA = re.compile(
    rf"""{_Q}(?:\][ ]{{0,2}}{_Q})?\s{{0,4}},\s{{0,4}}(?:(?:default|value"""
    rf"""|initial)\s{{0,2}}[=:]\s{{0,2}})?[bfru@]?(?={_Q})"""
)
_GIVEN_TO_CALL = re.compile(
    r"""(?i:put|set\w{0,16}|add\w{0,16}|append|define|env|putenv|with\w{0,16}|header|store|write|config"""
    r"""|option|default"""
    r"""|fill|type|field|get\w{0,16}|fetch|property|conf)\s{0,2}[(\[]\s{0,2}(?:\w{1,12}\s{0,2}=\s{0,2})?[bfru]?"""
    rf"""{_Q}(?:[\w.#/-]{{0,40}}|\w{{1,12}}\[\w{{1,8}}=["'])$"""
)
"""A call that is given a name and its value."""
_IN_PAIR = re.compile(rf"""[(\[{{]\s{{0,2}}[bfru]?{_Q}[\w.-]{{0,40}}$""")
_PAIR_ENDS = re.compile(rf"""{_Q}\s{{0,4}}[)\]}}]""")
_OPTION = re.compile(r"""["']--?[\w-]{0,40}$""")
_SET = re.compile(rf"""\s{{0,2}}\(\s{{0,2}}[bfru@]?(?={_Q})""")
_SETS = re.compile(r"(?:[.>]|(?i:set|with|change|update|reset|use)_?)(?:\w{0,24}_)?$")
_SELECTED = re.compile(
    rf"""{_Q}(?:{_Q}|[)\]]){{1,4}}\.(?i:fill|type|val|value|send_?keys|set\w{{0,16}}|input)\(\s{{0,2}}(?={_Q})"""
)
_DEFAULT = re.compile(rf"""(?:{_Q})?[)\]]{{0,2}}[ ]{{0,2}}(?:\|\||\?\?|\?:|or\b|\{{)[ ]{{0,2}}(?={_Q})""")
_BLANK = re.compile(rf"[ \t]{{1,4}}[nN]?(?={_Q})")
_ELEMENT = r"(?i:b|strong|i|em|u|span|code|td|th|dt|dd|label|li|p|div|font|tt|kbd|pre|samp|var|mark|small|h[1-6])"
_TAGS = re.compile(
    rf"""\s{{0,4}}(?P<before>:)?(?:\s{{0,8}}</?{_ELEMENT}(?:\s[^<>]{{0,80}})?>){{1,4}}\s{{0,8}}"""
    rf"""(?P<after>:)?\s{{0,8}}"""
    rf"""(?:<{_ELEMENT}(?:\s[^<>]{{0,80}})?>\s{{0,8}}){{0,2}}(?P<value>[^\s<>]{{3,256}})[ ]{{0,2}}(?=<|$|[\r\n])"""
)
_ENTRY = re.compile(r"</(?:key|string|name|k)>\s{0,40}<(?:string|value|v)>([^<>]{3,512})</")
_COMMAND_LINE = re.compile(
    r"(?i:(?:^|[\n;&|{>])[ \t]{0,40}(?:set|config[ ]set|setenv|git config|\w{1,20} config|\w{1,20} set|option|enable"
    r"|wpa|security|crypto|ppp)[ ][ \w.-]{0,60}$)"
)
_LINE_BEGINS = re.compile(r"(?:^|\n)[ \t]{0,40}[\w.-]{0,30}$")
_CONFIGURED = re.compile(
    r"""[ \t]{1,8}(?:[0-9][ ])?(?P<value>(?![0-9]{1,5}/)[^\s"'`;{}()\[\]<>=]{3,256})[ \t]{0,4};?(?:[ ]"""
    r"""[A-Z]{1,4})?(?=$|[\r\n]|\\n)"""
)
_ALONE = ("PASS", "masterauth")
"""Names that begin a line of a protocol or a configuration."""
_ITS_DIGITS = re.compile(r"[ \t]{1,2}([0-9]{4,8})(?![\w.-]|[ ]?[%:])")
_MY_KEY = re.compile(r"(?i:(?<![A-Za-z])(?:my|your|our|his|her|its|the|new|old|current|wallet|secret|hex|raw))[ ]$")
_ITS_KEY = re.compile(rf"[ \t]{{1,4}}(?:{_Q})?(?P<value>[A-Za-z0-9+/=_~.-]{{20,512}})")
_GLUE = re.compile(
    r"""\s{0,4}(?P<operator>\+|\.\.?|\|\||&)?[ \t]{0,8}(?P<line>\\{0,4}(?:\r?\n|n)[ \t]{0,80})?[bfru]?(?=["'])"""
)
_MOST_LITERALS = 16
_MEMBER = re.compile(
    rf"""(?:{_Q})?(?P<name>[A-Za-z_$][\w .-]{{0,63}})(?:{_Q})?\s{{0,4}}(?::|=>|=)\s{{0,4}}\\{{0,8}}["']"""
    r"""(?P<value>[^"'\\\n]{3,512})\\{0,8}["']"""
)
_MAPPED = re.compile(
    r"""[ \t]{0,4}(?:(?:\r?\n|\\n)[ \t]{1,40}["']?[\w.-]{1,64}["']?:[ \t]{1,4}["']?[^\s"'\\]{3,512}["']?){1,32}"""
)
_MAP_ITEM = re.compile(r"""[\w.-]{1,64}["']?:[ \t]{1,4}["']?([^\s"'\\]{3,512})""")
_SCHEMA_NAMES = frozenset({"type", "description", "title", "format", "$ref", "anyOf", "minLength", "help", "label"})
_LONGEST_MAP = 512
_FIELD_WORDS = """
    username user login email e-mail mail name host hostname port url uri id hidden field label input form column
    varchar char date time uuid password2 confirm confirmation remember submit file path database db enabled disabled
    plain plaintext masked text/plain string? unknown example sample placeholder here value?
"""
_FIELDS = frozenset(_FIELD_WORDS.split())

_Spans = Iterator[tuple[int, int]]


def code_values(text: str, start: int, end: int, before: str, kind: NameKind) -> _Spans:
    """Yield the span of the value of the name ``text[start:end]``; ``before`` is what stands before it on its line."""
    if kind is NameKind.DIGITS or text[start:end].lower().endswith("code"):
        if digits := _ITS_DIGITS.match(text, end):
            yield digits.span(1)
        return
    if comma := _COMMA.match(text, end):
        yield from _after_comma(text, quoted(text, comma.end()), before, kind)
    elif (setter := _SET.match(text, end)) and _SETS.search(before):
        yield from _single(text, quoted(text, setter.end()), kind)
    elif given := _SELECTED.match(text, end) or _DEFAULT.match(text, end):
        yield from _single(text, quoted(text, given.end()), kind)
    elif (
        kind is NameKind.PASSWORD
        and (text[start:end].lower() != "pass" or before[-1:].isalnum())
        and (blank := _BLANK.match(text, end))
    ):
        yield from _single(text, quoted(text, blank.end()), kind)
    elif kind is NameKind.OPAQUE and _MY_KEY.search(before):
        if (key := _ITS_KEY.match(text, end)) and (
            HEX.fullmatch(key["value"]) or (is_mixed(key["value"]) and is_random(key["value"]))
        ):
            yield key.span("value")
    else:
        yield from _configured(text, start, end, before, kind)


def _after_comma(text: str, span: tuple[int, int], before: str, kind: NameKind) -> _Spans:
    value = text[slice(*span)]
    if looks_opaque(value):
        yield from checked(text, *span, kind)
    elif (
        _GIVEN_TO_CALL.search(before)
        or (_OPTION.search(before) and not value.startswith("-"))
        or (kind is NameKind.PASSWORD and _IN_PAIR.search(before) and _PAIR_ENDS.match(text, span[1]))
    ):
        yield from _single(text, span, kind)


def _configured(text: str, start: int, end: int, before: str, kind: NameKind) -> _Spans:
    """Yield the value of a line of a configuration or a command that has a name, a blank and a value."""
    has_prefix = before[-1:].isalnum() or before[-1:] in ("_", "-", ".")
    is_command = _COMMAND_LINE.search(before) is not None
    begins_line = (has_prefix and _LINE_BEGINS.search(before) is not None) or (
        text[start:end] in _ALONE and before[-1:] in ("", "\n")
    )
    line = _CONFIGURED.match(text, end) if is_command or begins_line else None
    if line and (is_command or kind is NameKind.PASSWORD or looks_opaque(line["value"])):
        yield from _single(text, line.span("value"), kind)


def _single(text: str, span: tuple[int, int], kind: NameKind) -> _Spans:
    """Yield a value if it is one word, and not that of a field."""
    value = text[slice(*span)]
    if value.split() == [value] and value.lower().rstrip(":.?") not in _FIELDS and not value.endswith(":"):
        yield from checked(text, *span, kind)


def markup_values(text: str, end: int, kind: NameKind) -> _Spans:
    """Yield what stands in the next element of a page, as in ``<b>Password:</b> <code>…</code>``."""
    if entry := _ENTRY.match(text, end):
        yield from _single(text, entry.span(1), kind)
        return
    if tags := _TAGS.match(text, end):
        value = tags["value"].rstrip(".,;")
        span = (tags.start("value"), tags.start("value") + len(value))
        if tags["before"] or tags["after"] or looks_strong(value, 6 if kind is NameKind.PASSWORD else 16):
            yield from _single(text, span, kind)


def joined_literals(text: str, end: int) -> _Spans:
    """Yield literals that code appends to the literal which ends here, if one does."""
    if text[end : end + 1] not in ('"', "'"):
        return
    at = end + 1
    for _ in range(_MOST_LITERALS):
        glue = _GLUE.match(text, at)
        if glue is None:
            return
        start, stop = quoted(text, glue.end())
        value = text[start:stop]
        if start >= stop or not (glue["operator"] or is_mixed(value)) or value.split() != [value]:
            return
        yield start, stop
        at = stop + 1


def members(text: str, at: int, kind: NameKind, *, is_plural: bool = False) -> _Spans:
    """Yield values of the map that begins at a brace, or on the next lines, after a name such as ``secrets``."""
    if text.startswith("{", at):
        stop = text.find("}", at, at + _LONGEST_MAP)
        found = [*_MEMBER.finditer(text, at, stop if stop >= 0 else min(at + _LONGEST_MAP, len(text)))]
        if any(member["name"] in _SCHEMA_NAMES for member in found):
            return
        for member in found:
            value = member["value"]
            if value.split() == [value] and _looks_secret(value, kind, is_plural=is_plural):
                yield member.span("value")
    elif lines := _MAPPED.match(text, at):
        for item in _MAP_ITEM.finditer(text, *lines.span()):
            start, stop = quoted_or_bare(text, item.start(1))
            if _looks_secret(text[start:stop], kind, is_plural=is_plural):
                yield start, stop


def _looks_secret(value: str, kind: NameKind, *, is_plural: bool) -> bool:
    if UUID.search(value):
        return is_plural
    if kind is NameKind.PASSWORD:
        return is_plural or looks_strong(value, 6)
    return is_mixed(value) or HEX.fullmatch(value) is not None or (looks_strong(value, 8) and not value.isalnum())
