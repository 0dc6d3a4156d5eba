"""Recorder and read_episode on real files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from full_disk import file_size_limit
from recorded import LAYOUT, names, observation_at, record_steps, recorded, state_at

from remote_env.errors import CaptureError, InputError
from remote_env.record import Episode, Recorder, Seen, background, read_episode, recover_part, repair_part
from remote_env.record.part import PartWriter
from remote_env.state import SceneState

ROOT = Path(__file__).parents[2]


def test_what_was_recorded_is_read_back(tmp_path):
    path = recorded(tmp_path, camera=True, native=True)
    assert path == tmp_path / "episode_000.hdf5"
    assert names(tmp_path) == ["episode_000.hdf5"]
    episode = read_episode(path)
    assert len(episode) == 5
    assert episode.complete
    assert episode.actions.dtype == np.float32
    assert episode.actions[:, 0].tolist() == [-1, -2, -3, -4, -5]
    assert episode.rewards.tolist() == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert episode.terminated.tolist() == [False] * 4 + [True]
    assert not episode.truncated.any()
    assert episode.infos[0] == {"start": True}
    assert episode.infos[2] == {"touching": ["right", "right"], "at": 2.0}
    assert episode.observations["qpos"][:, 0].tolist() == [0, 1, 2, 3, 4]  # before each action
    assert episode.final_observation["qpos"][0] == 5
    assert episode.observations["images/top"][3, 0, 0].tolist() == [3, 3, 3]
    assert episode.final_observation["images/top"].max() == 5
    assert episode.states == [state_at(step, native=bytes([step] * step) or None) for step in range(6)]
    info = episode.info
    assert (info.rate_hz, info.task, info.env_kwargs, info.seed, info.host) == (
        50.0,
        "T-v0",
        {"a": 1},
        7,
        "box",
    )
    assert info.versions["numpy"] == np.__version__
    assert "images/top" not in read_episode(path, images=False).observations


def test_the_layout_is_the_one_that_act_tools_read(tmp_path):
    with h5py.File(recorded(tmp_path, camera=True)) as root:
        assert root.attrs["sim"]
        assert root["/action"].shape == (5, 14)
        assert root["/observations/qpos"][2].tolist() == [2.0] * 14
        assert root["/observations/qvel"].shape == (5, 2)
        assert root["/observations/images/top"][4].shape == (4, 6, 3)
        assert root["/observations/images/top"].chunks == (1, 4, 6, 3)
        assert root["/scene/values"].shape == (6, LAYOUT.size)
        assert json.loads(root["/scene"].attrs["layout"]) == LAYOUT.to_plain()
        assert (root.attrs["rate_hz"], root.attrs["step_dt_s"], root.attrs["schema_version"]) == (50, 0.02, 1)


def test_without_states_or_dict_observations(tmp_path):
    with Recorder(tmp_path, rate_hz=10.0) as recorder:
        recorder.start(np.arange(4.0))
        recorder.record(1, np.arange(4.0) + 1, 1.0, False, True)
    episode = read_episode(tmp_path / "episode_000.hdf5")
    assert episode.actions.tolist() == [1]
    assert episode.observations["qpos"].tolist() == [[0, 1, 2, 3]]
    assert "qvel" not in episode.observations
    assert episode.states == []
    assert episode.info.seed is None


def test_joint_positions_come_from_the_scene_when_the_observation_has_none(tmp_path):
    with Recorder(tmp_path, rate_hz=10.0) as recorder:
        recorder.start({"goal": 1}, state=state_at(0))
        recorder.record([0.0], {"goal": 1}, 1.0, False, False, state=state_at(1))
    episode = read_episode(tmp_path / "episode_000.hdf5")
    assert episode.observations["qpos"].tolist() == [state_at(0)["arm"].joint_positions.tolist()]
    assert episode.observations["qvel"].tolist() == [state_at(0)["arm"].joint_velocities.tolist()]


def test_what_an_observation_means_can_be_told(tmp_path):
    def observe(observation, state):
        return Seen(qpos=observation * 2, qvel=None, images={})

    with Recorder(tmp_path, rate_hz=10.0, observe=observe) as recorder:
        recorder.start(np.ones(3))
        recorder.record([0.0], np.ones(3), 1.0, False, False)
    assert read_episode(tmp_path / "episode_000.hdf5").observations["qpos"].tolist() == [[2, 2, 2]]


def test_numbering_continues_and_never_overwrites(tmp_path):
    (tmp_path / "episode_003.part").write_bytes(b"someone else's")
    assert recorded(tmp_path).name == "episode_004.hdf5"
    assert recorded(tmp_path).name == "episode_005.hdf5"
    assert (tmp_path / "episode_003.part").read_bytes() == b"someone else's"


def test_two_recorders_in_one_folder_take_different_numbers(tmp_path):
    with Recorder(tmp_path, rate_hz=1.0) as one, Recorder(tmp_path, rate_hz=1.0) as two:
        assert one.start(np.zeros(1)) != two.start(np.zeros(1))
    assert names(tmp_path) == []  # neither had a step


def test_leaving_the_context_keeps_what_was_recorded(tmp_path):
    def interrupted_run():
        with Recorder(tmp_path, rate_hz=1.0) as recorder:
            record_steps(recorder, 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert len(read_episode(tmp_path / "episode_000.hdf5")) == 3


@pytest.mark.parametrize("name", ["a_file", "a_file/captures"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, name):
    (tmp_path / "a_file").touch()
    with pytest.raises(CaptureError, match=f"{tmp_path / name} .*cannot be made"):
        Recorder(tmp_path / name, rate_hz=50.0)


def test_a_folder_that_vanished_is_named(tmp_path):
    recorder = Recorder(tmp_path / "captures", rate_hz=50.0)
    recorder.directory.rmdir()
    with pytest.raises(CaptureError, match=f"{recorder.directory} cannot be listed"):
        recorder.start(observation_at(0))


def test_abandon_leaves_nothing(tmp_path):
    recorder = Recorder(tmp_path, rate_hz=1.0)
    record_steps(recorder, 3)
    recorder.abandon()
    recorder.abandon()
    assert names(tmp_path) == []
    assert not recorder.recording


def test_misuse_is_refused_and_the_episode_stays_usable(tmp_path):
    with pytest.raises(InputError, match="rate_hz=0"):
        Recorder(tmp_path, rate_hz=0)
    recorder = Recorder(tmp_path, rate_hz=1.0)
    with pytest.raises(InputError, match="start"):
        recorder.record([0], [0], 0, False, False)
    recorder.start({"agent_pos": np.zeros(2)}, state=state_at(0))
    with pytest.raises(InputError, match="still open"):
        recorder.start(np.zeros(2))
    with pytest.raises(InputError, match="no step yet"):
        recorder.finish()
    good = {"agent_pos": np.zeros(2)}
    recorder.record([1.0], good, 0, False, False, state=state_at(1))
    with pytest.raises(InputError, match=r"action has shape \(2,\)"):
        recorder.record([1.0, 2.0], good, 0, False, False, state=state_at(2))
    with pytest.raises(InputError, match="qpos has shape"):
        recorder.record([1.0], {"agent_pos": np.zeros(3)}, 0, False, False, state=state_at(2))
    with pytest.raises(InputError, match="layout changed"):
        recorder.record([1.0], good, 0, False, False)
    with pytest.raises(InputError, match="dtype object"):
        recorder.record([object()], good, 0, False, False, state=state_at(2))
    recorder.record([2.0], good, 0, False, False, state=state_at(2))
    assert read_episode(recorder.finish()).actions.tolist() == [[1.0], [2.0]]


def test_an_info_that_json_cannot_hold_is_kept_as_its_marked_repr(tmp_path):
    with Recorder(tmp_path, rate_hz=1.0) as recorder:
        recorder.start([0.0], {"set": {1}, 3: (1, 2), "nan": np.nan, "flag": np.bool_(True)})
        recorder.record([0], [0.0], 0, False, False)
    info = read_episode(tmp_path / "episode_000.hdf5").infos[0]
    assert info["set"] == {"__repr__": "{1}"}
    assert info["3"] == [1, 2]
    assert np.isnan(info["nan"])
    assert info["flag"] is True


# ---- crashes


def interrupted(tmp_path: Path, steps: int = 5, **options: bool) -> Path:
    recorder = Recorder(tmp_path, rate_hz=50.0)
    record_steps(recorder, steps, **options)
    recorder.flush()
    recorder._part.close()
    return tmp_path / "episode_000.part"


def test_a_part_cut_anywhere_gives_back_its_whole_steps(tmp_path):
    part = interrupted(tmp_path, camera=True)
    data = part.read_bytes()
    whole = recover_part(part)
    assert len(whole) == 5
    assert whole.dropped_bytes == 0
    lengths = []
    for cut in range(0, len(data), 37):
        part.write_bytes(data[:cut])
        try:
            episode = recover_part(part)
        except CaptureError:
            assert not lengths  # only while not even the start is whole
            continue
        lengths.append(len(episode))
        assert len(episode.states) == len(episode) + 1 == len(episode.infos)
        assert episode.states == whole.states[: len(episode) + 1]
        assert len(episode.actions) == len(episode)
    assert sorted(set(lengths)) == [0, 1, 2, 3, 4]
    assert lengths == sorted(lengths)


def test_a_flipped_bit_ends_the_recovery_there(tmp_path):
    part = interrupted(tmp_path)
    data = bytearray(part.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    part.write_bytes(data)
    episode = recover_part(part)
    assert 0 < len(episode) < 5
    assert episode.dropped_bytes > 0


def test_repair_gives_the_file_that_finish_would_have_written(tmp_path):
    part = interrupted(tmp_path / "crashed", camera=True, native=True)
    repaired = repair_part(part)
    assert names(repaired.parent) == ["episode_000.hdf5"]
    a, b = read_episode(repaired), read_episode(recorded(tmp_path / "whole", camera=True, native=True))
    assert a.states == b.states
    assert (a.actions == b.actions).all()
    assert a.infos == b.infos
    assert (a.observations["images/top"] == b.observations["images/top"]).all()


def test_repair_after_a_crash_between_rename_and_removal_only_removes(tmp_path):
    part = interrupted(tmp_path)
    data = part.read_bytes()
    final = repair_part(part)
    before = final.read_bytes()
    part.write_bytes(data)
    assert repair_part(part).read_bytes() == before
    assert names(tmp_path) == ["episode_000.hdf5"]


@pytest.mark.parametrize("data", [b"", b"garbage" * 10, b"remote-env part 1\n", b"remote-env part 1\n\x05\0\0\0"])
def test_what_is_no_part_says_so(tmp_path, data):
    path = tmp_path / "episode_000.part"
    path.write_bytes(data)
    with pytest.raises(CaptureError, match=r"episode_000\.part"):
        recover_part(path)


KILLED = """
import sys
sys.path[:0] = [{root!r}, {tests!r}, {here!r}]
from recorded import observation_at, record_steps, state_at
from remote_env.record import Recorder
import itertools, numpy as np
with Recorder({out!r}, rate_hz=50.0, background={background}) as recorder:
    record_steps(recorder, 4)
    recorder.finish()
    recorder.start(observation_at(0), state=state_at(0))
    for step in itertools.count(1):
        recorder.record(np.zeros(14), observation_at(step), 0.0, False, False, state=state_at(step))
        if step % {flush_every} == 0:
            recorder.flush()
            print(step, flush=True)
