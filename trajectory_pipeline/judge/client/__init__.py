"""The HTTP client of the judge."""
