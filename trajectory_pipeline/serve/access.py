"""Who asks: the scopes and tenants of a request, and whether it needs a token."""

from dataclasses import dataclass

from trajectory_pipeline.schema.enums import TokenScope
from trajectory_pipeline.storage.postgres.service_access import Tenants


@dataclass(frozen=True)
class Access:
    """What one request may do.

    Attributes:
        token_id: of its token, for logs; None without one.
        scopes: what it may do.
        tenants: whose runs it sees; None: all.
    """

    token_id: str | None
    scopes: frozenset[TokenScope]
    tenants: Tenants | None


LOCAL = Access(None, frozenset({TokenScope.READ}), None)
"""Without any token: whoever is on this machine reads, and does nothing else."""
