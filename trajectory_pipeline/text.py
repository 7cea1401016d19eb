"""Grammar for sentences in the UI."""


def pluralize(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: ``1 partition``, ``3 partitions``; ``many`` for an irregular plural."""
    return f"{number} {one if number == 1 else many or one + 's'}"
