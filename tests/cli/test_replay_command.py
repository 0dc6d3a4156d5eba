"""`remote-env replay` on real captures, in a real MuJoCo model."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest
from leak_check import isolated_home, marked_processes, wait_until

sys.path.insert(0, str(Path(__file__).parent))

from command import TIMEOUT_S, start

from remote_env.cli import main
from remote_env.cli.local_models import known_model
from remote_env.cli.replay import find_captures, unique_names
from remote_env.errors import ConfigError
from remote_env.record import Recorder
from remote_env.state import SceneDescription
from remote_env.tasks.mujoco_scene import MujocoScene

__all__ = ["isolated_home"]

ARM = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="front" pos="0 -2.5 1" xyaxes="1 0 0 0 0.3 1"/>
    <geom type="plane" size="2 2 0.1"/>
    <body name="arm" pos="0.3 0 0.6">
      <joint name="lift" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 {length} 0 0" size="0.04"/>
      <body name="hand" pos="{length} 0 0"><geom type="box" size="0.05 0.05 0.05"/></body>
    </body>
    <body name="box" pos="-0.4 0 0.5"><freejoint/><geom type="box" size="0.1 0.1 0.1" rgba="1 0 0 1"/></body>
  </worldbody>
</mujoco>
"""
QUICK = ("--no-video", "--no-images")
SMALL = ("--size", "64x48", "--processes", "1")


def record(folder: Path, *, steps: int = 5, task: str = "", description: SceneDescription | None = None) -> Path:
    """Another episode of the arm falling."""
    model = mujoco.MjModel.from_xml_string(ARM.format(length=0.3))
    scene, data = MujocoScene(model), mujoco.MjData(model)
    with Recorder(folder, rate_hz=50.0, task=task) as recorder:
        recorder.start(None, state=scene.read(data), seed=3, description=description)
        for _ in range(steps):
            mujoco.mj_step(model, data, 10)
            recorder.record(np.zeros(1), None, 1.0, False, False, state=scene.read(data))
        return recorder.finish()


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captures")
    record(folder)
    record(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("arm.xml").write_text(ARM.format(length=0.3))
    Path("long.xml").write_text(ARM.format(length=0.32))
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_every_capture_of_a_folder_leaves_a_folder_of_its_own(
    here: Path, captures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(captures), "--model", "arm.xml", *SMALL, "--frames", "-o", "out"]) == 0
    printed, complaints = capsys.readouterr()
    assert complaints == ""
    assert [line.split()[:6] for line in printed.splitlines()[1:3]] == [
        ["episode_000", "6", "0", "m", "0", "rad"],
        ["episode_001", "6", "0", "m", "0", "rad"],
    ]
    made = files(here / "out" / "episode_001")
    assert {"episode_001.mp4", "episode_001_sheet.png", "fidelity.json", "fidelity.png"} <= set(made)
    assert "frames/frame_000000.png" in made
    assert files(here / "out" / "episode_000") == [name.replace("_001", "_000") for name in made]
    assert json.loads((here / "out/episode_000/fidelity.json").read_text())["max_position_error_m"] == 0.0


