"""What is handed to COPY is what was made, in pieces that the driver can copy without doubling a large document."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.storage.postgres import copy_writer


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(1, 16))
def test_copy_pieces_are_the_same_bytes_within_the_limit(parts: list[bytes], most: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copy_writer, "PIECE_BYTES", most)
        pieces = list(copy_writer.in_pieces(parts))
    assert b"".join(pieces) == b"".join(parts)
    assert max(map(len, pieces), default=0) <= most


def test_copy_pieces_of_a_large_part_are_views() -> None:
    large = bytes(3 * copy_writer.PIECE_BYTES)
    pieces = list(copy_writer.in_pieces([b"head\t", large, b"\n"]))
    assert [len(piece) for piece in pieces] == [5, *[copy_writer.PIECE_BYTES] * 3, 1]
    assert all(isinstance(piece, memoryview) and piece.obj is large for piece in pieces[1:4])
