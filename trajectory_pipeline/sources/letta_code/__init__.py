"""Letta Code's local backend: conversations in files, cut into runs by what the user sent."""
