"""What a caller may get wrong: each a typed error that says what to do, and the session stays usable."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from remote_env import RemoteEnv
from remote_env.errors import ConfigError, InputError, StartError, TaskError
from remote_env.protocol.task import TaskSpec
from remote_env.session.actions import compile_action_check

TASKS = "tasks_for_tests.misbehaving"
HUGE = np.finfo(np.float32).max


@pytest.fixture(scope="module")
def vector() -> Iterator[RemoteEnv]:
    with RemoteEnv(env=f"{TASKS}:OnDemand") as env:
        yield env


@pytest.fixture(scope="module")
def nested() -> Iterator[RemoteEnv]:
    with RemoteEnv(env=f"{TASKS}:Nested") as env:
        yield env


class TorchLike:
    """Turns itself into an array, as a tensor does, and cannot cross all the same."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.zeros(2, np.float32)


class OnTheGpu:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (np.zeros(3, np.float32), r"float32 \(3,\); the task takes float32 \(2,\)"),
        (np.zeros((2, 1), np.float32), r"\(2, 1\)"),
        (np.zeros((), np.float32), r"float32 \(\)"),
        (np.zeros(2, complex), "complex128"),
        (np.zeros(2, bool), "bool"),
        (np.array(["a", "b"]), "<U1"),
        (np.array([None, 1]), "object"),
        (np.array([np.nan, 0], np.float32), r"not finite: nan at index \[0\]"),
        (np.array([0, -np.inf], np.float32), r"not finite: -inf at index \[1\]"),
        (np.array([0, np.inf]), r"not finite: inf at index \[1\]"),
        ([0.0, float("nan")], r"not finite: nan at index \[1\]"),
        ([1.0, [2.0]], "is a list that is no array"),
        (None, r"object \(\)"),
        ("left", "<U4"),
        ({"x": 1}, "object"),
        (3.0, r"float64 \(\)"),
        (object(), "object"),
        (TorchLike(), "TorchLike.*cannot cross"),
        (OnTheGpu(), "OnTheGpu that is no array.*cuda"),
    ],
)
def test_bad_vectors(vector: RemoteEnv, action: Any, text: str) -> None:
    vector.reset()
    steps = vector.call("total_steps")
    with pytest.raises(InputError, match=text):
        vector.step(action)
    assert vector.call("total_steps") == steps
    vector.step(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    "action",
    [
        np.array([5, -7], np.float32),  # beyond the bounds: the task's to judge
        np.array([0.25, 0.5]),
        np.array([1, 2]),
        [1.0, 2.0],
        (1, 2),
        np.array([0.25, 0.5], ">f4"),
        np.array([[0.25, 9], [0.5, 9]], np.float32)[:, 0],
        np.array([HUGE, HUGE], np.float32),
        np.array([1e200, -1e200]),
        np.array([6e4, 6e4], np.float16),
        np.array([0.25, 0.5], np.longdouble),
    ],
    ids=str,
)
def test_unusual_vectors_arrive_as_they_are(vector: RemoteEnv, action: Any) -> None:
    vector.reset()
    if isinstance(action, np.ndarray) and action.dtype == np.longdouble:
        with pytest.raises(InputError, match="cannot cross"):
            vector.step(action)
        return
    observation = vector.step(action)[0]
    with np.errstate(over="ignore"):
        assert observation[0] == float(np.sum(action))


@pytest.mark.parametrize("action", [0.0, 1.5, "1", None, np.array([1]), np.array(1.0), [1], np.float32(1), {}, (0,)])
def test_bad_choices(cartpole: RemoteEnv, action: Any) -> None:
    cartpole.reset()
    with pytest.raises(InputError, match=r"the task takes one integer of Discrete\(2\)"):
        cartpole.step(action)
    cartpole.step(1)


@pytest.mark.parametrize("action", [1, True, np.int64(1), np.uint8(1), np.array(1)])
def test_good_choices(cartpole: RemoteEnv, action: Any) -> None:
    cartpole.reset(seed=4)
    local = gymnasium.make("CartPole-v1", disable_env_checker=True)
    local.reset(seed=4)
    assert cartpole.step(action)[0].tobytes() == local.step(action)[0].tobytes()
    local.close()


def test_choices_out_of_range_are_the_task_s_to_judge(cartpole: RemoteEnv) -> None:
    cartpole.reset()
    for action in (2, -1, 10**30):
        with pytest.raises(TaskError, match="AssertionError"):
            cartpole.step(action)
    cartpole.step(1)


@pytest.mark.parametrize(
    ("action", "text"),
    [
        ({"kind": 1}, r"has \['kind'\]; the task takes a dict with the keys \['aim', 'kind'\]"),
        ({"kind": 1, "aim": np.zeros(2, np.float32), "more": 0}, "more"),
        ({"kind": 1.0, "aim": np.zeros(2, np.float32)}, r"action\['kind'\] is a float"),
        ({"kind": 1, "aim": np.zeros(3, np.float32)}, r"action\['aim'\] is float32 \(3,\)"),
        ({"kind": 1, "aim": np.array([0, np.nan], np.float32)}, r"action\['aim'\] is not finite: nan at index \[1\]"),
        ((1, np.zeros(2, np.float32)), "a tuple"),
    ],
)
def test_bad_dicts(nested: RemoteEnv, action: Any, text: str) -> None:
    nested.reset()
    with pytest.raises(InputError, match=text):
        nested.step(action)
    nested.step({"kind": np.int64(1), "aim": np.zeros(2, np.float32)})
    nested.step({"aim": np.zeros(2, np.float32), "kind": 0})  # another order is no fault


