"""What one process works with and memory should not hold, in files without a name that go with it."""
