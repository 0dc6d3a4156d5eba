"""Whether a task server keeps docs/protocol.md, told byte by byte over its own connections."""

from __future__ import annotations

from remote_env.testing.checks import run_rules
from remote_env.testing.raw_session import RawServer
from remote_env.testing.rules_of_handshakes import HANDSHAKE_RULES, PATIENT_RULES
from remote_env.testing.rules_of_links import LINK_RULES
from remote_env.testing.rules_of_sessions import SESSION_RULES

RULE_TIMEOUT_S = 240.0  # the first rule that needs a simulator waits for its start


def check_task_server(address: tuple[str, int] | str, token: str, *, patient: bool = False) -> None:
    """Check that a task server keeps the protocol: its handshake, its sessions, and what it does when links break.

    The server must hold no session, and does not when this returns. Its task is reset and stepped some hundred times,
    with one action of its space. What a task need not have (states, calls) is checked as far as it is there.

    Args:
        address: host and port, or the path of a Unix socket.
        token: the server's.
        patient: wait for the server's own time limits too, some 10 s.

    Raises:
        CheckFailed: it breaks a rule; `rule` says which.
        OSError: nothing answers there.
    """
    server = RawServer(address, token)
    server.connect().close()
    rules = (*HANDSHAKE_RULES, *SESSION_RULES, *LINK_RULES, *(PATIENT_RULES if patient else ()))
    run_rules(rules, server, timeout_s=RULE_TIMEOUT_S)
