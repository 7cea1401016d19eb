"""Parameters of which some are tested by ``make test-heavy`` alone."""

from collections.abc import Iterable
from typing import Any

import pytest


def some_heavy(values: Iterable[Any], *light: Any) -> list[Any]:
    """Return the values as parameters: those in ``light`` for every run of the tests, the others marked as heavy.

    A tuple is a value for each of several parameters.
    """
    values = list(values)
    assert set(light) <= set(values), light
    return [
        value
        if value in light
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.heavy)
        for value in values
    ]
