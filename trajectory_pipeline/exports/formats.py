"""The forms that trajectories can be exported in."""

from enum import StrEnum

from trajectory_pipeline.exports import atif


class ExportFormat(StrEnum):
    """A form, by the name that the command takes."""

    ATIF = "atif"
    OPENAI = "openai"
    SFT = "sft"
    KTO = "kto"
    DPO = "dpo"
    CSV = "csv"
    PARQUET = "parquet"

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions of the form that can be written, the newest first; empty where it has none."""
        return atif.VERSIONS if self is ExportFormat.ATIF else ()
