"""The simulated judge's contract: the real client works against it unchanged, and each fault is what it says."""
