"""Short names for the ids in a transcript: a UUID by its first hex digits, as many as tell all ids apart.

A UUID takes some twenty tokens wherever it stands, and a judge writes one in each citation. Grading finds the whole id
again. An id of another form is short or has a meaning, and is shown as it is.
"""

import re
from collections.abc import Iterable

_UUID = re.compile(r"(?:[A-Za-z_]+-)?([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")
_FEWEST_DIGITS, _ALL_DIGITS = 4, 32


def short_ids(ids: Iterable[str]) -> dict[str, str]:
    """Return the short name of each id; different ids have different names."""
    distinct = dict.fromkeys(ids)
    digits = {name: found[1].replace("-", "") for name in distinct if (found := _UUID.fullmatch(name))}
    for length in range(_FEWEST_DIGITS, _ALL_DIGITS + 1):
        short = {name: digits[name][:length] if name in digits else name for name in distinct}
        if len(set(short.values())) == len(distinct):
            return short
    return {name: name for name in distinct}