"""


@pytest.mark.parametrize(("background", "flush_every"), [(False, 1), (True, 5)])
def test_kill_9_leaves_whole_files_and_every_step_that_the_kernel_had(tmp_path, background, flush_every):
    code = KILLED.format(
        root=str(ROOT),
        tests=str(ROOT / "tests"),
        here=str(Path(__file__).parent),
        out=str(tmp_path),
        background=background,
        flush_every=flush_every,
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    seen = 0
    with process:
        for line in process.stdout:
            seen = int(line)
            if seen == 25:
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert seen >= 25
    assert names(tmp_path) == ["episode_000.hdf5", "episode_001.part"]
    assert len(read_episode(tmp_path / "episode_000.hdf5")) == 4
    episode = read_episode(tmp_path / "episode_001.part")
    assert len(episode) >= seen
    assert not episode.complete
    assert episode.states[25] == state_at(25)


# ---- full disks


def test_a_full_disk_while_recording_keeps_the_steps_before(tmp_path):
    recorder = Recorder(tmp_path, rate_hz=50.0, background=False)
    record_steps(recorder, 5)
    part = tmp_path / "episode_000.part"
    late = (np.zeros(14), observation_at(6), 0.0, False, False)
    with (
        file_size_limit(part.stat().st_size + 100),
        pytest.raises(CaptureError, match=r"episode_000\.part cannot grow by the \d+ bytes"),
    ):
        recorder.record(*late, state=state_at(6))
    assert len(recover_part(part)) == 5
    recorder.record(*late, state=state_at(6))
    assert len(read_episode(recorder.finish())) == 6


def late_step(step: int):
    return np.zeros(14), observation_at(step), 0.0, False, False


def test_a_full_disk_is_told_by_a_later_call_and_nothing_is_lost(tmp_path):
    recorder = Recorder(tmp_path, rate_hz=50.0)
    record_steps(recorder, 5)
    recorder.flush()
    with file_size_limit((tmp_path / "episode_000.part").stat().st_size + 100):
        recorder.record(*late_step(6), state=state_at(6))  # only handed over
        for _ in range(2):
            with pytest.raises(CaptureError, match=r"episode_000\.part cannot grow by the \d+ bytes"):
                recorder.flush()
        with pytest.raises(CaptureError, match=r"episode_000\.part cannot grow"):
            recorder.finish()
        assert recorder.recording
        assert names(tmp_path) == ["episode_000.part"]
        assert len(recover_part(tmp_path / "episode_000.part")) == 5
    recorder.record(*late_step(7), state=state_at(7))
    episode = read_episode(recorder.finish())
    assert len(episode) == 7
    assert episode.states[6:] == [state_at(6), state_at(7)]
    assert names(tmp_path) == ["episode_000.hdf5"]


def test_a_full_disk_never_lets_memory_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "PENDING_BYTES", 20_000)
    recorder = Recorder(tmp_path, rate_hz=50.0)
    record_steps(recorder, 1)
    recorder.flush()
    taken = 0
    with file_size_limit((tmp_path / "episode_000.part").stat().st_size):
        for step in range(2, 200):
            try:
                recorder.record(*late_step(step), state=state_at(step))
                taken += 1
            except CaptureError:
                continue
        assert recorder._part._pending_bytes <= 20_000
    assert 1 < taken < 20
    assert len(read_episode(recorder.finish())) == 1 + taken


def test_a_disk_that_is_slower_than_the_steps_holds_them_up_and_loses_none(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "PENDING_BYTES", 10_000)
    turns = threading.Semaphore(0)
    write = PartWriter.append

    def slow(part, *record):
        assert turns.acquire(timeout=60)
        write(part, *record)

    with Recorder(tmp_path, rate_hz=50.0) as recorder:
        record_steps(recorder, 1)
        recorder.flush()
        monkeypatch.setattr(PartWriter, "append", slow)
        with ThreadPoolExecutor(1) as pool:
            recording = pool.submit(
                lambda: [recorder.record(*late_step(step), state=state_at(step)) for step in range(2, 42)]
            )
            while not recording.done():
                turns.release()
                assert recorder._part._pending_bytes <= 10_000
        recording.result()
        turns.release(100)
        assert len(read_episode(recorder.finish())) == 41


def test_a_disk_that_takes_nothing_is_told_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "STALL_S", 0.05)
    go_on = threading.Event()
    recorder = Recorder(tmp_path, rate_hz=50.0)
    record_steps(recorder, 1)
    recorder.flush()
    write = PartWriter.append
    monkeypatch.setattr(PartWriter, "append", lambda part, *record: go_on.wait(60) and write(part, *record))
    recorder.record(*late_step(2), state=state_at(2))
    with pytest.raises(CaptureError, match=r"has not taken a record of .*episode_000\.part for 0\.05 s; 1 wait"):
        recorder.finish()
    go_on.set()
    monkeypatch.setattr(background, "STALL_S", 60.0)
    assert len(read_episode(recorder.finish())) == 2


@pytest.mark.parametrize(("batch_s", "batch_bytes"), [(0.01, 1 << 30), (3600.0, 1)])
def test_steps_are_written_without_being_asked_for_after_a_while_or_when_there_are_many(
    tmp_path, monkeypatch, batch_s, batch_bytes
):
    monkeypatch.setattr(background, "BATCH_S", batch_s)
    monkeypatch.setattr(background, "BATCH_BYTES", batch_bytes)
    with Recorder(tmp_path, rate_hz=50.0) as recorder:
        record_steps(recorder, 3)
        part = recorder._part
        with part._changed:
            assert part._changed.wait_for(lambda: part._written == 3, 60)
        assert len(recover_part(tmp_path / "episode_000.part")) == 3


def test_no_call_waits_for_a_batch_to_come_together(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "BATCH_S", 3600.0)
    recorder = Recorder(tmp_path, rate_hz=50.0)
    record_steps(recorder, 2)
    recorder.flush()
    recorder.record(*late_step(3), state=state_at(3))
    assert len(read_episode(recorder.finish())) == 3
    record_steps(recorder, 2)
    recorder.abandon()
    assert names(tmp_path) == ["episode_000.hdf5"]


def test_what_is_recorded_is_a_copy(tmp_path):
    action, observation, values = np.zeros(14), {"agent_pos": np.zeros(14)}, state_at(1).values.copy()
    with Recorder(tmp_path, rate_hz=50.0) as recorder:
        recorder.start(observation, state=state_at(0))
        for step in range(50):
            action[:], observation["agent_pos"][:], values[0] = step, step + 1, 1.0 + step
            recorder.record(action, observation, 0.0, False, False, state=SceneState(LAYOUT, values))
        episode = read_episode(recorder.finish())
    assert episode.actions[:, 3].tolist() == list(range(50))
    assert episode.scene_values[1:, 0].tolist() == [1.0 + step for step in range(50)]
    assert episode.final_observation["qpos"][0] == 50


def test_a_recorder_leaves_no_thread_and_no_file_open(tmp_path):
    before = {*threading.enumerate(), *open_files()}
    for _ in range(3):
        recorded(tmp_path)
    recorder = Recorder(tmp_path, rate_hz=50.0)
    record_steps(recorder, 2)
    recorder.abandon()
    assert {*threading.enumerate(), *open_files()} <= before


def open_files() -> set[str]:
    return {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}


FORGOTTEN = """
import sys
sys.path[:0] = [{root!r}, {tests!r}, {here!r}]
from recorded import record_steps
from remote_env.record import Recorder
recorder = Recorder({out!r}, rate_hz=50.0)
record_steps(recorder, 200)
"""


def test_a_program_that_ends_without_finishing_leaves_every_step(tmp_path):
    paths = {"root": str(ROOT), "tests": str(ROOT / "tests"), "here": str(Path(__file__).parent)}
    code = FORGOTTEN.format(**paths, out=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert len(recover_part(tmp_path / "episode_000.part")) == 200


@pytest.mark.parametrize("limit", [0, 1000, 5000, 9000])
def test_a_full_disk_while_converting_leaves_nothing_half_written(tmp_path, limit):
    recorder = Recorder(tmp_path, rate_hz=50.0)
    record_steps(recorder, 5)
    recorder.flush()
    with file_size_limit(limit), pytest.raises(CaptureError, match=r"episode_000\.hdf5 needs \d+ bytes") as caught:
        recorder.finish()
    assert names(tmp_path) == ["episode_000.part"]
    assert "part is kept" in str(caught.value)
    needed = int(str(caught.value).split(" needs ")[1].split()[0])
    final = repair_part(tmp_path / "episode_000.part")
    assert needed == pytest.approx(final.stat().st_size, rel=0.3)
    assert len(read_episode(final)) == 5


def test_an_episode_has_a_length(tmp_path):
    episode = read_episode(recorded(tmp_path, 3))
    assert isinstance(episode, Episode)
    assert len(episode) == 3
