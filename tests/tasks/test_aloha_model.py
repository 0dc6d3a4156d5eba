"""Where the ALOHA model files are found, and what is said when they are not."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from remote_env.errors import ConfigError
from remote_env.tasks.aloha import AlohaEnv
from remote_env.tasks.aloha_model import aloha_model_dir, aloha_model_path, load_model


def test_a_folder_of_ones_own_serves_the_same_task(tmp_path: Path) -> None:
    folder = tmp_path / "model files"
    shutil.copytree(aloha_model_dir(), folder)
    env, other = AlohaEnv(model_dir=folder), AlohaEnv()
    assert env.model_path == aloha_model_path("transfer_cube", folder) == folder / other.model_path.name
    np.testing.assert_array_equal(env.reset(seed=0)[0], other.reset(seed=0)[0])


def test_a_missing_gym_aloha_is_a_config_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'remote-env\[aloha\]'.*model_dir"):
        AlohaEnv()


def test_a_folder_without_meshes_is_a_config_error(tmp_path: Path) -> None:
    for file in aloha_model_dir().glob("*.xml"):
        shutil.copy(file, tmp_path)
    with pytest.raises(ConfigError, match="cannot load"):
        load_model(aloha_model_path("insertion", tmp_path))


def test_another_model_under_the_same_name_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "bimanual_viperx_transfer_cube.xml").write_text(
        "<mujoco><worldbody><camera name='top'/></worldbody></mujoco>"
    )
    with pytest.raises(ConfigError, match="gym-aloha's transfer_cube model"):
        AlohaEnv(model_dir=tmp_path)
