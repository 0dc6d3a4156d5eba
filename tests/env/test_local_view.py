"""render="local": the far scene drawn by a local model, and a mirror that follows it."""

from __future__ import annotations

import contextlib
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from leak_check import wait_until

from remote_env import RemoteEnv, RemoteVectorEnv
from remote_env.env.local_view import LocalView
from remote_env.errors import ConfigError, InputError, ReplayError, Unsupported
from remote_env.replay import Replayer
from remote_env.session import BatchStates
from remote_env.state import EntityLayout, SceneDescription, SceneLayout, SceneState, Shape
from remote_env.tasks.aloha_model import aloha_model_path

ROOT = Path(__file__).parents[2]
ALOHA = "remote_env/AlohaTransferCube-v0"
SMALL = {"width": 96, "height": 72, "quality": "fast"}
REST = np.zeros(14, np.float32)


@pytest.fixture(scope="module", autouse=True)
def opengl() -> None:
    """What the first context of a process leaves open for good is no leak of a test's."""
    with Replayer(aloha_model_path("transfer_cube"), width=8, height=8) as replayer:
        replayer.render()


def mirrors() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "mirror" in thread.name]


@pytest.fixture(scope="module")
def env(isolated_home: object) -> Iterator[RemoteEnv]:
    """For all tests of this module; what draws for it is there before the first, and gone with it."""
    with RemoteEnv(env=ALOHA, render="local", local_view=SMALL) as env:
        env.reset(seed=0)
        env.render()
        env.mirror.frame()
        yield env


def test_local_images_are_bit_equal_to_the_far_ends_own(env: RemoteEnv) -> None:
    with RemoteEnv(env=ALOHA, env_kwargs={**SMALL, "render_mode": "rgb_array"}) as far:
        far.reset(seed=3)
        env.reset(seed=3)
        for _ in range(4):
            np.testing.assert_array_equal(env.render(), far.render())
            far.step(REST)
            env.step(REST)
        assert env.render().any()


def test_it_is_an_environment_that_renders_images(env: RemoteEnv) -> None:
    env.reset(seed=0)
    assert env.render_mode == "rgb_array"
    assert env.metadata["render_modes"] == ["rgb_array"]
    assert env.metadata["render_fps"] == 50
    assert env.render().shape == (72, 96, 3)


def test_what_is_drawn_is_the_present_state_also_after_set_state(env: RemoteEnv) -> None:
    env.reset(seed=0)
    start, state = env.render(), env.get_state()
    for _ in range(10):
        env.step(REST)
    assert not np.array_equal(env.render(), start)
    env.set_state(state)
    np.testing.assert_array_equal(env.render(), start)


def test_the_mirror_follows_steps_resets_and_set_state(env: RemoteEnv) -> None:
    env.reset(seed=0)
    mirror = env.mirror
    assert env.mirror is mirror

    def shows_the_present() -> bool:
        return bool(mirror.shown) and np.array_equal(mirror.shown[0].values, env.get_state().values)

    wait_until(shows_the_present, "the state that was there before the mirror")
    for _ in range(20):
        env.step(REST)
    wait_until(shows_the_present, "the last step's state")
    np.testing.assert_array_equal(mirror.frame(), env.render())
    state = env.get_state()
    env.reset(seed=1)
    wait_until(shows_the_present, "the reset's state")
    env.set_state(state)
    wait_until(lambda: np.array_equal(mirror.shown[0].values, state.values), "the state that was set")


def test_closing_ends_the_mirror_and_what_draws() -> None:
    env = RemoteEnv(env=ALOHA, render="local", local_view=SMALL)
    env.reset(seed=0)
    assert env.mirror.frame().shape == (72, 96, 3)
    env.render()
    before = len(mirrors())
    env.close()
    env.close()
    assert len(mirrors()) == before - 1


def test_gymnasium_makes_it_and_records_it(tmp_path: Path) -> None:
    env = gymnasium.make("Remote-Aloha-v0", render="local", render_mode="rgb_array", local_view=SMALL)
    with gymnasium.wrappers.RecordVideo(env, str(tmp_path / "videos")) as recorded:
        recorded.reset(seed=0)
        recorded.step(REST)
    assert [path.name for path in tmp_path.glob("videos/*.mp4")] == ["rl-video-episode-0.mp4"]


