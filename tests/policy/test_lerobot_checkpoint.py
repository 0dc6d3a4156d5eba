"""LeRobot pretrained folders where LeRobot is not installed; loading them is tested with LeRobot itself."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from remote_env.errors import ConfigError
from remote_env.policy.lerobot_policy import describe
from remote_env.policy.loading import load_policy
from remote_env.policy.policy import Feature

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "lerobot_recorded.json").read_text())
HAS_LEROBOT = importlib.util.find_spec("lerobot") is not None
without_lerobot = pytest.mark.skipif(HAS_LEROBOT, reason="LeRobot is installed here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(RECORDED["config.json"]))
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def change(folder: Path, **fields: object) -> None:
    (folder / "config.json").write_text(json.dumps(RECORDED["config.json"] | fields))


def test_a_config_that_lerobot_wrote_says_what_the_policy_takes(folder):
    metadata = describe(folder)
    assert metadata.observation == {
        "observation.state": Feature("state", (14,)),
        "observation.images.top": Feature("image", (96, 128, 3), "uint8", layout="HWC"),
    }
    assert (metadata.action_size, metadata.chunk_size, metadata.extra["lerobot"]) == (14, 20, "act")


def test_policies_that_read_take_the_task(folder):
    change(folder, type="smolvla")
    assert describe(folder).observation["task"].kind == "text"


@pytest.mark.parametrize(
    "fields",
    [
        {"input_features": None},
        {"output_features": {}},
        {"output_features": {"action": {"type": "ACTION", "shape": [2, 2]}}},
        {"input_features": {"observation.state": {"type": "STATE", "shape": [2, 2]}}},
        {"input_features": {"x": {"type": "WEIRD", "shape": [2]}}},
    ],
    ids=str,
)
def test_a_config_that_says_something_else_is_an_error(folder, fields):
    change(folder, **fields)
    with pytest.raises(ConfigError, match=r"is no LeRobot policy's config\.json"):
        describe(folder)


def test_a_folder_without_config_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        describe(tmp_path)


@without_lerobot
def test_without_lerobot_the_error_says_what_to_install(folder):
    with pytest.raises(ConfigError, match=r"pip install 'lerobot>=0\.4'"):
        load_policy(folder)


def test_policies_of_several_observations_are_refused(folder):
    change(folder, n_obs_steps=2)
    with pytest.raises(ConfigError, match="from 2 observations at once"):
        load_policy(folder)


def test_a_dataset_id_is_refused(folder):
    with pytest.raises(ConfigError, match="normalises by itself"):
        load_policy(folder, dataset_id="other")
