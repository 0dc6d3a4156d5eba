"""What LeRobot's robot clients cannot be told stands in the policy server's log; and what a client of ours says."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from lerobot_parts import Place, RobotClient, grpc_is_loaded, opened
from policies_for_tests import EchoPolicy, FailingPolicy
from quotes import produces

from remote_env.policy import open_policy
from remote_env.policy.dialects import lerobot_robots

__all__ = ["grpc_is_loaded", "opened"]
Opened = Callable[..., Any]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_robots, "STRANGER_WAIT_S", 0.05)


def line_of(place: Place, words: str) -> str:
    place.wait_for(words)
    return next(line for line in place.lines if words in line)


@produces("robot client at …: refused: the robot client asks for the policy '…'; this server serves '…', …")
def test_a_policy_that_is_not_served(opened: Opened) -> str:
    place = opened(Place, EchoPolicy())
    robot = opened(RobotClient, place)
    robot.ready()
    with pytest.raises(grpc.RpcError) as caught:
        robot.instruct(pretrained_name_or_path="my/checkpoint")
    told = line_of(place, "asks for the policy")
    assert caught.value.details() in told
    return told


@produces("robot client at …: no actions: …")
def test_a_robot_client_that_waits(opened: Opened) -> str:
    place = opened(Place, FailingPolicy())
    robot = opened(RobotClient, place).start()
    robot.send(-1.0)
    assert robot.get() == []  # which it takes for "not yet"
    return line_of(place, "no actions")


@produces("robot client at …: refused: it is not known here (any more): start the robot client again")
def test_a_server_that_was_started_again(opened: Opened) -> str:
    place = opened(Place, EchoPolicy())
    robot = opened(RobotClient, place).start()
    place.restart()
    with pytest.raises(grpc.RpcError):
        robot.send()
    return line_of(place, "not known here")


@produces("ConnectError: no LeRobot policy server answers: …; is it running, on that port?")
def test_nobody_speaks_grpc_there(opened: Opened) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    open_policy(f"lerobot://127.0.0.1:{port}", timeout_s=5.0, reconnect_timeout_s=0.1)


@produces("ConnectError: … does not answer as a policy server does: that port speaks HTTP/2, as gRPC does; …")
def test_renv_at_a_port_of_lerobot(opened: Opened) -> None:
    host, port = opened(Place, EchoPolicy()).listener.address
    open_policy(f"{host}:{port}", token="t" * 64, timeout_s=5.0, reconnect_timeout_s=0.1)
