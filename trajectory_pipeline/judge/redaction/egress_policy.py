"""With egress off, a transcript may be sent to this machine only."""

import ipaddress
import socket
from urllib.parse import urlsplit

from trajectory_pipeline.errors import JudgeError


def require_local(url: str) -> None:
    """Raise JudgeError for an endpoint that is not on this machine.

    Local is a literal loopback address (127.0.0.0/8, ::1), and the name ``localhost`` where it resolves to such
    addresses alone. A private or link-local address is another machine.
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
