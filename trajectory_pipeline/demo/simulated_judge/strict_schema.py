"""Why OpenAI's strict mode refuses a JSON schema."""

from collections.abc import Mapping
from typing import Any

_STRICT_FORBIDS = ("allOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties")


def strict_violation(schema: Any, at: str = "") -> str | None:
    """Return why OpenAI's strict mode would refuse a schema, or give None; the wording follows the API's."""
    if not isinstance(schema, Mapping):
        return None
    where = f"In context=({at}), " if at else ""
    for keyword in _STRICT_FORBIDS:
        if keyword in schema:
            return f"{where}'{keyword}' is not permitted."
    properties = schema.get("properties")
    if schema.get("type") == "object" or properties is not None:
        if schema.get("additionalProperties") is not False:
            return f"{where}'additionalProperties' is required to be supplied and to be false."
        required = schema.get("required")
        missing = [name for name in properties or {} if name not in (required or [])]
        if missing or required is None:
            return (
                f"{where}'required' is required to be supplied and to be an array including every key in properties."
                + (f" Missing '{missing[0]}'." if missing else "")
            )
    for keyword in ("properties", "$defs", "definitions"):
        for name, part in (schema.get(keyword) or {}).items():
            if (found := strict_violation(part, f"{at}/{keyword}/{name}".lstrip("/"))) is not None:
                return found
    if (found := strict_violation(schema.get("items"), f"{at}/items".lstrip("/"))) is not None:
        return found
    for number, part in enumerate(schema.get("anyOf") or ()):
        if (found := strict_violation(part, f"{at}/anyOf/{number}".lstrip("/"))) is not None:
            return found
    return None
