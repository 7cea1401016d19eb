"""Judges one trajectory under one policy: render the transcript, ask the judge, grade its response."""
