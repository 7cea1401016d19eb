"""Whose trajectories may be sent to a judge."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class JudgeAccessList:
    """Whose trajectories may be sent to a judge, by id.

    A deny list goes before an allow list. An allow list that is not empty admits its own ids alone.
    """

    allow_agents: frozenset[str] = frozenset()
    deny_agents: frozenset[str] = frozenset()
    allow_organizations: frozenset[str] = frozenset()
    deny_organizations: frozenset[str] = frozenset()

    def refusal(self, agent_id: str | None, organization_id: str | None) -> str | None:
        """Return why a trajectory may not be sent; None where it may.

        An unknown agent or organization is on no list: an allow list leaves it out.
        """
        for what, name, value, allowed, denied in (
            ("organization", "ORGANIZATIONS", organization_id, self.allow_organizations, self.deny_organizations),
            ("agent", "AGENTS", agent_id, self.allow_agents, self.deny_agents),
        ):
            if value in denied:
                return f"the {what} {value} is on the list TRAJECTORY_JUDGE_DENY_{name}"
            if allowed and value not in allowed:
                return f"the {what} {value or '(not known)'} is not on the list TRAJECTORY_JUDGE_ALLOW_{name}"
        return None

    def parameters(self) -> Mapping[str, list[str]]:
        """Return the lists as a statement takes them; see ``storage.postgres.verdict_status``."""
        return {name: sorted(ids) for name, ids in asdict(self).items()}


UNRESTRICTED = JudgeAccessList()
"""No list is set."""