def test_an_error_beyond_the_bound_names_the_worst_link_and_is_a_status(
    here: Path, captures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture, words = str(captures / "episode_000.hdf5"), ["--model", "long.xml", *QUICK, "-o", "out"]
    assert main(["replay", capture, *words, "--max-error-m", "0.05", "--max-error-rad", "0"]) == 0
    capsys.readouterr()
    assert main(["replay", capture, *words, "--max-error-m", "0.001"]) == 1
    printed, complaints = capsys.readouterr()
    assert "0.02 m" in printed
    assert "episode_000 is not shown as it was captured: arm/hand is off by 0.02 m at state " in complaints
    assert files(here / "out") == ["episode_000/fidelity.json", "episode_000/fidelity.png"]  # to look at why


def test_a_bad_capture_stops_no_other(here: Path, captures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(captures, here / "mixed")
    (folder / "episode_000.hdf5").write_bytes((folder / "episode_000.hdf5").read_bytes()[:3000])
    assert main(["replay", str(folder), "none.hdf5", "--model", "arm.xml", *QUICK, "-o", "out"]) == 1
    printed, complaints = capsys.readouterr()
    assert "episode_001" in printed
    assert "episode_000" not in printed
    damaged, missing = complaints.splitlines()
    assert damaged.startswith(f"error: {folder / 'episode_000.hdf5'}: ")
    assert "damaged" in damaged
    assert "there is no capture none.hdf5" in missing


def test_what_is_finished_is_skipped_when_resumed(
    here: Path, captures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["replay", str(captures), "--model", "arm.xml", *SMALL, "--no-images", "-o", "out", "--resume"]
    assert main(words) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.mp4")}
    Path("out/episode_001/episode_001.mp4").unlink()
    assert main(words) == 0
    after = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.mp4")}
    kept, made = Path("out/episode_000/episode_000.mp4"), Path("out/episode_001/episode_001.mp4")
    assert after[kept] == before[kept]
    assert after[made] != before[made]


def test_a_mapping_says_which_name_is_which(here: Path, captures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.xml").write_text(ARM.format(length=0.3).replace('"lift"', '"j1"').replace('"hand"', '"palm"'))
    Path("mapping.yaml").write_text("version: 1\nentities: {arm: {joints: {lift: j1}, links: {hand: palm}}}\n")
    words = ["replay", str(captures / "episode_000.hdf5"), "--model", "other.xml", *QUICK, "-o", "out"]
    assert main(words) == 1
    assert "lift" in capsys.readouterr().err
    assert main([*words, "--mapping", "mapping.yaml", "--max-error-m", "1e-9"]) == 0


def test_a_capture_that_describes_its_scene_needs_no_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record(here / "own", description=SceneDescription(mjcf=ARM.format(length=0.3)))
    assert main(["replay", str(path), *QUICK, "--max-error-m", "1e-9"]) == 0
    assert files(here / "replays") == ["episode_000/fidelity.json", "episode_000/fidelity.png"]


def test_a_capture_without_model_or_description_says_what_to_give(
    here: Path, captures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(captures / "episode_000.hdf5"), *QUICK]) == 1
    assert "give an MJCF of your own" in capsys.readouterr().err


def test_the_models_of_our_own_tasks_are_known() -> None:
    assert known_model("remote_env/AlohaTransferCube-v0", {}).name.endswith(".xml")
    assert known_model("Reacher-v5", {}).nq == 4
    assert known_model("Reacher-v5", {"xml_file": "other.xml"}) is None
    for task in ("", "CartPole-v1", "no/such-v0", "evil_module:Env-v0"):
        assert known_model(task, {}) is None


def test_captures_of_one_name_get_different_folders(tmp_path: Path) -> None:
    paths = [tmp_path / "a/e.hdf5", tmp_path / "b/e.hdf5", tmp_path / "c/x.hdf5", tmp_path / "a/e.hdf5"]
    assert unique_names(paths) == ["a_e_1", "b_e", "x", "a_e_2"]
    with pytest.raises(ConfigError, match=r"there is no \.hdf5 in the folder"):
        find_captures([tmp_path])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--max-error-m", "-1"], "'-1' is not a number from 0 on"),
        (["--max-error-rad", "nan"], "'nan' is not a number from 0 on"),
        (["--size", "640"], "is not a size such as 640x480"),
        (["--modle", "x"], "did you mean --model?"),
    ],
)
def test_words_of_replay_that_make_no_sense_are_refused(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["replay", "a.hdf5", *words])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_no_window_without_a_display_is_said(
    here: Path, captures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert main(["replay", str(captures), "--model", "arm.xml", "--view"]) == 1
    assert "DISPLAY" in capsys.readouterr().err


def test_ctrl_c_leaves_whole_files_and_says_so(here: Path, captures: Path) -> None:
    folder = shutil.copytree(captures, here / "captures")
    shutil.copy(record(here / "long", steps=1000), folder / "episode_002.hdf5")
    words = ("--model", "arm.xml", "--size", "320x240", "--processes", "1", "--no-images", "-o", "out")
    with start("replay", folder, *words) as process:
        try:
            wait_until(lambda: _is_writing(here / "out/episode_002"), "the third video is written", TIMEOUT_S)
            process.send_signal(signal.SIGINT)
            printed, complaints = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert process.returncode == 130
    wait_until(lambda: not marked_processes(), "no process is left")
    assert "what was finished is whole in out; go on with --resume" in complaints
    assert "episode_001" in printed
    assert not (here / "out/episode_002/episode_002.mp4").exists()
    assert "episode_000/episode_000.mp4" in files(here / "out")


def _is_writing(folder: Path) -> bool:
    return folder.is_dir() and bool(list(folder.iterdir()))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_ways_to_be_ended_leave_as_little_as_ctrl_c(
    name: str, here: Path, captures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)

    def ended(*_: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr("remote_env.cli.replay.replay_one", ended)
    assert main(["replay", str(captures), "--model", "arm.xml"]) == 128 + number
    assert "interrupted; what was finished is whole" in capsys.readouterr().err
    assert signal.getsignal(number) == before
