"""The service: trajectories, search and requests over HTTP, in a process of its own. Knows nothing of Dagster."""
