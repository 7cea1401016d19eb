"""The errors that a person is meant to read.

Belongs here: exception classes whose message says what was wrong, where, and what to do. Does not belong here:
how a failure is shown (that is the command's and Dagster's affair).
"""


class PipelineError(Exception):
    """Something a person can mend: its text names what was wrong, where, and what to do about it."""


class SettingsError(PipelineError):
    """A setting is missing or wrong; the text names the environment variable and what to set."""


class SourceError(PipelineError):
    """The Letta database cannot be reached, or is not what was expected of it."""


class SourceTimeoutError(SourceError):
    """A query to the Letta database took longer than it may: a smaller one may do."""


class SinkError(PipelineError):
    """Parquet storage or the trajectory database cannot be reached or written."""


class JudgeError(PipelineError):
    """The judge is not configured, or its configuration cannot work."""


class ProviderDownError(JudgeError):
    """The judge's provider is down, or lets nobody in: nothing more is asked now; a later run tries again."""


class EmbeddedPostgresError(PipelineError):
    """The embedded Postgres server cannot be made, started or reached."""
