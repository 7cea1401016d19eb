"""Every fault of the simulated judge over the whole sample: see ``__main__``."""
