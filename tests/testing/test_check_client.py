from __future__ import annotations

import struct
from typing import Any

import pytest

from remote_env import RemoteEnv
from remote_env.testing import CheckFailed, check_client
from remote_env.testing import client_check as module
from remote_env.testing.checks import run_rules
from remote_env.testing.raw_link import RESET, STEP, Frame
from remote_env.testing.raw_session import RawServer, RawSession

pytestmark = pytest.mark.fault


def factory(reconnect_timeout_s: float) -> module.Factory:
    def connect(address: tuple[str, int], token: str) -> RemoteEnv:
        return RemoteEnv(f"tcp://{address[0]}:{address[1]}", token=token, reconnect_timeout_s=reconnect_timeout_s)

    return connect


def test_our_client_survives():
    run_rules(module.SURVIVING_RULES, factory(30.0), 30.0)


def test_our_client_gives_up():
    run_rules(module.FAILING_RULES, factory(0.5), 0.5)


def test_our_client_notices_silence():
    def connect(address: tuple[str, int], token: str) -> RemoteEnv:
        url = f"tcp://{address[0]}:{address[1]}"
        return RemoteEnv(url, token=token, reconnect_timeout_s=30.0, heartbeat_s=0.1, heartbeat_timeout_s=0.4)

    run_rules((module._notices_silence,), connect, 0.4)


class RawClient:
    """A small client that shares no code with ours, with one thing wrong if so asked."""

    def __init__(self, address: tuple[str, int], token: str, fault: str = "") -> None:
        self._fault = fault
        self._session = RawSession(RawServer(address, token), resume_s=60).begin()

    def reset(self, *, seed: int | None = None) -> Any:
        return struct.unpack("<d", self._ask(RESET, (seed, None)).body), {}

    def step(self, action: Any) -> Any:
        reward, _, _, observation = struct.unpack("<dBBd", self._ask(STEP, list(action)).body)
        return [observation], reward, False, False, {}

    def _ask(self, kind: int, value: Any) -> Frame:
        session = self._session
        request = session.pack(kind, value, acknowledged=0 if self._fault == "acknowledges nothing" else None)
        session.link.send_quietly(request)
        while (reply := self._receive()) is None:
            taken = session.resume().sequence
            if self._fault == "other bytes":
                request = session.pack_as(session.sequence, kind, [0.0, 0.0])
            if taken < session.sequence or self._fault == "sends all again":
                session.link.send_quietly(request)
        return reply

    def _receive(self) -> Frame | None:
        try:
            return self._session.receive()
        except CheckFailed:
            if self._fault == "never resumes":
                raise
            return None

    def close(self) -> None:
        if self._fault == "leaves nothing said":
            self._session.control.close()
            self._session.link.close()
        else:
            self._session.leave()


def test_another_client_passes_too():
    run_rules(module.SURVIVING_RULES[:6], RawClient, 5.0)


@pytest.mark.parametrize(
    ("fault", "rule", "found"),
    [
        ("acknowledges nothing", "Requests are numbered", "do not acknowledge the reply before them"),
        ("leaves nothing said", "Requests are numbered", "no LEAVE came"),
        ("never resumes", "A request that was not taken is sent again", "closed where a reply was due"),
        ("other bytes", "A request that was not taken is sent again", "sent again with other bytes"),
        ("sends all again", "A request that was taken is not sent again", "request 3 came where 4 was due"),
    ],
)
def test_a_client_that_breaks_a_rule_is_told(fault, rule, found):
    def connect(address: tuple[str, int], token: str) -> RawClient:
        return RawClient(address, token, fault)

    with pytest.raises(CheckFailed, match=found) as caught:
        check_client(connect)
    assert caught.value.rule.startswith(rule)
