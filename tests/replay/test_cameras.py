"""Where a replay is looked at from."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from replay_scene import ARM, simulate

from remote_env.errors import ConfigError
from remote_env.replay import Replayer, View, replay
from remote_env.replay.cameras import aim, grid, tile


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(ARM)


@pytest.fixture(scope="module")
def states(model):
    return simulate(model)


def seen(model, state, camera: str | None) -> np.ndarray:
    with Replayer(model, width=64, height=48, camera=camera) as replayer:
        replayer.set_state(state)
        return replayer.render()


def red_centre(frame: np.ndarray) -> np.ndarray:
    """Where the red box is: (x, y) as parts of the width and the height."""
    red = frame[..., 0].astype(int) - frame[..., 1] > 60
    assert red.any()
    return np.argwhere(red).mean(axis=0)[::-1] / frame.shape[1::-1]


def test_a_camera_that_tracks_keeps_its_body_in_the_middle(model, states):
    box = [np.abs(red_centre(seen(model, state, "track:box")) - 0.5).max() for state in states]
    assert max(box) < 0.1
    front = [red_centre(seen(model, state, "front")) for state in states]
    assert np.linalg.norm(front[0] - front[-1]) > 0.05  # it does move


def test_free_cameras_stand_where_they_are_told(model, states):
    below = aim(model, "free:azimuth=10,elevation=-60,distance=3.5,lookat=0.1/-0.2/0.3").camera
    assert (below.azimuth, below.elevation, below.distance) == (10, -60, 3.5)
    assert below.lookat.tolist() == [0.1, -0.2, 0.3]
    default = aim(model, "free").camera
    assert default.distance == pytest.approx(1.5 * model.stat.extent)
    near, far = (seen(model, states[0], f"free:distance={distance}") for distance in (2, 6))
    assert (near != far).any()
    tracking = aim(model, "track:box:distance=1,azimuth=0")
    assert (tracking.camera.distance, tracking.body) == (1, model.body("box").id)


def test_none_takes_the_first_camera_or_the_free_one(model, states):
    assert (seen(model, states[3], None) == seen(model, states[3], "front")).all()
    ball = '<mujoco><worldbody><body name="a"><geom size="1"/></body></worldbody></mujoco>'
    bare = mujoco.MjModel.from_xml_string(ball)
    assert aim(bare).camera.type == mujoco.mjtCamera.mjCAMERA_FREE


def test_the_model_s_own_names_come_first():
    named = ARM.replace('name="front"', 'name="free"').replace('name="above"', 'name="track:box"')
    model = mujoco.MjModel.from_xml_string(named)
    assert aim(model, "free").camera.fixedcamid == 0
    assert aim(model, "track:box").camera.fixedcamid == 1


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ("behind", "its cameras are front, above"),
        ("track:", "its cameras are"),
        ("track:cube", "bodies are world, arm, hand, box"),
        ("track:box:lookat=0/0/0", "leave lookat out"),
        ("free:zoom=2", "azimuth=DEG"),
        ("free:distance=0", "above 0"),
        ("free:azimuth=nan", "azimuth=DEG"),
        ("free:lookat=1/2", "X/Y/Z"),
        ("free:azimuth=left", "azimuth=DEG"),
    ],
)
def test_what_is_no_camera_is_refused_with_what_there_is(model, camera, message):
    with pytest.raises(ConfigError, match=message):
        aim(model, camera)


def test_unknown_cameras_are_refused_before_anything_is_rendered(model, states):
    with pytest.raises(ConfigError, match="front, above"):
        replay(states, model, camera=["front", "behind"])
    with pytest.raises(ConfigError, match="names none"):
        replay(states, model, camera=[])


def test_several_cameras_are_tiled_from_the_top_left(model, states):
    cameras = ["front", "above", "track:box"]
    (whole,) = replay(states[5:6], model, width=64, height=48, camera=cameras)
    assert whole.shape == View(64, 48, cameras).shape == (96, 128, 3)
    tiles = [whole[:48, :64], whole[:48, 64:], whole[48:, :64]]
    for frame, camera in zip(tiles, cameras, strict=True):
        np.testing.assert_array_equal(frame, seen(model, states[5], camera))
    assert not whole[48:, 64:].any()


def test_tiles_are_the_same_from_any_process(model, states):
    here = replay(states, model, width=64, height=48, camera=("track:box", "free"), processes=1)
    there = replay(states, model, width=64, height=48, camera=("track:box", "free"), processes=2)
    assert all((one == other).all() for one, other in zip(here, there, strict=True))


def test_grids_are_about_square():
    assert [grid(count) for count in (1, 2, 3, 4, 5, 7, 9)] == [(1, 1), (1, 2), (2, 2), (2, 2), (2, 3), (3, 3), (3, 3)]
    frames = [np.full((2, 3, 3), index, np.uint8) for index in range(2)]
    assert tile(frames).shape == (2, 6, 3)
    assert tile(frames[:1]) is frames[0]
