"""Rendering processes: what travels to them."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from replay_scene import ARM, simulate

from remote_env.replay import replay
from remote_env.state import SceneDescription, Shape

RENAMED = ARM.replace('name="lift"', 'name="j1"').replace('body name="arm"', 'body name="robot"')
WITHOUT_BOX = ARM[: ARM.index('<body name="box"')] + "</worldbody></mujoco>"
NAMES = {"version": 1, "entities": {"arm": {"model": "robot", "joints": {"lift": "j1"}, "links": {"arm": "robot"}}}}
SIZE = {"width": 64, "height": 48}


@pytest.fixture(scope="module")
def states():
    return simulate(mujoco.MjModel.from_xml_string(ARM), 5)


def test_a_mapping_travels_to_the_processes(states):
    model = mujoco.MjModel.from_xml_string(RENAMED)
    plain = list(replay(states, mujoco.MjModel.from_xml_string(ARM), processes=1, **SIZE))
    for processes in (1, 2):
        show = replay(states, model, mapping=NAMES, processes=processes, **SIZE)
        np.testing.assert_array_equal(list(show), plain)
        assert show.fidelity.max_position_error_m == 0.0


def test_what_a_capture_adds_to_a_model_travels_too(states, tmp_path):
    path = tmp_path / "arm.xml"
    path.write_text(WITHOUT_BOX)
    box = Shape("box", "box", "box", (0.1, 0.1, 0.1), rgba=(1.0, 0.0, 0.0, 1.0))
    told = {"mapping": {"version": 1, "add_missing": True}, "description": SceneDescription((box,))}
    shown = {processes: replay(states, path, processes=processes, **told, **SIZE) for processes in (1, 2)}
    frames = {processes: list(show) for processes, show in shown.items()}
    np.testing.assert_array_equal(frames[1], frames[2])
    red = frames[2][3][..., 0].astype(int) - frames[2][3][..., 1]
    assert (red > 60).any()
    assert shown[2].fidelity.max_position_error_m == 0.0


def test_any_frames_in_any_order(states):
    model = mujoco.MjModel.from_xml_string(ARM)
    every = list(replay(states, model, **SIZE))
    some = list(replay(states, model, processes=2, **SIZE).frames([4, 0, 4]))
    np.testing.assert_array_equal(some, [every[4], every[0], every[4]])
    assert list(replay(states, model, processes=2, **SIZE).frames([])) == []
