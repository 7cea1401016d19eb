"""Deterministic texts of any length, already escaped for COPY.

A text inside a JSON string inside a JSON column of a COPY file is escaped three times. Escaping a stock of sentences
once, instead of every text, lets a gigabyte be generated in about a minute.
"""

import itertools
import json
import random
from dataclasses import dataclass

_WORDS = (
    "order parcel harbour shipment pallet invoice customer depot driver route tariff weight number report answer "
    "question agent server table column window error retry request answer reply morning evening warehouse tomorrow "
    "yesterday delivery address street the a of and to in is was that it for on with as at by this from or be are "
    "not which one all can will there their been has have had more when who would could "
)
_RARE = ("größer", "naïve", "Zürich", "café", "東京", "Łódź", "“quoted”", "100 €")
_WORDS_IN_A_SENTENCE = (5, 18)


@dataclass(frozen=True)
class Prose:
    """A stock of sentences, at each depth of escaping.

    Attributes:
        texts: all sentences in one string: as COPY wants them in a text column (0), in a JSON column (1), and in a
            JSON string inside a JSON column (2).
        starts: where each sentence begins, and the last one ends, by depth.
        mean: characters a sentence, unescaped.
    """

    texts: tuple[str, str, str]
    starts: tuple[list[int], list[int], list[int]]
    mean: float

    def draw(self, rng: random.Random, characters: float) -> tuple[int, int]:
        """Return a stretch of about so many characters, at least one sentence, as two numbers of sentences.

        Texts longer than the stock are as long as the stock.
        """
        sentences = len(self.starts[0]) - 1
        count = min(sentences, max(1, round(characters / self.mean)))
        first = int(rng.random() * (sentences - count + 1))
        return first, first + count

    def text(self, stretch: tuple[int, int], depth: int) -> str:
        """Return a stretch, escaped for its depth."""
        starts = self.starts[depth]
        return self.texts[depth][starts[stretch[0]] : starts[stretch[1]]]


def copy_escaped(text: str) -> str:
    """Escape a value for COPY's text format."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def make_prose(seed: int, sentences: int = 80_000) -> Prose:
    """Write a stock of sentences (about 5 MB), the same for the same seed."""
    rng = random.Random(f"prose {seed}")
    words = _WORDS.split()
    plain = [_sentence(rng, words) for _ in range(sentences)]
    inner = [json.dumps(sentence)[1:-1] for sentence in plain]
    twice = [json.dumps(sentence)[1:-1] for sentence in inner]
    depths = [[copy_escaped(sentence) for sentence in texts] for texts in (plain, inner, twice)]
    starts = [list(itertools.accumulate(map(len, texts), initial=0)) for texts in depths]
    return Prose(
        ("".join(depths[0]), "".join(depths[1]), "".join(depths[2])),
        (starts[0], starts[1], starts[2]),
        sum(map(len, plain)) / sentences,
    )


def _sentence(rng: random.Random, stock: list[str]) -> str:
    words = rng.choices(stock, k=rng.randint(*_WORDS_IN_A_SENTENCE))
    chance = rng.random()
    if chance < 0.3:
        words.append(f"ORD-{rng.randrange(10**6)}")
    if chance < 0.1:
        words.insert(2, rng.choice(_RARE))
    if 0.4 < chance < 0.6:
        words.append(f"{rng.random() * 10**4:.2f}")
    text = " ".join(words)
    if chance > 0.9:
        text = f'{{"{words[0]}": "{text}"}}'
    # A line break after every fourth sentence, as in tools' output.
    return f"{text}\n" if 0.2 < chance < 0.45 else f"{text}. "
