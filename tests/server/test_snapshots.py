"""Snapshots of tasks: after going back the same actions give the same transitions, to the last bit."""

from __future__ import annotations

import collections
import copy
import enum
import functools
import random
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces, wrappers

from remote_env.errors import Unsupported
from remote_env.server.gymnasium_backend import make_env
from remote_env.server.snapshots import GraphSnapshot

ROOM = 64 << 20
CLASSIC = ["CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1", "Acrobot-v1"]
TOYS = ["Blackjack-v1", "FrozenLake-v1", "CliffWalking-v1"]
MUJOCO = ["HalfCheetah-v5", "Ant-v5", "Humanoid-v5", "Reacher-v5"]
ALOHA = ["remote_env/AlohaTransferCube-v0", "remote_env/AlohaInsertion-v0"]


def assert_same(left: Any, right: Any) -> None:
    """Equal in type, shape and every bit."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (tuple, list)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        one, other = np.asarray(left), np.asarray(right)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


def run(env: Any, actions: list[Any]) -> list[Any]:
    """All transitions, and the resets after ends: what time limits, generators and physics say."""
    seen: list[Any] = []
    for action in actions:
        transition = env.step(action)
        seen.append(copy.deepcopy(transition))
        if transition[2] or transition[3]:
            seen.append(copy.deepcopy(env.reset()))
    return seen


def started(env_id: str, **kwargs: Any) -> tuple[Any, list[Any]]:
    """A task in mid-episode, as a server makes it, and actions to go on with."""
    env = make_env(env_id, kwargs)
    env.reset(seed=5)
    env.action_space.seed(7)
    actions = [env.action_space.sample() for _ in range(24)]
    run(env, actions[:6])
    return env, actions


@pytest.mark.parametrize("env_id", [*CLASSIC, *TOYS, *MUJOCO, *ALOHA])
def test_the_same_actions_go_the_same_way_again(env_id):
    env, actions = started(env_id)
    snapshot = GraphSnapshot(env, ROOM)
    first = run(env, actions)
    for seed in (None, 99):
        env.reset(seed=seed)
        run(env, actions[:3])
        snapshot.restore()
        assert_same(run(env, actions), first)
    assert 0 < snapshot.size_bytes < ROOM
    env.close()


def test_snapshots_go_in_any_order():
    env, actions = started("Ant-v5")
    taken, followed = [], []
    for action in actions[:5]:
        taken.append(GraphSnapshot(env, ROOM))
        followed.append(copy.deepcopy(env.step(action)))
    for index in (3, 0, 4, 4, 1):
        taken[index].restore()
        assert_same(env.step(actions[index]), followed[index])
    env.close()


def test_time_limits_and_random_numbers_go_back():
    env, actions = started("Pendulum-v1", max_episode_steps=9)
    snapshot = GraphSnapshot(env, ROOM)
    flags = [transition[3] for transition in (env.step(action) for action in actions[:3])]
    assert flags == [False, False, True]
    later = env.reset()[0]
    snapshot.restore()
    flags = [transition[3] for transition in (env.step(action) for action in actions[:3])]
    assert flags == [False, False, True]
    assert_same(env.reset()[0], later)
    env.close()


def test_wrappers_go_back_with_the_task():
    env: Any = make_env("Pendulum-v1", {"max_episode_steps": 9})
    env = wrappers.RecordEpisodeStatistics(wrappers.RescaleAction(env, np.float32(-1), np.float32(1)))
    env = wrappers.NormalizeReward(wrappers.NormalizeObservation(env))
    env = wrappers.TransformReward(wrappers.FrameStackObservation(env, 3), lambda reward: 2 * reward)
    env = wrappers.StickyAction(env, 0.3)
    env.reset(seed=1)
    env.action_space.seed(2)
    actions = [env.action_space.sample() for _ in range(25)]
    run(env, actions[:4])
    snapshot = GraphSnapshot(env, ROOM)
    first = [each[:4] for each in run(env, actions)]  # infos tell how long an episode took, too
    snapshot.restore()
    assert_same([each[:4] for each in run(env, actions)], first)


def test_a_changed_model_goes_back():
    env, actions = started("remote_env/AlohaTransferCube-v0")
    task = env.unwrapped
    snapshot = GraphSnapshot(env, ROOM)
    first = run(env, actions[:4])
    task.model.body_mass[3] += 1.0
    task.model.opt.gravity[2] = -1.0
    task.model.opt.viscosity = 3.0
    assert not np.array_equal(run(env, actions[:4])[-1][0], first[-1][0])
    snapshot.restore()
    assert task.model.opt.viscosity == 0.0
    assert_same(run(env, actions[:4]), first)
    env.close()


class Colour(enum.Enum):
    RED = 1


class Slotted:
    __slots__ = ("__hidden", "late", "value")

    def __init__(self) -> None:
        self.value, self.__hidden = [1], 1

    def grow(self) -> int:
        self.value.append(len(self.value))
        self.__hidden += 1
        return self.__hidden


TABLE = np.arange(6.0).reshape(3, 2)


class Everything(gymnasium.Env[Any, Any]):
    """A task that keeps its state in every kind of place there is."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.buffer = np.zeros(4)
        self.head = self.buffer[:2]  # a view: it must stay one
        self.alias = self.buffer
        self.goal = TABLE[0]
        self.queue: collections.deque[int] = collections.deque([1, 2], maxlen=3)
        self.counts: collections.Counter[str] = collections.Counter()
        self.seen = {0}
        self.nested = {"a": [np.zeros(1), (np.zeros(1), [0])]}
        self.old = random.Random(3)
        self.legacy = np.random.RandomState(4)
        self.noise = spaces.Dict({"n": spaces.Box(0, 1, (2,))})
        self.raw = bytearray(b"ab")
        self.objects = np.full(2, None, object)
        self.objects[:] = [[1], [2, 3]]
        self.slotted = Slotted()
        self.colour = Colour.RED
        self.itself = self
        self.count = self.make_counter()
        self.handle = functools.partial(self.grow, amount=2)

    def make_counter(self) -> Any:
        total = 0

        def count() -> int:
            nonlocal total
            total += 1
            return total

        return count

    def grow(self, amount: int) -> None:
        self.buffer += amount

    @functools.cached_property
    def costly(self) -> list[int]:
        return []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.noise.seed(seed)
        return self.head, {}

    def step(self, action: Any) -> Any:
        self.handle()
        self.head[0] += action
        self.goal = TABLE[int(self.buffer[3]) % 3]
        self.queue.append(self.count())
        self.counts["a"] += 1
        self.seen.add(len(self.seen))
        self.nested["a"][1][1].append(1)  # type: ignore[index]
        self.nested["a"][0][0] += 1
        self.raw += b"c"
        self.objects[0].append(1)
        if not hasattr(self.slotted, "late"):
            self.slotted.late = 1
        self.extra = self.slotted.grow()
        shared = random.random(), np.random.rand()
        numbers = (
            *shared,
            self.old.random(),
            self.legacy.rand(),
            float(self.np_random.random()),
            self.noise.sample()["n"],
        )
        parts = (self.queue, self.counts, self.seen, self.nested, bytes(self.raw), self.objects[0], self.extra)
        told = {"told": repr((*parts, self.goal, self.alias is self.buffer, numbers, self.slotted.value))}
        return self.head, 0.0, False, False, told