def test_names_that_do_not_fit_are_told_at_reset_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "other.xml").write_text(
        "<mujoco><worldbody><body name='cube'><freejoint/><geom size='1'/></body></worldbody></mujoco>"
    )
    view = {"render": "local", "local_model": tmp_path / "other.xml"}
    with RemoteEnv(env=ALOHA, **view) as env, pytest.raises(ReplayError, match=r"(?s)vx300s_left.*cube"):
        env.reset(seed=0)


def view_of(**arguments: Any) -> LocalView:
    """The local view that an environment with these arguments has."""
    view = RemoteEnv(env=ALOHA, render="local", **arguments)._local
    assert view is not None
    return view


def test_a_mapping_leads_to_a_model_with_other_names(env: RemoteEnv) -> None:
    spec = mujoco.MjSpec.from_file(str(aloha_model_path("transfer_cube")))
    spec.body("box").name = "cube"
    names = {name: {"model": name} for name in ("vx300s_left", "vx300s_right")}
    mapping = {"version": 1, "entities": {**names, "box": {"model": "cube"}}}
    looks = {**SMALL, "camera": "top"}
    env.reset(seed=0)
    with contextlib.closing(view_of(local_model=spec.compile(), local_mapping=mapping, local_view=looks)) as view:
        view.begin(env.get_state(), env)
        np.testing.assert_array_equal(view.render(env.get_state(), env), env.render())


class Describing:
    """A stand-in for the environment of a task that we do not know.

    Args:
        description: what it says it looks like; None: nothing.
    """

    def __init__(self, description: SceneDescription | None) -> None:
        self.remote_spec = {"id": "Box-v0"}
        self._description = description

    def get_scene_description(self) -> SceneDescription:
        if self._description is None:
            raise Unsupported("no such method")
        return self._description


def box_state(height_m: float) -> SceneState:
    layout = SceneLayout((EntityLayout("box", (), ("box",)),), "elsewhere")
    pose = [0.0, 0.0, height_m, 1.0, 0.0, 0.0, 0.0]
    return SceneState(layout, np.array([0.0, *pose, *[0.0] * 6, *pose]))


@pytest.mark.parametrize("model", [None, "capture"])
def test_without_a_model_what_the_task_says_it_looks_like_is_drawn(model: str | None) -> None:
    shape = Shape("box", "box", "box", (0.3, 0.3, 0.3), rgba=(1.0, 0.0, 0.0, 1.0))
    source = Describing(SceneDescription((shape,)))
    arguments: dict[str, Any] = {"env": "Box-v0", "render": "local", "local_model": model, "local_view": SMALL}
    view = RemoteEnv(**arguments)._local
    assert view is not None
    with contextlib.closing(view):
        view.begin(box_state(0.5), source)
        frames = [view.render(box_state(height_m), source).astype(int) for height_m in (0.5, 1.0)]
    assert all((frame[..., 0] - frame[..., 1] > 60).sum() > 20 for frame in frames)
    assert not np.array_equal(*frames)


def test_a_task_that_does_not_say_needs_a_model() -> None:
    view = RemoteEnv(env="Box-v0", render="local")._local
    assert view is not None
    with pytest.raises(Unsupported, match=r"'Box-v0' does not say what it looks like, so .* needs local_model="):
        view.begin(box_state(0.5), Describing(None))


def test_a_task_that_has_no_states_is_told() -> None:
    with RemoteEnv(env="CartPole-v1", render="local", local_model="cartpole.xml") as env, pytest.raises(Unsupported):
        env.reset(seed=0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"render": "human"}, "'local' draws here, None leaves it to the task"),
        ({"local_model": "a.xml"}, "local_model= is of a local view: ask for that with render='local'"),
        ({"render": "local", "local_view": {"fps": 3}}, "local_view has no 'fps'; it takes width, height, camera"),
        ({"render": "local", "render_mode": "human"}, "render_mode='human': with render='local'"),
    ],
)
def test_arguments_that_contradict_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        RemoteEnv(env=ALOHA, **arguments)


