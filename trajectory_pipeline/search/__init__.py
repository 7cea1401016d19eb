"""Search: pure functions of texts and lists; what is stored and asked of Postgres is in ``storage.postgres``."""
