"""A text as a reader sees it, with the offsets of the text that it was made from.

Colors, zero-width characters and other invisible characters are dropped. A quote, a colon or an equals sign that is
written in full width, as an entity, or encoded for a URL or for JSON, is that character.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

_PARAMETERS = r"[0-9;?]{0,24}"
_HIDDEN = re.compile(
    rf"(?:\x1b|\x9b|\^\[|\\{{1,8}}(?:u001[bB]|x1[bB]|033|e(?=\[)))(?:\[{_PARAMETERS}[A-Za-z]|\][^\x07\x1b]{{0,200}}\x07|[()][AB012]|)"
    r"|\[(?:[0-9]{1,3};){0,6}[0-9]{1,3}m"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f"
    r"\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
    r"|\\{1,8}u(?:00[aA][dD]|200[b-fB-F]|202[a-eA-E]|206[0-9a-fA-F]|[fF][eE][fF][fF])"
    r"|&(?:shy|zwn?j|ZeroWidthSpace|#8203|#x200[bB]|#173);"
    r"|(?P<encoded>%(?:25){0,2}(?:2[2-7cCfF]|20|3[aAbBdDfF]|40|[57][bBdD])|\\{1,8}u00(?:2[267]|3[cCdDeE])"
    r"|&(?:quot|apos|amp|lt|gt|#34|#39|#x27|#x22|#61|#58|colon|equals);)"
)
_BEGINNINGS = {*range(0x20), 0x7F, *map(ord, "^\\[%&?")} - set(map(ord, "\t\n\r"))
_SUSPECT, _SUSPECTS = b"!", bytes(b"!"[0] if byte in _BEGINNINGS else b" "[0] for byte in range(256))
"""What each of these begins with, and ``?``, which stands for a character that is not ASCII.

Searching for one byte is ten times as fast as searching for a set of characters.
"""
_USUAL_ESCAPES = (b"\\n", b'\\"')
"""Nothing hidden ends with these: nine in ten backslashes in text within JSON."""
_ENTITIES = {
    "quot": '"', "apos": "'", "amp": "&", "lt": "<", "gt": ">", "#34": '"', "#39": "'", "#x27": "'", "#x22": '"',
    "#61": "=", "#58": ":", "colon": ":", "equals": "=",
}  # fmt: skip
_SAME_LENGTH = {
    **{chr(full): chr(full - 0xFEE0) for full in range(0xFF01, 0xFF5F)},
    **dict.fromkeys(map(chr, [0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000]), " "),
    **dict.fromkeys("“”„‟«»＂「」『』", '"'),
    **dict.fromkeys("‘’‚‛‹›", "'"),
    **dict.fromkeys("│┃║", "|"),
}
_TRANSLATED = re.compile(f"[{''.join(_SAME_LENGTH)}]")


class VisibleText(NamedTuple):
    """The visible text, and where each piece of it begins, there and in the original; none where it is the original."""

    text: str
    visible_starts: Sequence[int] = ()
    original_starts: Sequence[int] = ()
    encoded_lengths: Sequence[int] = ()

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Return the offsets in the original of ``text[start:end]``, which is not empty."""
        if not self.visible_starts:
            return start, end
        return self._original(start)[0], self._original(end - 1)[1]

    def _original(self, at: int) -> tuple[int, int]:
        piece = bisect_right(self.visible_starts, at) - 1
        begin = self.original_starts[piece]
        if length := self.encoded_lengths[piece]:
            return begin, begin + length
        begin += at - self.visible_starts[piece]
        return begin, begin + 1


def visible_text(text: str) -> VisibleText:
    """Return a text as a reader sees it."""
    suspects = _suspects(text)
    # A character that is not ASCII is a suspect too.
    if _SUSPECT not in suspects:
        return VisibleText(text)
    pieces: list[str] = []
    visible: list[int] = []
    original: list[int] = []
    lengths: list[int] = []
    last = size = at = 0
    while (suspect := suspects.find(_SUSPECT, at)) >= 0:
        at = suspect + 1
        found = _HIDDEN.match(text, suspect)
        if found is None:
            continue
        at = found.end()
        decoded = _decoded(found["encoded"])
        for start, piece, length in (
            (last, text[last : found.start()], 0),
            (found.start(), decoded, found.end() - found.start()),
        ):
            if piece:
                pieces.append(piece)
                visible.append(size)
                original.append(start)
                lengths.append(length)
                size += len(piece)
        last = at
    if last:
        visible.append(size)
        original.append(last)
        lengths.append(0)
        text = "".join([*pieces, text[last:]])
    if not text.isascii():
        # Several times as fast as str.translate, which looks up every character.
        text = _TRANSLATED.sub(lambda found: _SAME_LENGTH[found.group()], text)
    return VisibleText(text, visible, original, lengths)


def _suspects(text: str) -> bytes:
    """Return as many bytes as a text has characters: ``_SUSPECT`` where something hidden may begin."""
    characters = text.encode("ascii", "replace")
    if b"\\" in characters:
        for escape in _USUAL_ESCAPES:
            characters = characters.replace(escape, b"  ")
    return characters.translate(_SUSPECTS)


def _decoded(encoded: str | None) -> str:
    """Return the character that an encoded one stands for; empty for a hidden one."""
    if encoded is None:
        return ""
    return _ENTITIES[encoded[1:-1]] if encoded[0] == "&" else chr(int(encoded[-2:], 16))
