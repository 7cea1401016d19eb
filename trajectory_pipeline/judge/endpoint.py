"""How errors name an endpoint and its setting."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Endpoint:
    """Whose endpoint it is, and the variable that names it."""

    owner: str
    setting: str


JUDGE_ENDPOINT = Endpoint("judge", "OPENAI_BASE_URL")
EMBEDDING_ENDPOINT = Endpoint("embedding model", "TRAJECTORY_EMBEDDING_BASE_URL")
