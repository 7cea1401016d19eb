"""The transcript that the judge reads."""
