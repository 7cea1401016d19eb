"""Redaction of what is sent to the judge."""
