"""A policy on a robot: the simulated one in real time, and ones that fail."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from small import SmallPolicy

from remote_env.errors import ConfigError, PolicyError, TaskError
from remote_env.evaluate.config import make_config
from remote_env.evaluate.episodes import EpisodePlan
from remote_env.evaluate.policy_host import PolicyHost
from remote_env.evaluate.real import Pace, RobotRunner
from remote_env.evaluate.real_evaluation import evaluate_robot
from remote_env.evaluate.robots import RobotConfig, RobotSpaces, RobotTask, find_file, make_robot, read_robot, read_task

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "eval_real.py"


class StillRobot:
    """Three joints that sense what they are told; two of them can be moved."""

    observation_features = {"left.pos": float, "right.pos": float, "lift.pos": float}  # noqa: RUF012
    action_features = {"left.pos": float, "right.pos": float}  # noqa: RUF012

    made: ClassVar[list[Any]] = []

    def __init__(self, *, fails_at: int = -1, jumps: float = 0.0, error: str = "OSError") -> None:
        self.made.append(self)
        self._error = error
        self.sent: list[dict[str, float]] = []
        self.calls: list[str] = []
        self._fails_at, self._jumps = fails_at, jumps

    def connect(self) -> None:
        self.calls.append("connect")

    def get_observation(self) -> dict[str, float]:
        if len(self.sent) == self._fails_at:
            raise {"OSError": OSError, "KeyboardInterrupt": KeyboardInterrupt}[self._error]("the bus is silent")
        return {"left.pos": 0.25 + self._jumps * len(self.sent), "right.pos": 0.5, "lift.pos": 0.0}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self.sent.append(action)
        return action

    def disconnect(self) -> None:
        self.calls.append("disconnect")


def play(robot: Any, *, policy: Any = None, jump: float | None = None, judge: Any = None, **settings: Any) -> Any:
    config = make_config({"fps": 500.0, "chunk_size": 2, **settings})
    runner = RobotRunner(
        robot,
        RobotConfig("a:B", max_action_jump=jump),
        RobotTask("still", episode_s=0.02),
        policy or SmallPolicy(),
        config,
        judge or (lambda plan: None),
    )
    try:
        return runner.run(EpisodePlan("still", 0, 0))
    finally:
        runner.close()


def test_numbers_go_by_their_names_and_every_step_is_one_action():
    robot = StillRobot()
    result = play(robot, judge=lambda plan: True)
    assert robot.sent == [{"left.pos": 0.25, "right.pos": 0.5}] * 10
    assert (result.length, result.success, result.end) == (10, True, "max_steps")
    assert len(result.latencies_ms) == 5
    assert result.details["busy_ms"]["count"] == 10


def test_asking_ahead_sends_as_many():
    robot = StillRobot()
    result = play(robot, asynchronous=True)
    assert len(robot.sent) == result.length == 10
    assert result.success is None
    assert result.details["actions"] == 10


def test_after_an_error_of_the_robot_nothing_further_is_sent():
    robot = StillRobot(fails_at=3)
    with pytest.raises(TaskError, match=r"get_observation.*the bus is silent.*nothing further is sent"):
        play(robot)
    assert len(robot.sent) == 3


@pytest.mark.parametrize(("error", "expected"), [("OSError", TaskError), ("KeyboardInterrupt", KeyboardInterrupt)])
def test_a_stopped_evaluation_disconnects_and_keeps_what_was_done(tmp_path, error, expected):
    host = PolicyHost(SmallPolicy(), max_batch=1, log=lambda _: None)
    settings = {"model": host.address, "token": host.token, "output_dir": tmp_path / "out", "fps": 500.0}
    robot = RobotConfig(f"{__name__}:StillRobot", {"fails_at": 7, "error": error})
    task = RobotTask("still", episode_s=0.01)
    with contextlib.closing(host), pytest.raises(expected):
        evaluate_robot(make_config({**settings, "num_rollout": 3}), robot, task, judge=lambda plan: True)
    assert len(StillRobot.made[-1].sent) == 7
    assert StillRobot.made[-1].calls == ["connect", "disconnect"]
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (written["complete"], [each["success"] for each in written["episodes"]]) == (False, [True])


def test_after_an_error_of_the_policy_nothing_is_sent():
    robot = StillRobot()
    with pytest.raises((PolicyError, ValueError), match="the weights are gone"):
        play(robot, policy=SmallPolicy(fails=True))
    assert robot.sent == []


def test_an_action_that_jumps_too_far_is_not_sent():
    robot = StillRobot(jumps=0.2)
    with pytest.raises(TaskError, match=r"moves left by 0\.4 in one step, and max_action_jump is 0\.3"):
        play(robot, jump=0.3)
    assert len(robot.sent) == 2


def test_a_robot_that_does_not_fit_the_policy_is_told_with_both_sides():
    class TwoJoints(StillRobot):
        observation_features = {"left.pos": float, "right.pos": float}  # noqa: RUF012

    with pytest.raises(ConfigError, match="state") as raised:
        play(TwoJoints())
    assert "(3,)" in str(raised.value)
    assert "(2,)" in str(raised.value)


def test_images_are_features_too():
    class Camera(StillRobot):
        observation_features = {"left.pos": float, "wrist": (4, 6, 3)}  # noqa: RUF012

    spaces = RobotSpaces(Camera())
    assert spaces.observation["wrist"].shape == (4, 6, 3)
    assert spaces.state_names == ("left",)
    with pytest.raises(TaskError, match="wrist"):
        spaces.gather({"left.pos": 1.0})


def test_a_pace_counts_overruns_and_never_makes_up_for_them():
    pace = Pace(1000.0)
    pace.begin()
    pace._due -= 1.0  # as if this step had taken a second
    pace.wait()
    report = pace.report()
    assert report["overruns"] == 1
    assert report["overrun_ms"]["max"] >= 900
    assert pace._due > pace._began


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("robot: nothing", "must be 'module:Class'"),
        ("robots: a:B", "did you mean 'robot'"),
        ("robot: a:B\nmax_action_jump: -1", "max_action_jump"),
    ],
)
def test_a_robot_file_with_a_fault_is_refused(tmp_path, text, message):
    (tmp_path / "robot.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_robot(tmp_path / "robot.yaml")


def test_a_robot_that_is_none_is_told(tmp_path):
    with pytest.raises(ConfigError, match="lacks connect"):
        make_robot(RobotConfig("pathlib:Path"))
    with pytest.raises(ConfigError, match="cannot be made"):
        make_robot(RobotConfig("no_such_module:Robot"))


def test_the_shipped_files_are_found_by_name_and_others_listed():
    folder = ROOT / "configs"
    assert read_robot(find_file("agilex_aloha", (folder,))).target == "simulated_robot:SimulatedAloha"
    assert read_task(find_file("agilex_transfer_cube", (folder,))).episode_s == 8.0
    with pytest.raises(ConfigError, match="there are agilex_aloha, agilex_transfer_cube"):
        find_file("agilex", (folder,))


def test_the_simulated_robot_hands_the_cube_over_in_real_time(tmp_path):
    command = [sys.executable, str(EXAMPLE), "--robot_config", "agilex_aloha", "--task", "agilex_transfer_cube"]
    words = ["-m", "scripted:aloha-transfer-cube", "--num-rollout", "1", "-o", "out", "--no_plots"]
    done = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    (episode,) = written["episodes"]
    assert episode["success"] is True
    assert episode["wall_s"] > 0.95 * episode["length"] / 50
    assert (tmp_path / "out" / "episodes.csv").is_file()
