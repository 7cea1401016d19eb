"""How many tokens a text has: a conservative estimate, raised by what providers report."""

BYTES_PER_TOKEN = 3
"""A conservative estimate: English prose has four or more UTF-8 bytes to a token, JSON and code about three."""
_MAX_FACTOR = 4.0
"""A count beyond it is wrong: no known tokenizer makes more tokens than bytes."""


def estimated_tokens(text: str) -> int:
    """Return a conservative estimate of a text's tokens."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def share_read(text: str, counted: int) -> float:
    """Return the share of a prompt that a server can have read at most, 0–1, by the tokens that it counted.

    Tokenizers split at spaces and punctuation before they merge, so that each run of letters and digits has at least
    one token; what is not ASCII counts as a letter here. Those few that merge words save a third. So a count below half
    the runs is no tokenizer's: the prompt was cut, or cached tokens were left out of the count.
    """
    # A pattern takes milliseconds for a prompt, in which no other call can be made.
    least = len(text.encode("utf-8", "surrogatepass").translate(_ONLY_WORDS).split())
    return counted / least if counted < least / 2 else 1.0


_ONLY_WORDS = bytes(byte if byte > 127 or chr(byte).isalnum() else 32 for byte in range(256))


class TokenEstimate:
    """The estimate of one session of judging: raised where a provider counts more, and never lowered.

    A lower count changes nothing: a tokenizer's count of prose says little of the next transcript's JSON.
    """

    def __init__(self) -> None:
        self.factor = 1.0

    def tokens(self, text: str) -> int:
        """Return the estimate of a text's tokens."""
        return -(-int(estimated_tokens(text) * self.factor * 1000) // 1000)

    def bytes_for(self, tokens: int) -> int:
        """Return the UTF-8 bytes that fit into a number of tokens."""
        return max(int(tokens * BYTES_PER_TOKEN / self.factor), 0)

    def raise_to(self, estimated: int, counted: int) -> None:
        """Raise the estimate where a provider counted more tokens than were estimated."""
        if estimated > 0 and counted > estimated:
            self.factor = min(self.factor * counted / estimated, _MAX_FACTOR)
