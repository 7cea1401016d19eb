"""The simulated judge: the real client works with it unchanged, and each fault does what its row says."""
