"""The flags of examples/remote_replay.py that choose what runs and in what it is replayed."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PENDULUM = ["--task", "InvertedPendulum-v5", "--episodes", "1", "--max-steps", "5"]


@pytest.fixture(scope="module")
def main() -> Iterator[Callable[..., int]]:
    """The example's own `main`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
        yield importlib.import_module("remote_replay").main


@pytest.fixture
def refused(
    main: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Run the example in a folder of its own, where it must end with status 1; what it says, in one line."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGINT)

    def refused(*arguments: str) -> str:
        assert main(["--output-dir", "out", *arguments]) == 1
        return " ".join(capsys.readouterr().err.split())

    yield refused
    signal.signal(signal.SIGINT, before)


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
    refused: Callable[..., str], arguments: list[str], message: str
) -> None:
    told = refused(*arguments)
    assert message in told
    assert "starting" not in told


def test_an_interpreter_without_isaac_lab_is_told_with_the_flag_that_names_another(
    refused: Callable[..., str],
) -> None:
    assert "has no isaaclab; pass --python" in refused("--task", "isaac-pick")


def test_a_replay_that_is_farther_off_than_allowed_fails_and_leaves_its_report(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    model = tmp_path / "shifted.xml"
    model.write_text(shifted_pendulum())
    assert "is off by 0.05 m" in refused(*PENDULUM, "--model", str(model), "--max-error-m", "0.001")
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
    command = [sys.executable, str(EXAMPLES / "remote_replay.py"), "--help"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=True).stdout
    for word in ("isaac-pick", "--simulator", "--upload", "--model", "--mapping", "--max-error-m", "--view"):
        assert word in shown
