"""The tests: a specification, in a tree that mirrors the package."""
