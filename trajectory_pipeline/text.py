"""Counts in words, as the UI's sentences need them.

Belongs here: grammar. Does not belong here: what is counted.
"""


def pluralize(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun.

    Example:
        >>> counted(1, "partition"), counted(3, "partition"), counted(0, "trajectory", "trajectories")
        ('1 partition', '3 partitions', '0 trajectories')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
