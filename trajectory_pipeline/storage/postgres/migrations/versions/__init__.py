"""The revisions of the schema ``trajectory``, oldest first; a released one is never changed."""
