"""With egress off, a transcript may be sent to this machine only."""

import ipaddress
import socket

import httpx2

from trajectory_pipeline.errors import JudgeError
from trajectory_pipeline.judge.endpoint import JUDGE_ENDPOINT, Endpoint
from trajectory_pipeline.urls import without_credentials


def require_local(url: str, endpoint: Endpoint = JUDGE_ENDPOINT) -> None:
    """Raise JudgeError for an endpoint that is not on this machine.

    Local is a literal loopback address (127.0.0.0/8, ::1), and the name ``localhost`` where it resolves to such
    addresses alone. A private or link-local address is another machine.
    """
    try:
        # As the client itself reads it.
        host = httpx2.URL(url).host
    except httpx2.InvalidURL:
        host = ""
    if not _is_local(host):
        raise JudgeError(
            f"TRAJECTORY_LLM_EGRESS is off, and the {endpoint.owner}'s host {host or without_credentials(url)!r} is not"
            f" this machine (127.0.0.1, ::1 or localhost): nothing was sent. Set {endpoint.setting} to one here, or"
            " TRAJECTORY_LLM_EGRESS=on."
        )


def _is_local(host: str) -> bool:
    if host in {"localhost", "localhost."}:
        # Many resolvers do not know the name with the dot; one that does must give loopback addresses for it too.
        found = _addresses("localhost")
        return bool(found) and all(map(_is_loopback, found + _addresses(host)))
    return _is_loopback(host)


def _addresses(host: str) -> list[str]:
    try:
        # The system may name the interface: fe80::1%lo0.
        return [str(address[0]).partition("%")[0] for *_, address in socket.getaddrinfo(host, None)]
    except OSError:
        return []


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_loopback
    # An address with a zone is not loopback: after the % may stand anything, a host name too.
    return address.scope_id is None and (address.ipv4_mapped or address).is_loopback
