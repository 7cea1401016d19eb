"""Egress: with egress off nothing leaves this machine, and no redirect is followed.

Real servers count what they receive.
"""

import json
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.errors import JudgeError
from trajectory_pipeline.judge.access_lists import JudgeAccessList
from trajectory_pipeline.judge.redaction.egress_policy import require_local
from trajectory_pipeline_tests.judge.judge_client import ask
from trajectory_pipeline_tests.judge.provider import ANSWER, Provider, completion


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1",
        "http://127.8.9.1/v1",
        "http://[::1]:8000/v1",
        "http://[::ffff:127.0.0.1]/v1",
        "http://localhost:11434/v1",
        "http://LOCALHOST./v1",
    ],
)
def test_require_local_accepts_urls_of_this_machine(url: str) -> None:
    require_local(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "http://10.0.0.7/v1",
        "http://192.168.1.5/v1",
        "http://169.254.169.254/v1",
        "http://[fe80::1]/v1",
        "http://0.0.0.0/v1",
        "http://localhost.example.org/v1",
        "http://127.0.0.1.nip.io/v1",
        "http://2130706433/v1",
        "http://0x7f.1/v1",
        "http://[::ffff:10.0.0.7]/v1",
        "http:///v1",
        "http://127.0.0.1%x.evil.example/v1",
        "http://127.0.0.1%25x.evil.example/v1",
        "http://[::1%25x.evil.example]/v1",
        "http://localhost%2eevil.example/v1",
        "http://127.0.0.1\\\\@evil.example/v1",
        "http://127.0.0.1@evil.example/v1",
        "http://127.0.0.1./v1",
        "http://127.1/v1",
        "http://0177.0.0.1/v1",
        "http://[::127.0.0.1]/v1",
        "http://[64:ff9b::7f00:1]/v1",
        "http://localhost.localdomain/v1",
    ],
)
def test_ask_with_egress_off_refuses_other_urls(url: str) -> None:
    with pytest.raises(JudgeError, match="TRAJECTORY_LLM_EGRESS is off"):
        ask(url, local_only=True)


def test_ask_with_egress_off_calls_a_local_server() -> None:
    with Provider(lambda _: (200, completion(json.dumps(ANSWER)), {})) as provider:
        assert ask(provider.url, local_only=True).answer is not None
    assert len(provider.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("local_only", [True, False])
def test_ask_does_not_follow_a_redirect(status: int, *, local_only: bool) -> None:
    with Provider(lambda _: (200, completion("{}"), {})) as elsewhere:

        def redirect(_: int) -> tuple[int, Any, dict[str, str]]:
            return status, {}, {"location": f"{elsewhere.url}/chat/completions"}

        with Provider(redirect) as provider:
            result = ask(provider.url, local_only=local_only, max_attempts=1)
    assert (len(provider.requests), elsewhere.requests) == (1, [])
    assert result.answer is None


def test_ask_with_egress_off_uses_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with Provider(lambda _: (200, completion("{}"), {})) as proxy, Provider(lambda _: (500, {}, {})) as provider:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        ask(provider.url, local_only=True, max_attempts=1)
        assert (len(provider.requests), proxy.requests) == (1, [])


# ---- access lists --------------------------------------------------------------------------------------------------

IDS = st.sampled_from(["a", "b", None])
LISTS = st.frozensets(st.sampled_from(["a", "b"]))


@given(IDS, IDS, st.builds(JudgeAccessList, LISTS, LISTS, LISTS, LISTS))
def test_access_list_refuses_the_denied_and_the_unlisted(
    agent: str | None, organization: str | None, access: JudgeAccessList
) -> None:
    denied = agent in access.deny_agents or organization in access.deny_organizations
    allowed = (not access.allow_agents or agent in access.allow_agents) and (
        not access.allow_organizations or organization in access.allow_organizations
    )
    refusal = access.refusal(agent, organization)
    assert (refusal is None) == (allowed and not denied)
    if refusal is not None:
        assert "TRAJECTORY_JUDGE_" in refusal


@pytest.mark.parametrize("host", ["localhost", "localhost."])
@pytest.mark.parametrize("elsewhere", ["10.0.0.7", "fe80::1%eth0", "::ffff:10.0.0.7"])
def test_localhost_that_resolves_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch, host: str, elsewhere: str
) -> None:
    def resolve(name: str, *_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        addresses = ["127.0.0.1", elsewhere] if name == host else ["127.0.0.1"]
        return [(2, 1, 6, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(JudgeError, match="TRAJECTORY_LLM_EGRESS is off"):
        require_local(f"http://{host}:8000/v1")
