"""Intervals of shares."""

import math
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.975)


def wilson_interval(count: float, total: float) -> tuple[float, float] | None:
    """Return the 95 % interval of a share, after Wilson (1927); None where the total is 0.

    Of weighted counts, give those of as many independent things as are equally uncertain.

    Raises:
        ValueError: the count is negative, or larger than the total.
    """
    if not 0 <= count <= total:
        raise ValueError(f"{count} of {total} is no share")
    if total == 0:
        return None
    share, z2 = count / total, _Z * _Z
    center = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    # At the edges the formula gives 0 and 1 but for rounding.
    return (0.0 if count == 0 else center - half, 1.0 if count == total else center + half)
