"""The report: one HTML file about how runs ended, what they achieved, what they cost and where they fail."""
