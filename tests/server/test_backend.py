"""A task that is no Gymnasium environment, served by a Backend of the user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from remote_env import Backend, RemoteEnv
from remote_env.errors import ConfigError, InputError, Unsupported
from remote_env.server.backend import load_backend
from remote_env.state import EntityLayout, SceneLayout, SceneState

COUNTER = "tasks_for_tests.counter_backend:CounterBackend"


def test_a_simulator_says_how_long_its_steps_may_take_to_clients_that_do_not() -> None:
    with RemoteEnv(env="anything", simulator=COUNTER, env_kwargs={"size": 3}) as env:
        assert env._step_timeout_s == 700.0
    with RemoteEnv(env="anything", simulator=COUNTER, env_kwargs={"size": 3}, step_timeout_s=5.0) as env:
        assert env._step_timeout_s == 5.0


@pytest.mark.parametrize("capture_state", [False, True])
def test_all_of_it_over_the_wire(isolated_home: Path, capture_state: bool) -> None:
    mark = isolated_home / "mark"
    kwargs = {"size": 3, "mark": str(mark)}
    with RemoteEnv(env="anything", simulator=COUNTER, env_kwargs=kwargs, capture_state=capture_state) as env:
        observation, info = env.reset(seed=4, options={"a": 1})
        assert observation.tolist() == [0.0]
        assert info == {"made": ["anything", kwargs], "seed": 4, "options": {"a": 1}}
        assert env.step(7)[0].tolist() == [7.0]
        assert env.step(8)[:4] == (np.array([15.0]), 8.0, False, False)
        assert env.remote_spec == {"id": "Counter"}  # what cannot cross is dropped
        assert env.metadata == {"render_modes": ["ansi"]}
        assert env.render_mode == "ansi"
        assert env.render() == "count 15"
        assert env.call("double", 21) == 42
        state = env.get_state()
        assert state["ball"].root_pose[2] == 15.0
        assert env.get_state(native=True).native == b"15"
        state.values[3] = 2.0
        env.set_state(state)
        assert env.get_state()["ball"].root_pose[2] == 2.0
        assert env.step(1)[0].tolist() == [3.0]
        other = SceneLayout((EntityLayout("cube"),))
        with pytest.raises(Unsupported, match="another scene"):
            env.set_state(SceneState(other, np.zeros(other.size)))
        with pytest.raises(InputError, match=r"open: \['double', 'scene_description'\]"):
            env.call("reset")
        assert env.step(9)[2] is False
        assert env.step(9)[2] is True
    assert mark.read_text() == "closed"
    mark.unlink()


def test_what_a_backend_does_not_offer_is_unsupported() -> None:
    class Least(Backend):
        def make(self, env: object, kwargs: object) -> None: ...
        def reset(self, seed: object, options: object) -> tuple[object, dict[str, object]]:
            return 0, {}

        def step(self, action: object) -> tuple[object, ...]:
            return 0, 0.0, False, False, {}

        def close(self) -> None: ...

    least = Least()
    for ask in (
        lambda: least.state(native=False),
        lambda: least.restore(None),
        least.render,
        lambda: least.call("x", (), {}),
    ):
        with pytest.raises(Unsupported, match="Least"):
            ask()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mujoco", r"unknown simulator 'mujoco'; allowed: gymnasium.*module:Class"),
        ("no_such_module:Class", "cannot import 'no_such_module'"),
        ("tasks_for_tests.counter_backend:Nothing", "has no 'Nothing'"),
        ("tasks_for_tests.counter_backend:NotABackend", "must be a subclass"),
        ("os:sep", "must be a subclass"),
    ],
)
def test_names_that_are_no_backend(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_backend(name)
