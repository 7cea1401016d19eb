"""Statistics of outcomes and verdicts: pure functions of labels, verdicts and counts."""
