"""What an evaluation says when names do not tell which observation is which feature."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote_env.cli import main

pytestmark = pytest.mark.usefixtures("fork_server")
POLICY = """
from remote_env.policy import Feature, Policy, PolicyMetadata


class Wide(Policy):
    metadata = PolicyMetadata(
        name="wide", observation={"state": Feature("state", (7,))}, action_names=("push",), chunk_size=4
    )

    def infer(self, observation, *, episode_ids):
        raise AssertionError("nothing fits it")
"""


def evaluate(folder: Path, *flags: str) -> int:
    (folder / "wide.py").write_text(POLICY)
    words = ["-m", f"{folder}/wide.py:Wide", "-e", "CartPole-v1", "-o", str(folder / "results"), "--num_envs", "1"]
    return main(["eval", *words, *flags])


def test_it_says_which_file_takes_the_mapping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path) != 0
    said = capsys.readouterr().err
    assert "say which is which, as in" in said
    assert "(in a YAML file for --mapping, whose sections are 'observation:' and 'action:')" in said


def test_a_file_without_its_sections_is_told_which_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("state: {from: observation}\n")
    assert evaluate(tmp_path, "--mapping", str(mapping)) != 0
    assert "has no setting 'state'. There are: action, observation" in capsys.readouterr().err
