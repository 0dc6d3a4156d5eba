"""The arm and the cart of examples/isaac: served by Isaac Lab through a real sshd, driven and replayed without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import START_TIMEOUT_S
from ssh_client import remains, ssh_arguments
from ssh_server import SshServer

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from isaac import PICK_ID
from isaac.expert import PickExpert

from remote_env import RemoteEnv
from remote_env.record import Recorder
from remote_env.replay import replay_episode
from remote_env.state import SceneState

ROOT = Path(__file__).parents[2]
SCENES = ROOT / "examples" / "isaac"
MOST_M, MOST_RAD = 1e-3, 1e-2
RESTORE_TOLERANCE = 1e-5  # [m, rad] of the step after a restore, contacts included; 8.4e-9 was measured
PATIENCE_S = 15.0


@pytest.fixture(scope="module")
def env(isaac_python: str, isolated_home: Path, ssh_server: SshServer) -> Iterator[RemoteEnv]:
    arguments = ssh_arguments(ssh_server) | {"python": isaac_python, "start_timeout_s": START_TIMEOUT_S}
    arguments["server_env"] = {"WARP_CACHE_PATH": os.environ["WARP_CACHE_PATH"]}
    with RemoteEnv(
        ssh_server.target,
        env=f"isaac:{PICK_ID}",
        simulator="isaaclab",
        upload=[SCENES],
        capture_state=True,
        **arguments,
    ) as env:
        env.start()
        yield env
    deadline = time.monotonic() + PATIENCE_S
    while left := remains(ssh_server):
        assert time.monotonic() < deadline, f"left behind on the far end: {left}"
        time.sleep(0.02)


def run_expert(env: RemoteEnv, seed: int, recorder: Recorder | None = None) -> tuple[list[SceneState], list[Any]]:
    observation, info = env.reset(seed=seed)
    states, steps, expert = [env.get_state()], [], PickExpert()
    expert.reset(states[0])
    if recorder is not None:
        recorder.start(observation, info, state=states[0], seed=seed, description=env.get_scene_description())
    for step in range(300):
        action = expert.action(step)
        steps.append((action, *env.step(action)))
        states.append(env.get_state())
        if recorder is not None:
            recorder.record(*steps[-1], state=states[-1])
        if steps[-1][3] or steps[-1][4]:
            break
    return states, steps


def test_spaces_rate_and_names_are_the_task_s(env: RemoteEnv) -> None:
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert (env.action_space.shape, env.action_space.high[6]) == ((7,), np.float32(0.08))
    assert env.metadata["render_fps"] == 50.0
    assert env.remote_spec["max_episode_steps"] == 300
    state = env.get_state()
    assert [entity.name for entity in state.layout.entities] == ["robot", "cube"]
    np.testing.assert_allclose(observation[16:19], state["cube"].root_pose[:3], atol=1e-6)
    np.testing.assert_allclose(observation[19:], state["cube"].root_pose[3:], atol=1e-6)


def test_a_seed_places_the_cube(env: RemoteEnv) -> None:
    places = [env.reset(seed=seed)[0][16:19] for seed in (3, 4, 3)]
    np.testing.assert_array_equal(places[0], places[2])
    assert np.linalg.norm(places[0] - places[1]) > 0.01
    assert all(0.27 < np.hypot(*place[:2]) < 0.45 for place in places)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_expert_picks_and_the_replay_is_where_the_far_end_was(env: RemoteEnv, seed: int, tmp_path: Path) -> None:
    with Recorder(tmp_path, rate_hz=50.0) as recorder:
        states, steps = run_expert(env, seed, recorder)
        capture = recorder.finish()
    assert [step[5]["is_success"] for step in steps] == [False] * (len(steps) - 1) + [True]
    assert (steps[-1][3], steps[-1][4]) == (True, False)
    assert states[-1]["cube"].root_pose[2] > 0.12
    assert states[-1].time_s == pytest.approx(0.02 * len(steps))
    report = replay_episode(capture, SCENES / "pick.xml", mapping=SCENES / "mapping.yaml").report
    report.check(MOST_M, MOST_RAD)
    assert report.missing_links == ()


def test_a_root_s_velocity_is_that_of_its_frame_not_of_its_centre_of_mass(env: RemoteEnv) -> None:
    """A cube that spins in free flight: its frame goes round its centre of mass, 4 mm away, at 20 rad/s."""
    env.reset(seed=0)
    start = env.get_state()
    start["cube"].root_pose[:] = [0.3, -0.6, 1.5, 1.0, 0.0, 0.0, 0.0]
    start["cube"].root_velocity[:] = [0.0, 0.0, 0.0, 0.0, 0.0, 20.0]
    env.set_state(start)
    home = np.append(start["robot"].joint_positions[:6], 0.08).astype(np.float32)
    states = []
    for _ in range(8):
        env.step(home)
        states.append(env.get_state())
    for before, now, after in zip(states[:-2], states[1:-1], states[2:], strict=True):
        rate = (after["cube"].root_pose[:2] - before["cube"].root_pose[:2]) / (after.time_s - before.time_s)
        np.testing.assert_allclose(rate, now["cube"].root_velocity[:2], atol=0.015)
        np.testing.assert_allclose(now["cube"].root_velocity[3:], [0.0, 0.0, 20.0], atol=0.5)
    speeds = [np.ptp([state["cube"].root_velocity[axis] for state in states]) for axis in (0, 1)]
    assert max(speeds) > 0.1, "the frame is to go to and fro at 4 mm * 20 rad/s, or this test would tell nothing"


def test_a_step_after_a_restore_in_mid_lift_is_the_step_that_was(env: RemoteEnv) -> None:
    states, steps = run_expert(env, 5)
    worst = 0.0
    for index in (40, 110, 150):  # in the air, closing, lifting
        env.set_state(states[index])
        env.step(steps[index][0])
        now, then = env.get_state(), states[index + 1]
        for entity in then.layout.entities:
            for kind in ("root_pose", "joint_positions", "link_poses"):
                difference = np.abs(getattr(now[entity.name], kind) - getattr(then[entity.name], kind))
                worst = max(worst, float(difference.max(initial=0.0)))
    assert worst < RESTORE_TOLERANCE


def run_example(*arguments: str, home: Path, timeout_s: float = 500.0) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_example_runs_it_through_sshd(isaac_python: str, ssh_server: SshServer, tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "known_hosts").write_text(ssh_server.known_hosts_line())
    host = ["--host", "127.0.0.1", "--ssh-port", str(ssh_server.port), "--identity", str(ssh_server.identity_file)]
    what = ["--task", "isaac-pick", "--episodes", "1", "--max-error-m", "0.001", "--output-dir", str(tmp_path / "out")]
    python = f"env WARP_CACHE_PATH={os.environ['WARP_CACHE_PATH']} {isaac_python}"
    run_example(str(ROOT / "examples" / "remote_replay.py"), *host, "--python", python, *what, home=tmp_path)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["success_rate"], report["missing_links"]) == (1.0, [])
    assert report["max_position_error_m"] < MOST_M
    assert report["max_rotation_error_rad"] < MOST_RAD
    assert (tmp_path / "out" / "videos" / "episode_000.mp4").stat().st_size > 10_000


def test_the_cart_is_balanced_and_replayed(isaac_python: str, tmp_path: Path) -> None:
    what = ["--task", "isaac-cartpole", "--episodes", "1", "--max-steps", "120", "--output-dir", str(tmp_path / "out")]
    example = str(ROOT / "examples" / "remote_replay.py")
    run_example(example, "--python", isaac_python, *what, "--max-error-m", "0.001", home=tmp_path)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["steps"] == 120


def test_a_batch_picks_with_a_seed_for_each(isaac_python: str, tmp_path: Path) -> None:
    said = run_example(str(SCENES / "measure.py"), "--python", isaac_python, "--seeds", "4", home=tmp_path)
    measured = json.loads(said)
    assert (measured["seeds"], measured["picked"], measured["failed_seeds"]) == (4, 4, [])
