"""The assets, one file each: Letta's tables, and the three stages that materialize a partition."""
