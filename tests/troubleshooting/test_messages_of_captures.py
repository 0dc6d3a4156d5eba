"""What is told when an episode is recorded wrongly, when a file of one is damaged, and when others' are imported."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import mujoco
import numpy as np
import pytest
from full_disk import file_size_limit
from quotes import produces
from replay_scene import ARM, record, simulate

from remote_env.cli import main
from remote_env.record import Recorder, read_episode, repair_part
from remote_env.record.metasim import read_metasim
from remote_env.state import SceneState

OBSERVATION = {"agent_pos": np.zeros(2), "agent_vel": np.zeros(2)}
ACTION = np.zeros(2)


@pytest.fixture(scope="module")
def states() -> list[SceneState]:
    return simulate(mujoco.MjModel.from_xml_string(ARM), 3)


@pytest.fixture(scope="module")
def whole(states: list[SceneState], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("captures"), states)


@pytest.fixture
def capture(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copy(whole, tmp_path))


@pytest.fixture
def recorder(tmp_path: Path, states: list[SceneState]) -> Iterator[Recorder]:
    """In the middle of an episode."""
    recorder = Recorder(tmp_path / "captures", rate_hz=50.0)
    recorder.start(OBSERVATION, state=states[0])
    recorder.record(ACTION, OBSERVATION, 0.0, False, False, state=states[1])
    yield recorder
    recorder.abandon()


# Recording


@produces("InputError: rate_hz=…; give the task's steps per simulated second, such as …")
def test_a_rate_that_is_none(tmp_path: Path) -> None:
    Recorder(tmp_path, rate_hz=0.0)


@produces("CaptureError: the folder … for captures cannot be made: …; give another")
def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Recorder(tmp_path / "file" / "captures", rate_hz=50.0)


@produces("InputError: no episode is open; call start() with what reset() returned")
def test_a_step_before_the_start(tmp_path: Path) -> None:
    with Recorder(tmp_path, rate_hz=50.0) as recorder:
        recorder.record(ACTION, OBSERVATION, 0.0, False, False)


@produces("InputError: … is still open; finish() or abandon() it before start()")
def test_a_start_within_an_episode(recorder: Recorder, states: list[SceneState]) -> None:
    recorder.start(OBSERVATION, state=states[0])


@produces("InputError: … has shape …; this episode began with …")
def test_an_action_of_another_length(recorder: Recorder, states: list[SceneState]) -> None:
    recorder.record(np.zeros(3), OBSERVATION, 0.0, False, False, state=states[2])


@produces("InputError: the scene state's layout changed within the episode; …")
def test_a_step_without_its_state(recorder: Recorder) -> None:
    recorder.record(ACTION, OBSERVATION, 0.0, False, False)


@produces("CaptureError: … cannot grow by the … bytes of this record (…); …")
def test_a_disk_that_is_full_while_recording(recorder: Recorder, states: list[SceneState]) -> None:
    with file_size_limit(4000):
        for _ in range(100):
            recorder.record(ACTION, OBSERVATION, 0.0, False, False, state=states[2])
            recorder.flush()


@produces("CaptureError: … needs … bytes and the disk did not take them (…); …")
def test_a_disk_that_is_full_at_the_end(recorder: Recorder) -> None:
    recorder.flush()
    with file_size_limit(4000):
        recorder.finish()


# Damaged files


def changed(capture: Path, change: Callable[[Any], None]) -> None:
    with h5py.File(capture, "r+") as root:
        values = root["scene/values"][()]
        change(values)
        root["scene/values"][...] = values
    read_episode(capture)


@produces("CaptureError: there is no capture …")
def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    read_episode(tmp_path / "episode_000.hdf5")


@produces("CaptureError: … is damaged or is not a capture: …")
def test_half_a_file(capture: Path) -> None:
    capture.write_bytes(capture.read_bytes()[:3000])
    read_episode(capture)


@produces("CaptureError: … is damaged: /rewards has … steps, but …")
def test_an_array_of_another_length(capture: Path) -> None:
    with h5py.File(capture, "r+") as root:
        del root["action"]
        root["action"] = np.zeros((2, 2))
    read_episode(capture)


@produces("CaptureError: …: the scene state in row … is not finite: …")
def test_a_state_that_is_no_number(capture: Path) -> None:
    changed(capture, lambda values: values.__setitem__((2, 5), np.nan))


@produces("CaptureError: …: the scene state in row … holds a quaternion of norm …, …; quaternions are wxyz with norm 1")
def test_a_quaternion_that_is_none(capture: Path) -> None:
    changed(capture, lambda values: values.__setitem__((2, slice(4, 8)), 0.0))


@produces("CaptureError: …: time runs backwards in row … of /scene/values, from … s to … s: …")
def test_time_that_runs_backwards(capture: Path) -> None:
    changed(capture, lambda values: values.__setitem__((2, 0), 0.0))


# What a crash left


@pytest.fixture
def part(recorder: Recorder) -> Path:
    """Of an episode that is being recorded."""
    recorder.flush()
    return next(recorder.directory.glob("*.part"))


@produces("CaptureError: … is being recorded by a process that runs; …")
def test_a_part_that_grows(part: Path) -> None:
    repair_part(part)


@produces("CaptureError: … holds no whole record, not even the episode's start; nothing can be recovered")
def test_a_part_without_a_start(part: Path) -> None:
    torn = part.with_name("episode_001.part")
    torn.write_bytes(part.read_bytes()[:40])
    repair_part(torn)


@produces("CaptureError: … is not a recording in progress: …")
def test_a_part_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "episode_000.part").write_bytes(b"PK" + bytes(100))
    repair_part(tmp_path / "episode_000.part")


@produces("error: there is no .part in …; nothing is to be repaired")
def test_nothing_to_repair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    return printed(["repair", str(tmp_path)], capsys)


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that fails."""
    assert main(words) != 0
    return capsys.readouterr().err


