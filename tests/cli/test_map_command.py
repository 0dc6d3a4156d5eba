"""`remote-env map`, on the golden capture of the Isaac Lab arm and on models that fit it more or less."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from remote_env import cli
from remote_env.record import Recorder

ROOT = Path(__file__).resolve().parents[2]
CAPTURE = ROOT / "tests" / "data" / "isaac_pick.hdf5"
PICK = ROOT / "examples" / "isaac" / "pick.xml"
MAPPING = ROOT / "examples" / "isaac" / "mapping.yaml"


def run(capsys, *words: object) -> tuple[int, str, str]:
    status = cli.main(["map", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_model_with_the_capture_s_own_names_is_settled_and_fits(capsys, tmp_path):
    written = tmp_path / "mapping.yaml"
    status, output, _ = run(capsys, CAPTURE, "capture", "-o", written)
    assert status == 0
    assert "every name is settled; check it: remote-env map" in output
    status, output, _ = run(capsys, CAPTURE, "capture", "--check", written)
    assert status == 0
    assert "184 states" in output


def test_guesses_are_shown_and_written_to_be_completed(capsys, tmp_path):
    written = tmp_path / "mapping.yaml"
    status, output, _ = run(capsys, CAPTURE, PICK, "-o", written)
    assert status == 1
    lines = [line.split() for line in output.splitlines()]
    assert ["robot/shoulder_pan_joint", "pan", "guess,", "0.70", "alike"] in lines
    assert ["robot", "arm", "guess,", "the", "only", "one", "left"] in lines
    assert ["robot/elbow_joint", "?", "a", "joint", "that", "nothing", "is", "like"] in lines
    assert "; free in the model: bend, twist, left_opening, right_opening\n" in written.read_text()
    assert "only in the model: arm, box" in output
    assert f"complete {written}" in output
    status, _, error = run(capsys, CAPTURE, PICK, "--check", written)
    assert status == 1
    assert "only in the capture: robot, cube" in error
    status, _, error = run(capsys, CAPTURE, PICK, "-o", written)
    assert status == 1
    assert "exists; --force writes over it" in error
    assert run(capsys, CAPTURE, PICK, "-o", written, "--force")[0] == 1


def test_a_mapping_that_fits_is_told_with_its_errors(capsys, tmp_path):
    status, output, _ = run(capsys, CAPTURE, PICK, "--check", MAPPING)
    assert status == 0
    assert "fits: 184 states" in output
    assert "largest position error 1." in output
    reason = "links: # poses"
    ignoring = tmp_path / "mapping.yaml"
    text = (
        MAPPING.read_text()
        .replace("      wrist_link: wrist\n", "")
        .replace(f"    {reason}", f'    ignore_links: {{wrist_link: "not drawn"}}\n    {reason}')
    )
    ignoring.write_text(text)
    status, output, _ = run(capsys, CAPTURE, PICK, "--check", ignoring)
    assert status == 0
    assert "left out: robot/wrist_link: not drawn" in output


def test_one_wrong_sign_is_seen(capsys, tmp_path):
    wrong = tmp_path / "mapping.yaml"
    wrong.write_text(MAPPING.read_text().replace("bend, sign: -1", "bend, sign: 1"))
    _, output, _ = run(capsys, CAPTURE, PICK, "--check", wrong)
    position = float(output.split("largest position error ")[1].split()[0])
    assert position > 0.1
    assert "the names fit, the poses do not" in output
    assert "the poses do not" not in run(capsys, CAPTURE, PICK, "--check", MAPPING)[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((CAPTURE, "gone.xml"), "there is no model file 'gone.xml'"),
        (("gone.hdf5", PICK), "gone.hdf5"),
        ((CAPTURE, PICK, "--check", "gone.yaml"), "gone.yaml: there is no mapping to read"),
        ((CAPTURE, PICK, "--check", MAPPING, "-o", "x.yaml"), "give one of them"),
    ],
)
def test_what_is_not_there_is_named(capsys, words, said):
    status, output, error = run(capsys, *words)
    assert (status, output) == (1, "")
    assert said in error


def test_a_capture_without_states_is_refused(capsys, tmp_path):
    with Recorder(tmp_path, rate_hz=50.0) as recorder:
        recorder.start({"agent_pos": np.zeros(2)}, {})
        recorder.record(np.zeros(2), {"agent_pos": np.zeros(2)}, 0.0, True, False, {})
        recorder.finish()
    status, _, error = run(capsys, tmp_path / "episode_000.hdf5", PICK)
    assert status == 1
    assert "holds no scene states" in error


def test_the_example_s_mapping_is_complete(capsys, tmp_path):
    """A copy elsewhere works as well: nothing in it is relative to its place."""
    shutil.copy(MAPPING, tmp_path / "copy.yaml")
    status, output, _ = run(capsys, CAPTURE, PICK, "--check", tmp_path / "copy.yaml")
    assert status == 0
    assert "not compared" not in output


def test_names_that_would_steer_a_terminal_or_break_out_of_a_comment_do_neither(capsys, tmp_path):
    evil, capture, written = (
        "\x1b]0;title\x07[red]\nadd_missing: true",
        tmp_path / "evil.hdf5",
        tmp_path / "mapping.yaml",
    )
    shutil.copy(CAPTURE, capture)
    with h5py.File(capture, "r+") as file:
        layout = json.loads(file["scene"].attrs["layout"])
        layout["entities"][0]["joints"][0] = evil
        layout["entities"][1]["name"] = evil
        file["scene"].attrs["layout"] = json.dumps(layout)
    status, output, error = run(capsys, capture, "capture", "-o", written)
    assert status == 1
    assert "\x1b" not in output + error
    assert "[red]" in output
    assert "add_missing" not in yaml.safe_load(written.read_text())