def test_checks_of_every_space() -> None:
    check = compile_action_check(spaces.Tuple((spaces.MultiBinary(2), spaces.MultiDiscrete([3, 3]), spaces.Text(3))))
    check((np.array([0, 1], np.int8), [1, 2], "abc"))
    for bad in ((np.zeros(2), [1, 2], "a"), ([0, 1], [1, 2]), ([0, 1], ["a", "b"], "a"), 3):
        with pytest.raises(InputError):
            check(bad)
    image = compile_action_check(spaces.Box(0, 255, (2,), np.uint8))
    image(np.zeros(2, np.uint8))
    with pytest.raises(InputError, match="float64"):
        image(np.zeros(2))


# Resets


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lock": object()}, r"\['lock'\] is an object"),
        ({"when": {1, 2}}, "sorted list"),
        ({"deep": [{"f": lambda: 0}]}, r"\['deep'\]\[0\]\['f'\]"),
        ({"text": "\ud800"}, "surrogates"),
    ],
)
def test_options_that_cannot_cross(cartpole: RemoteEnv, options: Any, text: str) -> None:
    cartpole.reset(seed=0)
    with pytest.raises(InputError, match=text):
        cartpole.reset(options=options)
    cartpole.step(0)  # the episode goes on


def test_calls_before_the_first_reset() -> None:
    with RemoteEnv(env=f"{TASKS}:OnDemand") as env:
        for early in (lambda: env.step(np.zeros(2, np.float32)), env.render, env.get_state):
            with pytest.raises(InputError, match=r"call reset\(\) before"):
                early()
        env.reset()


# What to run


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "my_task.py").write_text(
        "import gymnasium\ndef make_pole(**kwargs):\n    return gymnasium.make('CartPole-v1', **kwargs)\nbroken = 1\n"
    )
    with RemoteEnv(env=f"{tmp_path}/my_task.py:make_pole") as env:
        assert env.remote_spec["id"] == "CartPole-v1"
    with RemoteEnv(env="my_task:make_pole", upload=[tmp_path]) as env:
        assert env.remote_spec["id"] == "CartPole-v1"
    for name, why in (("nothing", "has no 'nothing'"), ("broken", "broken' names 1; it must be a function")):
        with pytest.raises(ConfigError, match=why):
            RemoteEnv(env=f"{tmp_path}/my_task.py:{name}").start()


def test_a_class_in_a_file_may_use_its_own_module(tmp_path: Path) -> None:
    (tmp_path / "dataclass_task.py").write_text(
        "from __future__ import annotations\nimport dataclasses, gymnasium\n"
        "@dataclasses.dataclass\nclass Size:\n    width: int = 3\n"
        "def make_env(): Size(); return gymnasium.make('CartPole-v1')\n"
    )
    with RemoteEnv(env=f"{tmp_path}/dataclass_task.py:make_env") as env:
        env.reset()


def test_callables_travel() -> None:
    gravity = 3.5

    def make(**kwargs: Any) -> Any:
        env = gymnasium.make("CartPole-v1", **kwargs)
        env.unwrapped.gravity = gravity
        env.unwrapped.remote_calls = ("gravity",)
        return env

    for factory in (make, lambda **kwargs: make(**kwargs)):
        with RemoteEnv(env=factory, env_kwargs={"sutton_barto_reward": True}) as env:
            assert env.call("gravity") == 3.5
    assert "make" in repr(RemoteEnv(env=make))


def test_a_callable_that_cannot_be_pickled() -> None:
    import threading

    lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"cannot be pickled.*upload="):
        RemoteEnv(env=lambda: lock).start()


def test_a_callable_of_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = TaskSpec.to_plain
    monkeypatch.setattr(TaskSpec, "to_plain", lambda self: {**plain(self), "pickled_by": "3.9"})
    with pytest.raises(ConfigError, match=r"pickled by Python 3\.9.*pass python="):
        RemoteEnv(env=lambda: gymnasium.make("CartPole-v1")).start()


def test_a_callable_that_raises() -> None:
    def make() -> Any:
        raise ValueError("no floor")

    with pytest.raises(TaskError, match="ValueError: no floor"):
        RemoteEnv(env=make).start()


def test_a_folder_that_is_not_there() -> None:
    from remote_env import LocalFolder

    env = RemoteEnv(env=f"{TASKS}:OnDemand", env_kwargs={"init": LocalFolder("/no/such/folder")})
    with pytest.raises(ConfigError, match="there is no /no/such/folder"):
        env.start()


@pytest.mark.parametrize("host", ["tcp://", "tcp://box", "tcp://:", "tcp://box:http", "tcp://box:99999"])
def test_bad_addresses(host: str) -> None:
    with pytest.raises(ConfigError, match=r"tcp://127\.0\.0\.1:8888"):
        RemoteEnv(host).start()


def other_python() -> str:
    """An interpreter of another minor version, without packages."""
    for path in sorted(Path("~/.pyenv/versions").expanduser().glob("3.1[0-9]*/bin/python3")):
        if not path.parent.parent.name.startswith(f"3.{sys.version_info[1]}."):
            return str(path)
    pytest.skip("no other interpreter here")


def test_another_interpreter_does_not_get_our_packages() -> None:
    python = other_python()
    with pytest.raises(StartError, match=rf"not installed in {python}\d*(\.\d+)?: numpy.*pass python="):
        RemoteEnv(env="CartPole-v1", python=python).start()