# Imports


def written(folder: Path, held: Any) -> Path:
    path = folder / "episode.json"
    path.write_text(json.dumps(held))
    return path


def nested(rot: list[float], dof_pos: Any) -> list[Any]:
    """Two states of one robot, as MetaSim nests them."""
    return [{"robots": {"arm": {"pos": [0, 0, 0], "rot": rot, "dof_pos": dof_pos}}, "objects": {}}] * 2


@produces("CaptureError: … is a pickle, and reading one runs whatever its author put into it. …")
def test_a_pickle_of_states(tmp_path: Path) -> None:
    (tmp_path / "episode.pkl").write_bytes(pickle.dumps({}))
    read_metasim(tmp_path / "episode.pkl", rate_hz=50.0)


@produces("CaptureError: … is of no format that is read here; these are: …")
def test_a_format_that_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "episode.csv").touch()
    read_metasim(tmp_path / "episode.csv", rate_hz=50.0)


@produces("CaptureError: …: every rotation in state 0 is (0, 0, 0, 1), of …")
def test_rotations_whose_order_is_not_told(tmp_path: Path) -> None:
    read_metasim(written(tmp_path, nested([0, 0, 0, 1], {"elbow": 0.0})), rate_hz=50.0)


@produces("CaptureError: …: …/dof_pos is … numbers without joint names; …")
def test_joints_without_names(tmp_path: Path) -> None:
    read_metasim(written(tmp_path, nested([1, 0, 0, 0], [0.0] * 9)), rate_hz=50.0)


@produces("InputError: rate_hz is None; say how many steps a simulated second has, such as …")
def test_states_without_a_rate(tmp_path: Path) -> None:
    read_metasim(written(tmp_path, nested([1, 0, 0, 0], {"elbow": 0.0})))


@produces("CaptureError: …: it has no states (…)")
def test_actions_alone(tmp_path: Path) -> None:
    held = {"arm": [{"init_state": nested([1, 0, 0, 0], {"elbow": 0.0})[0], "actions": [], "states": None}]}
    read_metasim(written(tmp_path, held), rate_hz=50.0)


@produces("error: --out … is there already; give another name, or --force")
def test_an_import_onto_a_file(capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    held = written(tmp_path, nested([1, 0, 0, 0], {"elbow": 0.0}))
    return printed(["import", str(held), "--out", str(capture)], capsys)
