"""Where the runs of Letta Code for the demonstration are."""

from pathlib import Path

LETTA_CODE_FOLDER = Path(__file__).parent
LETTA_CODE_NAME = "letta_code"
"""Name of the source in the demonstration."""
LETTA_CODE_SOURCE = f"{LETTA_CODE_NAME}=letta_code:{LETTA_CODE_FOLDER}"
"""As ``TRAJECTORY_SOURCES`` names it."""
