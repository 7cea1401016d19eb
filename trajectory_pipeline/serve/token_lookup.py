"""Looking tokens up, without asking the database for each request."""

import time

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.service_tokens import ServiceToken, find_token, has_tokens

_REMEMBERED_SECONDS = 1.0
_SOON_SECONDS = 0.1


class TokenLookup:
    """Looks tokens up in the database, and remembers a valid one for a second: busy clients ask often."""

    def __init__(self, database: TrajectoryDatabase) -> None:
        self._database = database
        self._found: dict[str, tuple[float, ServiceToken]] = {}
        self._needed = (0.0, False)

    def find(self, token: str) -> ServiceToken | None:
        """Return a token that is valid now, or was a second ago; None for any other text."""
        now = time.monotonic()
        since, known = self._found.get(token, (0.0, None))
        if known is not None and now - since < _REMEMBERED_SECONDS:
            return known
        self._found = {text: entry for text, entry in self._found.items() if now - entry[0] < _REMEMBERED_SECONDS}
        found = find_token(self._database, token)
        if found is not None:
            self._found[token] = now, found
        return found

    def remembers(self, token: str | None) -> bool:
        """Whether ``find``, or ``needed`` without a token, answers now without asking the database."""
        since, needed = self._needed if token is None else (self._found.get(token, (0.0, None))[0], False)
        return needed or time.monotonic() - since < _REMEMBERED_SECONDS - _SOON_SECONDS

    def needed(self) -> bool:
        """Return whether a token was ever made, as of a second ago: from then on every request needs one."""
        since, needed = self._needed
        if not needed and time.monotonic() - since >= _REMEMBERED_SECONDS:
            self._needed = time.monotonic(), has_tokens(self._database)
        return self._needed[1]
