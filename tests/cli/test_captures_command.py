"""`remote-env inspect`, `repair` and `import` on real files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from command import run

from remote_env.cli import main
from remote_env.record import Recorder, read_episode
from remote_env.state import EntityLayout, SceneDescription, SceneLayout, SceneState, Shape

LAYOUT = SceneLayout((EntityLayout("arm", ("elbow", "wrist"), ("base",)), EntityLayout("box")), "test 1")
DESCRIPTION = SceneDescription((Shape("box", "box", "box", (0.1, 0.1, 0.1)),), "<mujoco/>", ("meshes were left out",))


def state_at(step: int, native: bytes | None = None) -> SceneState:
    values = np.zeros(LAYOUT.size)
    values[0] = step / 50.0
    for start in (4, 21, LAYOUT.offsets["box"] + 3):
        values[start] = 1.0
    return SceneState(LAYOUT, values, native)


def record(folder: Path, *, finish: bool = True, description: SceneDescription | None = DESCRIPTION) -> Path:
    image = {"pixels": {"top": np.zeros((4, 6, 3), np.uint8)}}
    recorder = Recorder(folder, rate_hz=50.0, task="T-v0", env_kwargs={"a": 1}, host="box")
    recorder.start(image, state=state_at(0, b"1234"), seed=7, description=description)
    for step in range(1, 5):
        info = {"is_success": step == 4}
        recorder.record(np.zeros(3, np.float32), image, 0.5, step == 4, False, info, state=state_at(step, b"1234"))
    if finish:
        return recorder.finish()
    recorder.flush()
    recorder._part.close()
    return folder / "episode_000.part"


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("captures"))


# ---- inspect


def test_a_capture_is_told_in_words(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(capture)]) == 0
    printed, complaints = capsys.readouterr()
    assert complaints == ""
    for line in (
        str(capture),
        "  schema        remote-env/episode version 1",
        "  task          T-v0 (a=1)",
        "  steps         4 at 50 Hz, 0.08 s; terminated, reward 2, success",
        "  seed          7",
        "  actions       (4, 3) float32",
        "  observations  qpos (4, 2) float64, qvel (4, 2) float64",
        "  images        top (4, 4, 6, 3) uint8",
        "  scene         38 numbers a state, from test 1",
        "    arm         2 joints: elbow, wrist; 1 links: base",
        "    box         root only",
        "  native        4 B a state that restore the simulator exactly",
        "  description   primitives of box 1; an MJCF of 9 B; meshes were left out",
    ):
        assert line in printed.splitlines()
    assert " on box\n" in printed
    assert "problem" not in printed


def test_everything_is_told_as_json(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(capture.parent), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["scene"]["entities"]["arm"] == {"joints": ["elbow", "wrist"], "links": ["base"]}
    assert facts["description"] == {"shapes": {"box": 1}, "mjcf_bytes": 9, "notes": ["meshes were left out"]}
    assert (facts["complete"], facts["terminated"], facts["truncated"], facts["success"]) == (True, True, False, True)
    assert facts["bytes_per_step"] * 4 == pytest.approx(capture.stat().st_size, abs=4)
    assert facts["images"] == {"top": {"shape": [4, 4, 6, 3], "dtype": "uint8"}}
    assert facts["problem"] == ""


def test_what_is_wrong_is_told_with_the_rest(tmp_path: Path, capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = Path(shutil.copy(capture, tmp_path))
    with h5py.File(damaged, "r+") as root:
        values = root["scene/values"][()]
        values[2, 14] = np.nan
        del root["scene/values"]
        root["scene/values"] = values
    (tmp_path / "torn.hdf5").write_bytes(capture.read_bytes()[:2000])
    assert main(["inspect", str(damaged), str(tmp_path / "torn.hdf5"), str(tmp_path / "none.hdf5")]) == 1
    printed = capsys.readouterr().out
    assert "the scene state in row 2 is not finite: the position of joint 'elbow' of 'arm' is nan" in printed
    assert "  steps         4 at 50 Hz" in printed
    assert "torn.hdf5 is damaged" in printed
    assert "there is no capture" in printed


def test_names_that_a_capture_holds_cannot_write_to_a_terminal(
    tmp_path: Path, capture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = Path(shutil.copy(capture, tmp_path))
    with h5py.File(odd, "r+") as root:
        root.attrs["task"] = "\x1b]0;title\x07evil"
    assert main(["inspect", str(odd)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_recording_that_broke_off_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = record(tmp_path, finish=False)
    part.write_bytes(part.read_bytes()[:-5])
    assert main(["inspect", str(part)]) == 0
    printed = capsys.readouterr().out
    assert "  steps         3 at 50 Hz, 0.06 s; not ended by the environment, reward 1.5, no success" in printed
    assert " bytes of a torn last record" in printed
    assert "  images        top (3, 4, 6, 3) uint8" in printed


# ---- repair


def test_parts_become_captures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = record(tmp_path, finish=False)
    part.write_bytes(part.read_bytes()[:-5])
    (tmp_path / "episode_001.part").write_bytes(b"garbage")
    assert main(["repair", str(tmp_path)]) == 1
    printed, complaints = capsys.readouterr()
    assert printed.startswith(f"{part} -> episode_000.hdf5: 3 steps; ")
    assert printed.endswith(" bytes of a torn last record were dropped\n")
    assert "episode_001.part is not a recording in progress" in complaints
    assert len(read_episode(tmp_path / "episode_000.hdf5")) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode_000.hdf5", "episode_001.part"]


def test_nothing_to_repair_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", str(tmp_path)]) == 1
    assert "nothing is to be repaired" in capsys.readouterr().err


def test_a_recording_in_progress_is_not_taken_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Recorder(tmp_path, rate_hz=50.0) as recorder:
        recorder.start(None, state=state_at(0))
        recorder.record(np.zeros(1), None, 0.0, False, False, state=state_at(1))
        recorder.flush()
        done = run("repair", tmp_path / "episode_000.part")
        assert (done.returncode, done.stdout) == (1, "")
        assert "episode_000.part is being recorded" in done.stderr
        recorder.record(np.zeros(1), None, 0.0, False, False, state=state_at(2))
        assert len(read_episode(recorder.finish())) == 2


# ---- import


def nested(step: int) -> dict[str, object]:
    body = {"pos": [0.0, 0.0, 0.1 * step], "rot": [1.0, 0.0, 0.0, 0.0], "vel": [0.0] * 3, "ang_vel": [0.0] * 3}
    return {
        "objects": {"cube": body},
        "robots": {"franka": {**body, "dof_pos": {"j1": 0.1 * step}, "dof_vel": {"j1": 0.0}}},
    }


def test_nested_dictionaries_become_a_capture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "demo.json", tmp_path / "new" / "demo.hdf5"
    source.write_text(json.dumps([nested(step) for step in range(6)]))
    assert main(["import", str(source), "-o", str(out), "--rate-hz", "25", "--task", "close_box"]) == 0
    printed, _ = capsys.readouterr()
    assert "  steps         5 at 25 Hz, 0.20 s" in printed
    assert "  task          close_box" in printed
    episode = read_episode(out)
    assert [entity.name for entity in episode.layout.entities] == ["franka", "cube"]
    assert episode.states[5]["cube"].root_pose[2] == pytest.approx(0.5)
    assert main(["import", str(source), "-o", str(out), "--rate-hz", "25"]) == 1
    assert "is there already; give another name, or --force" in capsys.readouterr().err
    assert main(["import", str(source), "-o", str(out), "--rate-hz", "50", "--force"]) == 0
    assert read_episode(out).info.rate_hz == 50.0


@pytest.mark.parametrize(
    ("text", "words", "complaint"),
    [
        ("[]", ["--rate-hz", "25"], "demo.json"),
        ("{", ["--rate-hz", "25"], "demo.json"),
        (json.dumps([nested(0), nested(1)]), [], "rate"),
    ],
)
def test_what_cannot_be_imported_leaves_nothing(
    tmp_path: Path, text: str, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo.json").write_text(text)
    assert main(["import", str(tmp_path / "demo.json"), "-o", str(tmp_path / "out.hdf5"), *words]) == 1
    assert complaint in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_an_import_goes_into_an_hdf5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "demo.json", "-o", str(tmp_path / "out.h5"), "--rate-hz", "25"]) == 1
    assert "ends with .hdf5" in capsys.readouterr().err
