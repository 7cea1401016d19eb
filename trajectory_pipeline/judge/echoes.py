"""Finds returns that only repeat what an agent wrote: in its call, in its memory, or anywhere earlier in the chain."""

import base64
import binascii
import html
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import unquote

from trajectory_pipeline.judge.transcript.messages import AGENT_SOURCES, Passage, TranscriptMessage

SHORTEST_PHRASE = 8
"""Letters and digits from which words are compared with all that the agent wrote; fewer recur by chance in prose."""
_ESCAPE = re.compile(
    r"\\(?:u\{([0-9a-fA-F]{1,6})\}|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|([nrtbf])|([\"'`\\/]))"
)
_FEWEST_WORDS = 3
"""Words of a quote from which their order does not matter: fewer may be a true return that names its arguments."""
_MOST_DECODINGS = 3
_WORD = re.compile(r"[^\W_]{1,4096}")
_LITERAL = re.compile(r"""\"([^\"]{0,4096})\"|'([^']{0,4096})'""")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{12,65536}={0,2}")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:[2-7][0-9a-fA-F]){8,4096}(?![0-9A-Za-z])")
_CODES = re.compile(r"(?<![0-9])(?:[0-9]{2,3},[ ]?){7,4096}[0-9]{2,3}(?![0-9])")
_NUMBER = re.compile(r"[0-9]{2,3}")
_THOUSANDS = re.compile(r"(?<=[0-9])[,'](?=[0-9]{3}(?![0-9]))")
_LARGEST_CODE_POINT = 0x10FFFF


class AgentWriting:
    """What an agent wrote, message by message, and what tools returned of their own accord."""

    def __init__(self, messages: Sequence[TranscriptMessage]) -> None:
        passages = [(message.number, passage) for message in messages for passage in message.passages]
        self._written = [
            (number, passage, _all_readings(_text(passage)))
            for number, passage in passages
            if passage.source in AGENT_SOURCES
        ]
        self._returned = [
            (number, words(_text(passage))) for number, passage in passages if passage.source == "tool_return"
        ]

    def is_echo(self, quote: str, passage: Passage, number: int) -> bool:
        """Whether a quote from a return in this message was written by the agent before any tool returned it."""
        said = words(quote)
        if said in _all_readings(passage.call_text):
            return True
        each = _words(quote)
        if len(each) >= _FEWEST_WORDS and _words_in_any_coding(passage.call_text).issuperset(each):
            return True
        own = [
            (at, written)
            for at, source, written in self._written
            if at <= number and (len(said) >= SHORTEST_PHRASE or source.source == "agent_call")
        ]
        first = next((at for at, written in own if said in written), None)
        return first is not None and not any(at < first and said in returned for at, returned in self._returned)


def words(text: str) -> str:
    """Return the letters and digits of a text, decoded and in lower case: what stays however it is written."""
    return "".join(_words(text))


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", _decoded(text)).casefold()
    return _WORD.findall(_THOUSANDS.sub("", plain))


@lru_cache(maxsize=256)
def _words_in_any_coding(text: str) -> frozenset[str]:
    """Return the words of a call: a return in which there is no other was put together from them."""
    return frozenset(_words(text))


@lru_cache(maxsize=256)
def _all_readings(text: str) -> str:
    """Return the words of a text, of its string literals joined, and of what it has in base64; a line for each."""
    plain = _decoded(text)
    literals = "".join(first or second for first, second in _LITERAL.findall(plain))
    decoded = [_from_base64(word) for word in _BASE64.findall(plain)]
    decoded += [bytes.fromhex(word).decode("latin-1") for word in _HEX.findall(plain)]
    decoded += ["".join(map(chr, map(int, _NUMBER.findall(row)))) for row in _CODES.findall(plain)]
    readings = [*map(words, [text, literals, *filter(None, decoded)])]
    return "\n".join([*readings, readings[0][::-1]])


def _text(passage: Passage) -> str:
    if passage.source != "tool_return" and passage.call_text:
        return passage.call_text  # without the name of the tool, which its return may well repeat
    return "\n".join(line.text for line in passage.lines if line.verbatim)


def _decoded(text: str) -> str:
    for _ in range(_MOST_DECODINGS):
        before = text
        text = _ESCAPE.sub(_character, text) if "\\" in text else text
        text = html.unescape(text) if "&" in text else text
        text = unquote(text) if "%" in text else text
        if text == before:
            break
    return text


def _character(escape: re.Match[str]) -> str:
    *codes, white, itself = escape.groups()
    if code := next(filter(None, codes), None):
        number = int(code, 16)
        return chr(number) if number <= _LARGEST_CODE_POINT else ""
    return " " if white else itself


def _from_base64(word: str) -> str | None:
    plain = word.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