def test_without_a_local_view_there_is_no_mirror() -> None:
    with pytest.raises(ConfigError, match='make the environment with render="local"'):
        _ = RemoteEnv(env=ALOHA).mirror


def test_it_can_be_pickled_and_made_again_from_its_spec() -> None:
    env = RemoteEnv(env=ALOHA, render="local", local_model="model.xml", local_view={"rate_hz": 5})
    again = pickle.loads(pickle.dumps(env))
    assert (
        again.spec.kwargs
        == env.spec.kwargs
        == {
            "env": ALOHA,
            "render": "local",
            "local_model": "model.xml",
            "local_view": {"rate_hz": 5},
        }
    )


@pytest.fixture(scope="module")
def batch(isolated_home: object) -> Iterator[RemoteVectorEnv]:
    view = {**SMALL, "env_ids": [2, 0]}
    with RemoteVectorEnv(env=ALOHA, num_envs=3, render="local", local_view=view) as batch:
        batch.reset(seed=0)
        batch.render()
        batch.mirror.frame()
        yield batch


def test_a_batch_is_drawn_and_followed_by_numbers(batch: RemoteVectorEnv, env: RemoteEnv) -> None:
    batch.reset(seed=5)
    frames, mirror = batch.render(), batch.mirror
    for number, frame in enumerate(frames):
        env.reset(seed=5 + number)
        np.testing.assert_array_equal(frame, env.render())
    batch.step(np.zeros((3, 14), np.float32))
    newest = batch.get_states()
    wait_until(lambda: np.array_equal(mirror.shown[1].values, newest[0].values), "the last step's states")
    np.testing.assert_array_equal(mirror.shown[0].values, newest[2].values)
    frames = batch.render()
    np.testing.assert_array_equal(mirror.frame(), np.hstack([frames[2], frames[0]]))
    batch.set_states([newest[1]], [2])
    wait_until(lambda: np.array_equal(mirror.shown[0].values, newest[1].values), "the state that was set")
    np.testing.assert_array_equal(mirror.shown[1].values, newest[0].values)


def test_an_environment_that_the_batch_has_not_is_told_as_it_begins(batch: RemoteVectorEnv) -> None:
    batch.reset(seed=0)
    states = batch.get_states()
    held = BatchStates(states[0].layout, np.arange(3), np.stack([state.values for state in states]))
    for env_ids in (3, [-1], []):
        view = view_of(local_view={**SMALL, "env_ids": env_ids})
        told = pytest.raises(InputError, match=r"at least one number of an environment, 0 to 2")
        with contextlib.closing(view), told:
            view.begin(held, batch)


PROGRAM = """
import numpy as np
from remote_env import RemoteEnv, RemoteVectorEnv
with RemoteEnv(env="remote_env/AlohaTransferCube-v0", render="local", local_view={"width": 64, "height": 48}) as env:
    env.reset(seed=0)
    env.mirror.frame()
    print("following", flush=True)
    while True:
        env.step(np.zeros(14, np.float32))
        if env.get_state().time_s > 5.5:
            env.reset()
"""


def test_ctrl_c_while_stepping_ends_environment_and_mirror() -> None:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", PROGRAM]
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "following\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert told.strip().endswith("KeyboardInterrupt")


def test_a_state_that_cannot_be_shown_is_told_at_the_next_reset(env: RemoteEnv) -> None:
    env.reset(seed=0)
    mirror = env.mirror
    mirror.frame()
    state = env.get_state()
    broken = SceneState(state.layout, np.full_like(state.values, np.nan))
    mirror.show(broken)
    wait_until(lambda: mirror.shown[0] is broken, "the mirror has looked at it")
    env.step(REST)  # what a step brought is never lost for it
    with pytest.raises(InputError, match="finite"):
        env.reset(seed=1)
    env.reset(seed=1)
    wait_until(lambda: np.array_equal(mirror.shown[0].values, env.get_state().values), "it goes on")
