"""Refuses a query parameter that is given twice where it has one value: which of the two was meant, nobody knows."""

import inspect
from collections import Counter
from typing import get_origin

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel

from trajectory_pipeline.serve.problems import ProblemError


async def refuse_repeated(request: Request) -> None:
    """Do nothing if each parameter that has one value is given once at most.

    Raises:
        ProblemError: 422, one is given several times; the text names it.
    """
    counts = Counter(name for name, _ in request.query_params.multi_items())
    several = {name for name, count in counts.items() if count > 1}
    route = request.scope.get("route")
    if several and isinstance(route, APIRoute):
        several -= _lists(route)
    if several:
        # A name of the client's own is not repeated.
        declared = [f"query.{name}" for name in sorted(several) if name.isidentifier() and len(name) <= 40]
        where = ", ".join(declared) or "query"
        raise ProblemError(422, f"{where}: it has one value, and is given several times: give it once.")


def _lists(route: APIRoute) -> set[str]:
    """Return the parameters of a route that are lists."""
    kinds: dict[str, object] = {}
    for parameter in route.dependant.query_params:
        kind = parameter.field_info.annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            kinds |= {name: field.annotation for name, field in kind.model_fields.items()}
        else:
            kinds[parameter.alias] = kind
    return {name for name, kind in kinds.items() if get_origin(kind) is list}
