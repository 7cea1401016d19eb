"""Object storages, on their own wire: real servers, and faults between them and us."""
