"""Refuses query parameters that an endpoint does not have, and those of one value that are given twice.

A misspelled filter would find everything, and of two values nobody knows which was meant.
"""

import inspect
from collections import Counter
from typing import get_origin

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel

from trajectory_pipeline.serve.problems import ProblemError
from trajectory_pipeline.serve.wrong_values import not_known

_SHOWN = 40
"""A longer name is not repeated in the answer."""


async def check_parameters(request: Request) -> None:
    """Do nothing if the endpoint has each parameter, and each that has one value is given once at most.

    Raises:
        ProblemError: 422, the text names the parameters.
    """
    given = Counter(name for name, _ in request.query_params.multi_items())
    route = request.scope.get("route")
    if not given or not isinstance(route, APIRoute):
        return
    declared = _declared(route)
    # What links and probes append to the address of a page is not refused.
    if route.path.startswith("/v1/") and (unknown := set(given) - set(declared)):
        raise ProblemError(422, f"{_names(unknown)}: {not_known(', '.join(declared))}.")
    if several := {name for name, count in given.items() if count > 1 and not declared.get(name)}:
        raise ProblemError(422, f"{_names(several)}: it has one value, and is given several times: give it once.")


def _declared(route: APIRoute) -> dict[str, bool]:
    """Return the parameters of a route, and whether each is a list."""
    kinds: dict[str, object] = {}
    for parameter in route.dependant.query_params:
        kind = parameter.field_info.annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            kinds |= {name: field.annotation for name, field in kind.model_fields.items()}
        else:
            kinds[parameter.alias] = kind
    return {name: get_origin(kind) is list for name, kind in kinds.items()}


def _names(names: set[str]) -> str:
    """Return where parameters are; names that are no words of an API are the client's own, and not repeated."""
    return (
        ", ".join(f"query.{name}" for name in sorted(names) if name.isidentifier() and len(name) <= _SHOWN) or "query"
    )
