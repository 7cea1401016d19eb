"""The jobs, one file each, with their schedules."""
