"""The content digest covers all canonical texts, however many there are."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.conversion.digest import sha256_of


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=5), st.integers(1, 400))
def test_sha256_of_many_texts_is_that_of_their_concatenation(forms: list[str], times: int) -> None:
    assert sha256_of(iter(forms * times)) == hashlib.sha256("".join(forms * times).encode()).hexdigest()
