"""The sample: rows of a real Letta server, stored in the package, and loading them into a database."""
