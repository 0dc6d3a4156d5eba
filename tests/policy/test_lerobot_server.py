"""Our server of LeRobot's async inference, over real gRPC, with a robot client of the wire's own calls."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from leak_check import wait_until
from lerobot_parts import DEADLINE_S, STATE, Place, RobotClient, grpc_is_loaded, opened
from policies_for_tests import CountingPolicy, EchoPolicy, FailingPolicy, GatedPolicy

from remote_env.errors import ConfigError
from remote_env.policy.dialects import lerobot_robots, lerobot_server
from remote_env.policy.dialects.lerobot import listen
from remote_env.policy.dialects.lerobot_messages import (
    BEGIN,
    END,
    Actions,
    Empty,
    Observation,
    PolicySetup,
    cut,
)
from remote_env.policy.dialects.lerobot_pickle import (
    HELPERS,
    OLD_HELPERS,
    TimedAction,
)
from remote_env.policy.policy import Policy

__all__ = ["grpc_is_loaded", "opened"]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_server, "WAIT_S", 0.2)
    monkeypatch.setattr(lerobot_robots, "STRANGER_WAIT_S", 0.05)


@pytest.fixture
def long_wait(short_waits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """GetActions is under way for as long as the test needs it to be."""
    monkeypatch.setattr(lerobot_server, "WAIT_S", DEADLINE_S)


def first(actions: list[TimedAction]) -> float:
    return float(actions[0].action[0])


def refused(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **options)
    return str(caught.value.details())


def test_a_chunk_carries_the_observations_time_and_step(opened):
    place = opened(Place, EchoPolicy(control_rate_hz=50.0))
    robot = opened(RobotClient, place).start(actions_per_chunk=3)
    robot.send(5.0, timestep=7, timestamp=100.0)
    actions = robot.get()
    assert [action.timestep for action in actions] == [7, 8, 9]
    assert [action.timestamp for action in actions] == pytest.approx([100.0, 100.02, 100.04])
    assert [float(action.action[0]) for action in actions] == [5.0, 6.0, 7.0]
    assert all(action.action.dtype == np.float32 and action.action.shape == (14,) for action in actions)


def test_an_older_client_is_answered_by_its_own_module(opened):
    place = opened(Place, EchoPolicy())
    robot = opened(RobotClient, place, OLD_HELPERS).start()
    robot.send()
    data = robot._unary("GetActions", Empty(), Actions.FromString).data
    assert OLD_HELPERS.encode() in data
    assert HELPERS.encode() not in data


def test_an_observation_is_dropped_only_when_a_newer_one_came(opened):
    place = opened(Place, EchoPolicy())
    robot = opened(RobotClient, place).start()
    for value in (1.0, 1.0, 1.0):  # LeRobot's own server swallows those that resemble the last
        robot.send(value)
        assert first(robot.get()) == value
    robot.send(2.0, timestep=8)
    robot.send(3.0, timestep=9)
    assert first(robot.get()) == 3.0
    assert robot.get() == []  # nothing waits any more
    assert "observation #8 was dropped, since #9 came before its turn (1 so far)" in place.log


def test_robots_share_nothing(opened):
    place = opened(Place, CountingPolicy())
    first_robot, second = opened(RobotClient, place).start(actions_per_chunk=1), opened(RobotClient, place).start()
    for _ in range(3):
        first_robot.send()
        assert len(actions := first_robot.get()) == 1
    assert first(actions) == 3.0
    second.send()
    assert first_robot.get() == []
    assert first(second.get()) == 1.0


def test_ready_begins_an_episode(opened):
    place = opened(Place, CountingPolicy())
    robot, other = opened(RobotClient, place).start(), opened(RobotClient, place).start()
    for client in (robot, other, robot, other):
        client.send()
        client.get()
    robot.send()
    robot.ready()
    assert robot.get() == []  # what waited belonged to the old episode
    robot.send()
    other.send()
    assert (first(robot.get()), first(other.get())) == (1.0, 3.0)


def test_a_failing_policy_is_an_empty_reply_and_its_cause_is_in_the_log(opened):
    place = opened(Place, FailingPolicy())
    robot = opened(RobotClient, place).start()
    robot.send(-1.0)
    assert robot.get() == []
    assert "the model chokes on a negative number" in place.log
    assert "no actions: the policy raised ValueError" in place.log
    robot.send(1.0)
    assert first(robot.get()) == 1.0


def test_only_what_is_served_may_be_asked_for(opened, tmp_path):
    place = opened(Place, EchoPolicy(), allow_models=(tmp_path / "models",))
    (tmp_path / "secret").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link").symlink_to(tmp_path / "secret")
    robot = opened(RobotClient, place)
    robot.ready()
    for name in (
        "other/model",
        str(tmp_path / "secret"),
        str(tmp_path / "models/../secret"),
        str(tmp_path / "models/link"),
        "/",
    ):
        assert "this server serves 'the/model'" in refused(robot.instruct, pretrained_name_or_path=name)
    assert str(tmp_path / "secret") in place.log
    assert "no checkpoint" in refused(robot.instruct, pretrained_name_or_path=str(tmp_path / "models"))
    robot.instruct()
    robot.send()
    assert robot.get()


@pytest.mark.usefixtures("long_wait")
def test_a_model_of_an_allowed_folder_is_loaded_once_and_closed_with_its_last_client(opened, tmp_path, monkeypatch):
    made: list[EchoPolicy] = []

    def load(path: Path, **_: Any) -> Policy:
        made.append(EchoPolicy(chunk_size=2))
        return made[-1]

    monkeypatch.setattr("remote_env.policy.dialects.lerobot_models.load_policy", load)
    (tmp_path / "mine").mkdir()
    place = opened(Place, EchoPolicy(), allow_models=(tmp_path,))
    robots = [opened(RobotClient, place).start(pretrained_name_or_path=str(tmp_path / "mine")) for _ in range(2)]
    for robot in robots:
        robot.send(1.0)
        assert len(robot.get()) == 2
    assert len(made) == 1
    calls = [robot.waiting_get() for robot in robots]
    place.wait_for_calls(2)
    for robot in robots:
        robot.close()
    wait_until(lambda: made[0].closed, "its last client has gone")
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"observation.state": {"dtype": "float32", "shape": (13,), "names": STATE[:13]}}, "lacks s13"),
        ({"observation.state": {"dtype": "float32", "shape": (14,)}}, "names its numbers"),
        ({"observation.state": {"names": ["a"] * 14}}, "different ones"),
        ({"observation.images.top": {"dtype": "image", "shape": (4, 6)}}, "height, width, channels"),
        ({"observation.images.top": {"dtype": "image", "shape": (10**6, 6, 3)}}, "sides of 1 to"),
    ],
)
def test_a_robot_that_does_not_fit_is_told_why(opened, features, words):
    place = opened(Place, EchoPolicy())
    robot = opened(RobotClient, place)
    robot.ready()
    assert words in refused(robot.instruct, features)
    assert "Client #" not in place.log


def test_cameras_go_by_name_and_size_and_the_task_is_the_text(opened):
    seen: list[Any] = []

    class Watching(EchoPolicy):
        def infer(self, observation, *, episode_ids):
            seen.append(observation)
            return super().infer(observation, episode_ids=episode_ids)

    policy = Watching(images=1, image_shape=(4, 6, 3), text=True)
    place = opened(Place, policy)
    robot = opened(RobotClient, place)
    robot.ready()
    camera = {"observation.images.front": {"dtype": "image", "shape": (4, 6, 3)}}
    wrong = {"observation.images.front": {"dtype": "image", "shape": (8, 6, 3)}}
    assert "8×6 and the policy takes 4×6" in refused(robot.instruct, wrong)
    second = {"observation.images.back": {"dtype": "image", "shape": (4, 6, 3)}}
    assert "could be" in refused(robot.instruct, camera | second)
    robot.instruct(camera | second, rename_map={"observation.images.front": "image0"})
    image = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    robot.send(1.0, front=image, back=image * 0, task="pick")
    assert robot.get()
    assert np.array_equal(seen[0]["image0"][0], image)
    assert seen[0]["instruction"] == ["pick"]
    assert "camera 'front' gives NoneType" in refused(robot.send, 1.0, back=image)
    assert "camera 'front' gives (4, 6) uint8" in refused(robot.send, 1.0, front=image[:, :, 0], back=image)
    assert "no number 's0.pos'" in refused(robot.send, **{"s0.pos": "x"}, front=image, back=image)


def test_numbers_go_by_name_where_both_sides_have_names(opened):
    place = opened(Place, EchoPolicy())
    robot = opened(RobotClient, place)
    robot.ready()
    robot.instruct({"observation.state": {"dtype": "float32", "shape": (14,), "names": STATE[::-1]}})
    robot.send(5.0)
    assert first(robot.get()) == 5.0


def test_numbers_of_unknown_names_go_by_order(opened):
    place = opened(Place, EchoPolicy())
    robot = opened(RobotClient, place)
    robot.ready()
    names = [f"motor{index}.pos" for index in range(14)]
    robot.instruct({"observation.state": {"dtype": "float32", "shape": (14,), "names": names}})
    robot.send(0.0, **{name: float(index) for index, name in enumerate(names)})
    assert np.array_equal(robot.get()[0].action, np.arange(14))


# Who comes without manners.


@pytest.mark.usefixtures("long_wait")
def test_a_client_that_goes_is_noticed_and_may_come_back(opened):
    place = opened(Place, CountingPolicy())
    robot = opened(RobotClient, place).start()
    robot.send()
    robot.get()
    call = robot.waiting_get()
    place.wait_for_calls(1)
    robot.close()
    place.wait_for("Client #1 closed: 1 requests in total")
    assert call.done()
    again = opened(RobotClient, place)  # LeRobot's client goes on after a break, without a word
    again.send()
    assert first(again.get()) == 1.0
    place.wait_for("is back at")
    stranger = opened(RobotClient, place)
    assert stranger.get() == []
    assert "not known here" in refused(stranger.send)
    assert "start the robot client again" in place.log


def test_observations_before_instructions_are_refused(opened):
    place = opened(Place, EchoPolicy())
    robot = opened(RobotClient, place)
    robot.ready()
    assert "before the policy instructions" in refused(robot.send)
    assert robot.get() == []


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_hostile_pickles_are_refused_and_the_server_goes_on(opened, tmp_path):
    place = opened(Place, EchoPolicy())
    robot = opened(RobotClient, place).start()
    data = pickle.dumps(Evil(tmp_path / "ran"))
    assert "not admitted" in refused(robot._unary, "SendPolicyInstructions", PolicySetup(data=data), Empty.FromString)
    assert "not admitted" in refused(robot.send_parts, cut(data))
    assert "refused a pickle" in refused(robot.send_parts, cut(b"garbage"))
    assert "refused a pickle" in refused(robot.send_parts, cut(b""))
    assert not (tmp_path / "ran").exists()
    robot.send(1.0)
    assert first(robot.get()) == 1.0
    assert "not admitted" in place.log


def test_an_observation_larger_than_allowed_is_refused_before_it_is_kept(opened):
    place = opened(Place, EchoPolicy(), max_message_bytes=3 << 20)
    robot = opened(RobotClient, place).start()
    assert "more than 3145728 bytes" in refused(robot.send_parts, cut(bytes(20 << 20)))
    assert refused(robot.send_parts, iter([Observation(transfer_state=END, data=bytes(5 << 20))]))
    robot.send(1.0)
    assert first(robot.get()) == 1.0


def test_a_stream_that_stops_halfway_is_ended(opened, monkeypatch):
    monkeypatch.setattr(lerobot_server, "TRANSFER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(lerobot_robots, "CHECK_S", 0.05)
    place = opened(Place, EchoPolicy())
    robot = opened(RobotClient, place).start()
    forever = threading.Event()

    def parts() -> Iterator[Any]:
        yield Observation(transfer_state=BEGIN, data=b"x")
        forever.wait(DEADLINE_S)

    call = robot.stream(parts())
    assert call.exception(DEADLINE_S).code() == grpc.StatusCode.CANCELLED
    forever.set()
    robot.send(1.0)
    assert first(robot.get()) == 1.0


@pytest.mark.usefixtures("long_wait")
def test_calls_of_one_robot_at_once_are_bounded(opened):
    place = opened(Place, EchoPolicy())
    robot = opened(RobotClient, place).start()
    calls = [robot.waiting_get() for _ in range(lerobot_robots.CALLS_PER_ROBOT + 1)]
    place.wait_for("calls at once")
    for call in calls:
        call.cancel()


@pytest.mark.usefixtures("long_wait")
def test_robots_are_bounded_and_those_that_left_make_room(opened, monkeypatch):
    monkeypatch.setattr(lerobot_robots.Robots, "limit", 2)
    place = opened(Place, EchoPolicy())
    robots = [opened(RobotClient, place).start() for _ in range(2)]
    third = opened(RobotClient, place)
    assert "2 robot clients are here already" in refused(third.ready)
    call = robots[0].waiting_get()
    place.wait_for_calls(1)
    robots[0].close()
    place.wait_for("Client #1 closed")
    wait_until(lambda: _is_ready(third), "there is room")
    assert call.done()


def test_a_robot_that_was_not_heard_for_long_makes_room(opened, monkeypatch):
    monkeypatch.setattr(lerobot_robots.Robots, "limit", 1)
    place = opened(Place, EchoPolicy())
    opened(RobotClient, place).start()
    second = opened(RobotClient, place)
    assert "1 robot clients are here already" in refused(second.ready)
    monkeypatch.setattr(lerobot_robots, "QUIET_S", 0.0)
    second.start()
    assert "Client #1 closed" in place.log


def _is_ready(robot: RobotClient) -> bool:
    try:
        robot.start()
    except grpc.RpcError:
        return False
    return True


def test_an_idle_robot_loses_its_place(opened, monkeypatch):
    monkeypatch.setattr(lerobot_robots, "CHECK_S", 0.02)
    place = opened(Place, EchoPolicy(), idle_timeout_s=0.1)
    opened(RobotClient, place).start()
    place.wait_for("Client #1 closed: 0 requests in total")


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 64, b"RENV" + b"\xff" * 60, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff"],
)
def test_garbage_on_the_port_hurts_nobody(opened, garbage):
    place = opened(Place, EchoPolicy())
    robot = opened(RobotClient, place).start()
    with socket.create_connection(place.listener.address, DEADLINE_S) as sock:
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while sock.recv(4096):
                pass
    robot.send(1.0)
    assert first(robot.get()) == 1.0


def test_a_busy_port_is_an_error_that_names_who_has_it(opened):
    place = opened(Place, EchoPolicy())
    host, port = place.listener.address
    with pytest.raises(
        ConfigError, match=rf"cannot listen on {host}:{port}: process {os.getpid()} .* choose another port"
    ):
        listen(host, port, place.service, place.context)
    robot = opened(RobotClient, place).start()
    robot.send(1.0)
    assert first(robot.get()) == 1.0


def test_the_server_ends_under_robots_that_wait_and_a_policy_that_computes(opened):
    policy = GatedPolicy()
    place = opened(Place, policy)
    computing, waiting = opened(RobotClient, place).start(), opened(RobotClient, place).start()
    computing.send(1.0)
    calls = [computing.waiting_get(), waiting.waiting_get()]
    assert policy.entered.acquire(timeout=DEADLINE_S)
    ended = threading.Thread(target=place.close)
    ended.start()
    policy.gate.release()
    ended.join(DEADLINE_S)
    assert not ended.is_alive()
    for call in calls:
        with contextlib.suppress(grpc.RpcError):
            call.result(DEADLINE_S)
