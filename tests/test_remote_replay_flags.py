"""The flags of examples/remote_replay.py that choose what runs and in what it is replayed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "remote_replay.py"
PENDULUM = ["--task", "InvertedPendulum-v5", "--episodes", "1", "--max-steps", "5"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), "--output-dir", "out", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=110)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "isaac-pick", "--simulator", "gymnasium"], "isaac-pick runs on isaaclab"),
        (["--task", "isaac-pick", "--mapping", "nowhere.yaml"], "nowhere.yaml"),
        (["--task", "isaac-pick", "--camera", "behind"], "front"),
        (["--task", "isaac-pick", "--model", "nowhere.xml"], "nowhere.xml"),
        (["--task", "isaac-pik"], "did you mean --task isaac-pick?"),
    ],
)
def test_what_is_wrong_on_this_machine_is_told_before_anything_is_started(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "starting" not in done.stderr


def test_an_interpreter_without_isaac_lab_is_told_with_the_flag_that_names_another(tmp_path: Path) -> None:
    done = run("--task", "isaac-pick", cwd=tmp_path)
    assert done.returncode == 1
    assert "has no isaaclab; pass --python" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_replay_that_is_farther_off_than_allowed_fails_and_leaves_its_report(tmp_path: Path) -> None:
    model = tmp_path / "shifted.xml"
    model.write_text(shifted_pendulum())
    done = run(*PENDULUM, "--model", str(model), "--max-error-m", "0.001", cwd=tmp_path)
    assert done.returncode == 1
    assert "is off by 0.05 m" in " ".join(done.stderr.split())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["max_position_error_m"] == pytest.approx(0.05)
    assert report["fidelity"][0]["worst_position"].endswith("pole")


def shifted_pendulum() -> str:
    """Gymnasium's own model, with its pole hinged 5 cm higher."""
    import gymnasium

    path = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "inverted_pendulum.xml"
    text = path.read_text()
    assert text.count('<body name="pole" pos="0 0 0">') == 1
    return text.replace('<body name="pole" pos="0 0 0">', '<body name="pole" pos="0 0 0.05">')


def test_the_help_teaches_isaac_lab(tmp_path: Path) -> None:
    shown = run("--help", cwd=tmp_path).stdout
    for word in ("isaac-pick", "--simulator", "--upload", "--model", "--mapping", "--max-error-m", "--view"):
        assert word in shown
