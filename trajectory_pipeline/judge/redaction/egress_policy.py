"""Who may be asked, and about whom: what keeps a transcript from leaving.

Belongs here: the rule for hosts where egress is off, and the lists of agents and organisations. Does not belong here:
what is taken out of a transcript that may leave (``redaction``).
"""

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from trajectory_pipeline.errors import JudgeError


def require_local(url: str) -> None:
    """Refuse an endpoint that is not on this machine.

    Local is a loopback address (127.0.0.0/8, ::1), written as one, and the name ``localhost`` where it resolves to such
    addresses alone. A private or link-local address is another machine, whoever owns it.

    Raises:
        JudgeError: it is not; nothing has been sent.
    """
    host = (urlsplit(url).hostname or "").rstrip(".")
    if not _is_local(host):
        raise JudgeError(
            f"TRAJECTORY_LLM_EGRESS is off, and the judge's host {host or url!r} is not this machine (127.0.0.1, ::1 or"
            " localhost): nothing was sent. Set OPENAI_BASE_URL to a server here, or TRAJECTORY_LLM_EGRESS=on."
        )


def _is_local(host: str) -> bool:
    if host == "localhost":
        try:
            found = socket.getaddrinfo(host, None)
        except OSError:
            return False
        return bool(found) and all(_is_loopback(str(address[0])) for *_, address in found)
    return _is_loopback(host)


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


@dataclass(frozen=True)
class JudgeAccessList:
    """Whose trajectories may be shown to a judge, by id. Who is denied is denied, whoever else allows it.

    Attributes:
        allow_agents: these alone, where there are any.
        deny_agents: these never.
        allow_organizations: the agents of these alone, where there are any.
        deny_organizations: the agents of these never.
    """

    allow_agents: frozenset[str] = frozenset()
    deny_agents: frozenset[str] = frozenset()
    allow_organizations: frozenset[str] = frozenset()
    deny_organizations: frozenset[str] = frozenset()

    def refusal(self, agent_id: str | None, organization_id: str | None) -> str | None:
        """Say why a trajectory may not be shown; None where it may.

        One whose agent or organisation is not known is not on any list: an allow list leaves it out.
        """
        for what, name, value, allowed, denied in (
            ("organisation", "ORGANIZATIONS", organization_id, self.allow_organizations, self.deny_organizations),
            ("agent", "AGENTS", agent_id, self.allow_agents, self.deny_agents),
        ):
            if value in denied:
                return f"the {what} {value} is on the list TRAJECTORY_JUDGE_DENY_{name}"
            if allowed and value not in allowed:
                return f"the {what} {value or '(not known)'} is not on the list TRAJECTORY_JUDGE_ALLOW_{name}"
        return None

    def parameters(self) -> Mapping[str, list[str]]:
        """Return the lists as a statement takes them; see ``storage.postgres.verdict_status``."""
        return {
            "allow_agents": sorted(self.allow_agents),
            "deny_agents": sorted(self.deny_agents),
            "allow_organizations": sorted(self.allow_organizations),
            "deny_organizations": sorted(self.deny_organizations),
        }


UNRESTRICTED = JudgeAccessList()
"""No list is set."""
