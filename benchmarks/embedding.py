"""How many search texts a second are made and embedded offline, over both samples and over texts of full length.

.venv/bin/python -m benchmarks.embedding
"""

import time
from collections.abc import Callable, Sequence

from benchmarks.measuring import machine
from trajectory_pipeline.demo.letta_sample.load import STORY
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.search.embedding_models import unit_vector
from trajectory_pipeline.search.embedding_models.wordllama import load_wordllama
from trajectory_pipeline.search.search_text import MOST_CHARACTERS, render_search_text
from trajectory_pipeline_tests.judge.documents import sample_documents
from trajectory_pipeline_tests.letta_sample import SAMPLE_FILE

_TRIES = 5
_AT_LEAST = 2000
"""Texts in one try."""


def main() -> None:
    """Print a table of rates, the best of five tries each."""
    documents = [*sample_documents(STORY.file), *sample_documents(SAMPLE_FILE)]
    redact = Redactor(key=b"a key of benchmarks")
    texts = [text for one in documents if (text := render_search_text([one], None, redact))]
    full = [(" ".join(texts) * 2)[start : start + sum(MOST_CHARACTERS.values())] for start in range(0, 40_000, 200)]
    where = machine()
    print(f"{where['processor']}, {where['cores']} cores, load {where['load_average']}\n")
    print(f"{len(texts)} texts of the samples, {sum(map(len, texts)) // len(texts)} characters on average\n")
    print("| | a second |\n|---|---:|")
    rendering = _rate(len(documents), lambda: [render_search_text([one], None, redact) for one in documents])
    print(f"| make and redact the texts of the samples | {rendering:,.0f} |")
    print(f"| embed the texts of the samples | {_embedding(texts):,.0f} |")
    print(f"| embed texts of full length ({len(full[0]):,} characters) | {_embedding(full):,.0f} |")


def _embedding(texts: Sequence[str]) -> float:
    model = load_wordllama()
    many = [*texts] * -(-_AT_LEAST // len(texts)) if len(texts[0]) < _AT_LEAST else [*texts]
    return _rate(len(many), lambda: [unit_vector(vector) for vector in model.embed(many)])


def _rate(count: int, work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_TRIES):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return count / best


if __name__ == "__main__":
    main()
