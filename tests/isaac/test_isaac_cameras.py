"""Images that Newton renders, as observations and as frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import START_TIMEOUT_S
from gymnasium import spaces

from remote_env import RemoteEnv

TASK = f"{Path(__file__).parent / 'isaac_tasks.py'}:SeenEnv"


def test_images_cross_as_they_are_observed_and_as_frames(isaac_python: str) -> None:
    with RemoteEnv(
        env=TASK,
        env_kwargs={"enable_cameras": True, "observation": "all", "camera": "camera"},
        simulator="isaaclab",
        render_mode="rgb_array",
        python=isaac_python,
        start_timeout_s=START_TIMEOUT_S,
        step_timeout_s=START_TIMEOUT_S,
    ) as env:
        observation, _ = env.reset(seed=0)
        space = env.observation_space
        assert isinstance(space, spaces.Dict)
        assert space["policy"] == spaces.Box(0, 255, (48, 64, 3), np.uint8)
        assert space.contains(observation)
        observation, *_ = env.step(np.zeros(2, np.float32))
        assert space.contains(observation)
        assert observation["policy"].std() > 5, "a picture of something"
        frame = env.render()
        np.testing.assert_array_equal(frame, observation["policy"])
        middle = observation["depth"][20:28, 28:36, 0]
        np.testing.assert_allclose(middle, 0.95, atol=0.1)  # the front of the nearer block
