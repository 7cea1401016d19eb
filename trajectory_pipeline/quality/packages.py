"""Which packages of the extra ``quality`` are not installed; imports none of them."""

from importlib.util import find_spec

NEEDED = ("py3langid", "scipy", "sklearn")
INSTALL = "pip install 'trajectory-pipeline[quality]'"


def missing_packages() -> tuple[str, ...]:
    """Return the packages that measuring quality needs and this environment lacks."""
    return tuple(name for name in NEEDED if find_spec(name) is None)
