"""Arrow does without pandas where it is told to, and what needs pandas still loads it."""

import subprocess
import sys

CODE = """if True:
    import sys
    from datetime import UTC, datetime
    import pyarrow as pa
    from trajectory_pipeline.runtime.arrow_without_pandas import keep_arrow_from_pandas
    keep_arrow_from_pandas()
    table = pa.Table.from_pylist([{"number": 1, "time": datetime(2026, 1, 1, tzinfo=UTC)}])
    print(table.to_pylist()[0]["number"], "pandas" in sys.modules)
    print(table.to_pandas()["time"][0], "pandas" in sys.modules)
"""


def test_lists_are_converted_without_pandas_and_tables_for_pandas_with_it() -> None:
    printed = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True).stdout
    assert printed == "1 False\n2026-01-01 00:00:00+00:00 True\n"
