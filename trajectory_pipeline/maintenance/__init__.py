"""Work over the whole history: completeness, retention, erasure, explanations."""
