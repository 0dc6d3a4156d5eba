from __future__ import annotations

from collections.abc import Iterator

import pytest
from server_process import ServerProcess, serving

from remote_env.testing import CheckFailed, FaultProxy, check_task_server
from remote_env.testing.checks import run_rules
from remote_env.testing.raw_link import CALL, new_nonce
from remote_env.testing.raw_session import RawServer, RawSession
from remote_env.testing.rules_of_handshakes import HANDSHAKE_RULES
from remote_env.testing.rules_of_links import LINK_RULES
from remote_env.testing.rules_of_sessions import SESSION_RULES
from remote_env.testing.scripted_server import ScriptedServer

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving("tasks_for_tests.breaking:make", {"episode_length": 50, "image": True}) as server:
        yield server


def test_a_server_of_ours_passes(server):
    check_task_server(("127.0.0.1", server.port), server.token)


def test_it_passes_at_a_unix_socket_on_a_slow_link_too(server, tmp_path):
    with FaultProxy(("127.0.0.1", server.port), listen=str(tmp_path / "socket")) as proxy:
        proxy.delay(0.001, jitter=0.002)
        run_rules((*HANDSHAKE_RULES[:4], *LINK_RULES[:4]), RawServer(proxy.address, server.token))


@pytest.mark.parametrize(
    ("fault", "rule", "found"),
    [
        ("takes any number", "A request that is not the next one", "RESULT came after request"),
        ("forgets replies", "Replies that the client did not receive come again", "a reply did not come within"),
        ("runs again", "Replies that the client did not receive come again", "RESUMED forgot a request"),
        ("runs after the end", "A STEP sent before its client could know", "was answered RESULT"),
    ],
)
def test_a_server_that_breaks_a_rule_is_told(server, monkeypatch, fault, rule, found):
    monkeypatch.setattr("remote_env.testing.raw_link.PATIENCE_S", 1.0)
    raw = RawServer(("127.0.0.1", server.port), server.token)
    break_server(raw, fault)
    rules = [each for each in (*SESSION_RULES, *LINK_RULES) if (each.__doc__ or "").startswith(rule)]
    with pytest.raises(CheckFailed, match=found) as caught:
        run_rules(rules, raw)
    assert caught.value.rule.startswith(rule)
    break_server(raw, "")
    run_rules(rules, raw)


def break_server(raw: RawServer, fault: str) -> None:
    with RawSession(raw).begin() as session:
        session.reset()
        session.expect_result(session.ask(CALL, ("break_server", (fault,), {})), "CALL")


def test_another_token_and_no_server_are_told(server):
    with pytest.raises(CheckFailed, match="is not the HMAC of this token"):
        check_task_server(("127.0.0.1", server.port), "x" * 64)
    with pytest.raises(ConnectionRefusedError):
        check_task_server(("127.0.0.1", 1), "x" * 64)


def test_what_is_no_task_server_is_told():
    token = new_nonce()
    with ScriptedServer(token) as lazy, pytest.raises(CheckFailed, match="closed where REFUSED was due") as caught:
        check_task_server(lazy.address, token)  # it hangs up on who does not prove himself, and says not why
    assert caught.value.rule.startswith("A client that does not prove that it has the token is REFUSED")
    with (
        FaultProxy(lazy.address) as proxy,
        pytest.raises(CheckFailed, match="the connection was closed where CHALLENGE"),
    ):
        check_task_server(proxy.address, token)
