"""Real faults: processes that are killed, servers that go away, disks that are full, connections that are cut."""
