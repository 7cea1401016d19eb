"""Work over the whole history."""
