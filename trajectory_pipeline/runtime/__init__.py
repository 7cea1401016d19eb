"""Settings of the Python process: threads, memory, garbage collection."""
