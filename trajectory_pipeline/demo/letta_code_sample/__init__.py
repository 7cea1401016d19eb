"""Where the runs of Letta Code for the demonstration are, and their hand-written labels."""

from pathlib import Path

LETTA_CODE_FOLDER = Path(__file__).parent
LETTA_CODE_LABELS = LETTA_CODE_FOLDER / "labels.jsonl"
LETTA_CODE_NAME = "letta_code"
"""Name of the source in the demonstration."""
LETTA_CODE_SOURCE = f"{LETTA_CODE_NAME}=letta_code:{LETTA_CODE_FOLDER}"
"""As ``TRAJECTORY_SOURCES`` names it."""
