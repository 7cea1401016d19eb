"""Forms that other tools read: pure functions from a trajectory to a record, and how a dataset is split."""
