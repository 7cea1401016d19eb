"""WordLlama gives what its package gives, without network; any embedding is scaled to length 1, or told why not."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wordllama
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.search.embedding_models import EmbeddingModel, unit_vector
from trajectory_pipeline.search.embedding_models.wordllama import load_wordllama, wordllama_model

TEXTS = ["Task: refund order 7\n\nTools: refund", "a", "漢字 🙂", "word " * 3000, "Errors: limit exceeded"]


def test_embeddings_are_those_of_the_package_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("it opens a connection"))
    load_wordllama.cache_clear()
    ours = load_wordllama().embed(TEXTS)
    theirs = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    for text, vector in zip(TEXTS, ours, strict=True):
        assert vector.shape == (256,)
        assert np.allclose(vector, theirs.embed([text])[0], atol=1e-5)
        assert np.array_equal(vector, load_wordllama().embed([text])[0])


@pytest.mark.process
def test_loading_leaves_logging_alone() -> None:
    """The package sets up the root logger when imported: lines of all libraries would be in a command's output."""
    program = (
        "import logging\n"
        "from trajectory_pipeline.search.embedding_models.wordllama import load_wordllama\n"
        "load_wordllama()\n"
        "print(logging.getLogger().handlers, logging.getLogger().level == logging.WARNING)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[] True\n", "")


def test_text_without_tokens_has_zeros() -> None:
    (vector,) = load_wordllama().embed([""])
    assert not vector.any()
    assert unit_vector(vector) == "all its numbers are 0, so that it has no direction"


def test_integer_that_no_float_holds_is_not_finite() -> None:
    """JSON sets no limit to one."""
    assert unit_vector([10**400, 1]) == "it has a number that is not finite"


def test_model_id_tells_models_apart() -> None:
    models = [
        wordllama_model(),
        EmbeddingModel("wordllama"),
        EmbeddingModel("m", "http://a/v1"),
        EmbeddingModel("m", "http://b/v1"),
        EmbeddingModel("m", "http://a/v1", asked_dimensions=8),
    ]
    assert len({model.model_id for model in models}) == len(models)
    assert wordllama_model().model_id == wordllama_model().model_id


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_unit_vector_has_length_1_whatever_the_size_of_its_numbers(numbers: list[float]) -> None:
    unit = unit_vector(numbers)
    if any(numbers):
        assert not isinstance(unit, str)
        assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-5)
    else:
        assert isinstance(unit, str)
