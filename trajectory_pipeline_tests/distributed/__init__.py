"""Runs on Celery workers that share no disk, with kills at random: `make celery`."""
