"""Errors that a person reads: each says what was wrong, where, and what to do."""


class PipelineError(Exception):
    """Something that a person can fix."""


class SettingsError(PipelineError):
    """A setting is missing or wrong; the text names the environment variable and what to set."""


class SourceError(PipelineError):
    """The Letta database cannot be reached, or is not as expected."""


class MissingTableError(SourceError):
    """The source's database has none of a table that every Letta server has."""


class SourceTimeoutError(SourceError):
    """A query to the Letta database exceeded its timeout; a smaller one may succeed."""


class SourceConflictError(SourceError):
    """The source ended the snapshot, as a hot standby does when it replays a conflict; another one may last."""


class WithheldDeletionsError(SourceError):
    """The source shows less than was captured, and that is no proof of deletion: a person must confirm it."""


class SinkError(PipelineError):
    """Parquet storage or the trajectory database cannot be reached or written."""


class JudgeError(PipelineError):
    """The judge is not configured, or its configuration cannot work."""


class ProviderDownError(JudgeError):
    """The judge's provider is down or refuses all calls: no more calls are made now; a later run tries again."""


class QueryError(PipelineError):
    """A search cannot be done as it was asked for."""


class EmbeddedPostgresError(PipelineError):
    """The embedded Postgres server cannot be created, started or reached."""


def describe_defect(error: Exception) -> str:
    """Return the words for an error that only a defect of ours can raise, as every sink can hold them."""
    text = str(error).encode(errors="backslashreplace").decode().replace("\0", "\\u0000")
    return f"a defect of trajectory-pipeline: {type(error).__name__}: {text}"
