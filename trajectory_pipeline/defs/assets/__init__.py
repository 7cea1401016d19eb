"""The assets, one module each."""
