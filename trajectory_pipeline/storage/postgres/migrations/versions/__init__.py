"""Revisions of the schema ``trajectory``, oldest first. Append only: a released revision is never edited."""