def test_every_kind_of_place_goes_back():
    env = Everything()
    env.reset(seed=1)
    env.step(1)
    del env.slotted.late
    snapshot = GraphSnapshot(env, ROOM)
    before = TABLE.copy()
    first = run(env, [1, 0, 1])
    snapshot.restore()
    assert not hasattr(env.slotted, "late")
    assert np.shares_memory(env.head, env.buffer)
    assert_same(run(env, [1, 0, 1]), first)
    assert_same(TABLE, before)


def test_what_is_computed_once_stays():
    env = Everything()
    env.reset(seed=1)
    snapshot = GraphSnapshot(env, ROOM)
    computed = env.costly
    snapshot.restore()
    assert env.costly is computed


class OfItsOwn(gymnasium.Env[Any, Any]):
    """A task whose state lies outside of Python, and which knows how to keep it."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.elsewhere = iter(range(1000))
        self.total = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.total = 0.0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.total += action + float(self.np_random.random())
        return np.array([self.total], np.float32), self.total, False, False, {}

    def get_snapshot(self) -> Any:
        return {"total": self.total, "more": [np.zeros(1000), b"12345678"]}

    def set_snapshot(self, snapshot: Any) -> None:
        self.total = snapshot["total"]


def test_a_task_may_keep_its_own_state():
    env = gymnasium.wrappers.TimeLimit(OfItsOwn(), 5)
    env.reset(seed=3)
    env.step(1)
    snapshot = GraphSnapshot(env, ROOM)
    assert snapshot.size_bytes > 8000
    first = run(env, [1, 0, 1, 1])
    assert first[-2][3]  # the time limit counts as before
    snapshot.restore()
    assert_same(run(env, [1, 0, 1, 1]), first)


def test_state_outside_of_python_is_told_by_its_place():
    class Elsewhere(Everything):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [{"stream": iter([1, 2])}]

    with pytest.raises(Unsupported, match=r"env\.parts\[0\]\['stream'\], a builtins\.list_iterator.*get_snapshot"):
        GraphSnapshot(Elsewhere(), ROOM)


def test_a_process_of_the_task_is_no_python_state():
    class Outside(Everything):
        def __init__(self, process: Any) -> None:
            super().__init__()
            self.process = process

    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        with pytest.raises(Unsupported, match=r"env\.process.*subprocess\.Popen"):
            GraphSnapshot(Outside(process), ROOM)
        process.kill()


def test_a_snapshot_beyond_its_room_is_refused_before_it_is_made():
    env = Everything()
    env.reset(seed=1)
    env.large = np.zeros(1 << 20)  # type: ignore[attr-defined]
    with pytest.raises(Unsupported, match=r"needs more than the 4 MiB .*env\.large.*forget\(\) others"):
        GraphSnapshot(env, 4 << 20)
