"""The content digest covers all canonical texts, however many; that of a context covers each of its fields."""

import hashlib
import itertools

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.conversion.digest import context_digest, context_digests, sha256_of
from trajectory_pipeline.schema.arrow import arrow_type
from trajectory_pipeline.schema.raw import CONTEXT


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=5), st.integers(1, 400))
def test_sha256_of_many_texts_is_that_of_their_concatenation(forms: list[str], times: int) -> None:
    assert sha256_of(iter(forms * times)) == hashlib.sha256("".join(forms * times).encode()).hexdigest()


# ---- context ------------------------------------------------------------------------------------------------------

_TEXTS = st.none() | st.sampled_from(["", "a", "-", "1:a", "ab"])


@given(
    st.lists(
        st.none() | st.fixed_dictionaries({"system_prompt": _TEXTS, "tools": _TEXTS, "source": _TEXTS}), max_size=12
    )
)
def test_context_digests_of_many_equal_those_of_each(contexts: list[dict[str, str | None] | None]) -> None:
    column = pa.array(contexts, arrow_type(CONTEXT))
    assert context_digests(column) == list(map(context_digest, contexts))


def test_context_digest_differs_with_each_field() -> None:
    digests = {
        context_digest(dict(zip(("system_prompt", "tools", "source"), values, strict=True)))
        for values in itertools.product((None, "", "a", "ab"), repeat=3)
    }
    assert len(digests) == 4**3
