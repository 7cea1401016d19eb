"""Keeps Arrow from loading pandas, which is 25 to 40 MB of memory in a process that has no use for it."""

import sys
from importlib.abc import MetaPathFinder

import pyarrow as pa


def keep_arrow_from_pandas() -> None:
    """Have Arrow do without pandas in this process, unless it is loaded already.

    Arrow looks for pandas once, before it converts its first list. What needs pandas, as ``to_pandas``, still imports
    it; only ``pyarrow.array`` of a pandas series before that would not know the type of its values.
    """
    if "pandas" in sys.modules:
        return
    finder = _WithoutPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)


class _WithoutPandas(MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ImportError("Arrow shall do without pandas here")
