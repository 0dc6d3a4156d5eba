"""examples/remote_replay.py as a user runs it: a program of its own, with the embedded server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from leak_check import wait_until
from PIL import Image

from remote_env.record import read_episode

EXAMPLE = Path(__file__).parents[2] / "examples" / "remote_replay.py"
KEYS = {
    "episodes",
    "steps",
    "success_rate",
    "steps_per_s",
    "replay_frames_per_s",
    "max_position_error_m",
    "max_joint_error_rad",
    "host",
}


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=110)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_hand_over_is_recorded_there_and_shown_here(tmp_path):
    done = run("--episodes", "1", "--seed", "3", "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    report = json.loads((out / "report.json").read_text())
    assert report.keys() >= KEYS
    assert (report["episodes"], report["steps"], report["success_rate"]) == (1, 300, 1.0)
    assert (report["host"], report["max_position_error_m"], report["max_joint_error_rad"]) == ("local", 0.0, 0.0)
    assert report["contact_sequences"] == [["right", "both", "left"]]
    files = names(out)
    assert "captures/episode_000.hdf5" in files
    assert "videos/episode_000.mp4" in files
    stills = [name for name in files if name.startswith("images/episode_000_0")]
    assert [name.split("_")[-1] for name in stills] == ["start.png", "right.png", "both.png", "left.png", "end.png"]
    assert not [name for name in files if "tmp" in name or name.endswith(".part")]
    start, end = (np.asarray(Image.open(out / stills[index])).astype(int) for index in (0, -1))
    assert red_column(end) < red_column(start)  # the cube went from the right to the left
    episode = read_episode(out / "captures" / "episode_000.hdf5")
    assert episode.observations["qpos"].shape == episode.observations["qvel"].shape == (300, 14)
    assert len(episode.states) == 301


def red_column(image: np.ndarray) -> float:
    red = (image[..., 0] > 150) & (image[..., 1] < 60)
    return float(np.argwhere(red)[:, 1].mean())


def test_any_mujoco_task_and_a_policy_of_one_s_own(tmp_path):
    (tmp_path / "mine.py").write_text("def still(observation):\n    return [0.1]\n")
    arguments = ["--task", "InvertedPendulum-v5", "--policy", "mine:still", "--episodes", "2", "--max-steps", "7"]
    done = run(*arguments, "--output-dir", "out", "--fps", "10", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["episodes"], report["steps"], report["success_rate"]) == (2, 14, None)
    assert report["max_position_error_m"] == 0.0
    assert {path.name for path in (tmp_path / "out" / "videos").iterdir()} == {"episode_000.mp4", "episode_001.mp4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "CartPole-v1", "--policy", "scripted"], "no scripted expert"),
        (["--policy", "nowhere:act"], "--policy nowhere:act"),
        (["--task", "NoSuchTask-v0"], "NoSuchTask"),
        (["--camera", "behind"], "top"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_1(tmp_path, arguments, message):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_camera_that_there_is_not_is_told_before_any_episode(tmp_path):
    done = run("--camera", "behind", "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "behind" in done.stderr
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("output_dir", ["a_file", "a_file/out", "made"])
def test_a_bad_output_folder_is_told_before_anything_is_started(tmp_path, output_dir):
    (tmp_path / "a_file").touch()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "videos").touch()
    done = run("--task", "Pendulum-v1", "--output-dir", output_dir, cwd=tmp_path)
    assert done.returncode == 1
    assert f"--output-dir {output_dir}" in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr
    assert "starting" not in done.stderr


def test_the_help_teaches(tmp_path):
    shown = run("--help", cwd=tmp_path).stdout
    for flag in (
        "--episodes",
        "--host",
        "--ssh-port",
        "--identity",
        "--via",
        "--reuse",
        "--policy",
        "--max-steps",
        "--quality",
    ):
        assert flag in shown


def _is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("stage", ["captures/episode_001.part", "videos/.episode_000.tmp.mp4"])
def test_ctrl_c_leaves_whole_files_only(tmp_path, stage):
    episodes = "50" if stage.endswith("part") else "1"
    command = [sys.executable, str(EXAMPLE), "--episodes", episodes, "--output-dir", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    with process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out" / stage).exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(timeout=30) == 130, said
    assert "interrupted; what was finished is whole" in said
    assert "Traceback" not in said
    for name in names(tmp_path / "out"):
        assert name.endswith((".hdf5", ".mp4", ".png"))
        assert "tmp" not in name
        if name.endswith(".hdf5"):
            assert len(read_episode(tmp_path / "out" / name)) > 0
    wait_until(lambda: not _is_alive(process.pid), "the processes of the group are gone")
