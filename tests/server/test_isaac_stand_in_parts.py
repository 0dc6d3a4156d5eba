"""The parts of the Isaac Lab backend that need no Isaac Lab: options, spaces, extras, names, the program's flags."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest
from gymnasium import spaces

from remote_env.errors import ConfigError, InputError
from remote_env.server.isaac.extras import leaves, plain_extras, success_of, without
from remote_env.server.isaac.mjcf import own_names, rename
from remote_env.server.isaac.observations import check_action, choose_groups, nan_parts, observed_space
from remote_env.server.isaac.options import Options, apply_overrides, present_device
from remote_env.server.isaac.shapes import EntityPrims

ROOT = Path(__file__).parents[2]
BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"num_envs": 4}, r"no keyword argument 'num_envs'; how many .* Known are device, headless"),
        ({"device": 0}, "device=0 is a int; the isaaclab backend takes str"),
        ({"seed": True}, "seed=True is a bool; the isaaclab backend takes int or None"),
        ({"arguments": "--x"}, "takes list or tuple"),
    ],
)
def test_options_that_are_none_are_refused(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Options.parse(kwargs)


def test_overrides_go_by_dotted_path_into_objects_and_dicts() -> None:
    cfg = SimpleNamespace(
        sim=SimpleNamespace(dt=0.01, gravity=(0, 0, -9.81)), actions={"arm": SimpleNamespace(scale=1)}
    )
    apply_overrides(cfg, {"sim.dt": 0.005, "sim.gravity": [0, 0, 0], "actions.arm.scale": 2})
    assert (cfg.sim.dt, cfg.sim.gravity, cfg.actions["arm"].scale) == (0.005, (0, 0, 0), 2)
    with pytest.raises(ConfigError, match=r"actions \(dict\) has no 'leg'; it has arm"):
        apply_overrides(cfg, {"actions.leg.scale": 2})


def test_what_is_observed_counts_where_it_is_not_what_was_declared(capsys: pytest.CaptureFixture[str]) -> None:
    observation = {"policy": np.zeros((3, 2), np.float32), "picture": np.zeros((3, 4, 5, 3), np.uint8)}
    space = observed_space(spaces.Dict(policy=BOX, picture=spaces.Box(-np.inf, np.inf, (4, 5, 3))), observation)
    assert space == spaces.Dict(policy=BOX, picture=spaces.Box(0, 255, (4, 5, 3), np.uint8))
    assert "picture: declared as" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"groups \['picture', 'policy'\]"):
        choose_groups(observation, "critic")


@pytest.mark.parametrize("num_envs", [None, 3])
def test_actions_become_rows_of_the_space_s_dtype(num_envs: int | None) -> None:
    given = [[0.5, 2.0]] * (num_envs or 1)
    rows = check_action(given if num_envs else given[0], BOX, num_envs)
    assert (rows.dtype, rows.shape) == (np.float32, (num_envs or 1, 2))
    np.testing.assert_array_equal(rows[0], [0.5, 2.0])  # unclipped
    with pytest.raises(InputError, match="this task takes"):
        check_action([0.5], BOX, num_envs)
    with pytest.raises(InputError, match="this task takes"):
        check_action(["a", "b"], BOX, num_envs)


def test_discrete_actions_get_a_column() -> None:
    assert check_action(1, spaces.Discrete(3), None).shape == (1, 1)
    assert check_action([1, 2], spaces.Discrete(3), 2).shape == (2, 1)


def test_nan_is_found_and_infinity_left_alone() -> None:
    depth = np.full((2, 3), np.inf, np.float32)
    assert nan_parts({"depth": depth, "count": np.zeros((2, 1), np.int64)}, np.zeros(2)) == {}
    depth[1, 0] = np.nan
    found = nan_parts({"depth": depth}, np.array([np.nan, 0.0]))
    np.testing.assert_array_equal(found["observation/depth"], [False, True])
    np.testing.assert_array_equal(found["reward"], [True, False])


def test_extras_become_infos() -> None:
    extras = {
        "log": {"mean": np.array(1.5), "flag": np.array(True)},
        "each": np.array([3]),
        "rows": np.array([[1, 2]]),
        "words": ["a", "b"],
        "note": None,
        "task": object(),
    }
    left_out: set[str] = set()
    info = plain_extras(extras, 1, single=True, left_out=left_out)
    assert info["log"] == {"mean": 1.5, "flag": True}
    assert (info["each"], info["rows"].tolist(), info["words"], info["note"]) == (3, [1, 2], ["a", "b"], None)
    assert left_out == {"task"}
    assert plain_extras(extras, 1, single=False, left_out=left_out)["each"].tolist() == [3]
    count = plain_extras({"count": np.array(2**53 + 1)}, 1, single=True, left_out=left_out)["count"]
    assert (type(count), count) == (int, 2**53 + 1)


def test_success_is_of_each_environment_or_not_told() -> None:
    assert success_of({"success": np.array([0.0, 1.0])}, 2).tolist() == [False, True]
    assert success_of({"success": 0.37}, 2) is None, "a rate of them all"
    assert success_of({"success": 1.0}, None) is True
    assert success_of({"success": {"lift": True}}, None) is None
    assert success_of({"log": {}}, None) is None


def test_what_extras_still_hold_of_a_step_is_none_of_a_resets() -> None:
    old = {"log": {"a": object()}, "x": object()}
    before = leaves(old)
    old["log"]["b"] = 1  # type: ignore[index]
    assert without(old, before) == {"log": {"b": 1}}


def test_newtons_names_become_the_scenes_where_they_are_unique() -> None:
    def prims(entity: str) -> EntityPrims:
        bodies = {
            link: SimpleNamespace(GetPath=lambda link=link: f"/World/envs/env_0/{entity}/{link}")
            for link in ("base", "hand")
        }
        return EntityPrims(entity, bodies, {f"{entity}_joint": f"/World/envs/env_0/{entity}/{entity}_joint"})

    names = own_names([prims("left"), prims("right")], {"left": "base", "right": "base"})
    assert names["_World_envs_env_0_left_base"] == "left"
    assert names["_World_envs_env_0_left_hand"] == "left/hand", "the right one has a hand, too"
    assert names["_World_envs_env_0_right_right_joint"] == "right_joint"
    text = """<mujoco><worldbody><geom type="plane" size="1 1 1"/>
      <body name="_World_envs_env_0_left_base" pos="11 2 3"><freejoint name="_World_envs_env_0_left_base_free_joint"/>
      <geom size="0.1"/></body></worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(rename(text, names, (10.0, 0.0, 0.0)))
    np.testing.assert_allclose(model.body("left").pos, [1, 2, 3])
    np.testing.assert_allclose(model.geom(0).pos, [-10, 0, 0])
    assert model.joint(0).name == "left_free_joint"


def test_the_programs_flags_make_a_task() -> None:
    spec = importlib.util.spec_from_file_location("isaac_task_server", ROOT / "servers" / "isaac_task_server.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    flags = ["--task", "my:Env", "--num-envs", "8", "--device", "cuda:0", "--no-headless", "--set", "sim.dt=0.01"]
    task = program.make_task(program.parse_arguments([*flags, "--set", "name=word", "--", "--livestream", "2"]))
    assert (task.env, task.simulator, task.num_envs) == ("my:Env", "isaaclab", 8)
    assert task.kwargs["cfg"] == {"sim.dt": 0.01, "name": "word"}
    assert (task.kwargs["device"], task.kwargs["headless"]) == ("cuda:0", False)
    assert task.kwargs["arguments"] == ["--livestream", "2"]


def test_a_task_without_a_device_gets_the_gpu_if_there_is_one(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert present_device(tmp_path / "gpus") == "cpu"
    (tmp_path / "gpus" / "0000:65:00.0").mkdir(parents=True)
    assert present_device(tmp_path / "gpus") == "cuda:0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert present_device(tmp_path / "gpus") == "cpu"
