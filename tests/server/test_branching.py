"""What a simulator answers to requests for snapshots and branches, in this process: limits, faults, bad requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from remote_env.errors import InputError, TaskError, Unsupported
from remote_env.protocol import branching as limits
from remote_env.server import branches
from remote_env.server.board import Board
from remote_env.server.branches import Branching
from remote_env.server.gymnasium_backend import GymnasiumBackend

RIGHT = [[1, 1, 1]]


class Fragile(gymnasium.Env[Any, Any]):
    """Keeps its own state, in one buffer for all observations; breaks where it is told to."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Discrete(3)

    def __init__(self) -> None:
        self.buffer = np.zeros(2, np.float32)
        self.breaks, self.reward = "", 1.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.buffer, {}

    def step(self, action: Any) -> Any:
        self.buffer += action
        return self.buffer, self.reward, False, False, {"buffer": self.buffer}

    def get_snapshot(self) -> Any:
        return self.buffer.copy()

    def set_snapshot(self, snapshot: Any) -> None:
        if self.breaks:
            raise ValueError(self.breaks)
        self.buffer[:] = snapshot


class Bench:
    """A backend, its branching, and how often the episode was lost or put back."""

    def __init__(self, env: Callable[[], Any] | str, num_envs: int | None = None, **more: Any) -> None:
        self.backend = GymnasiumBackend()
        self.backend.num_envs = num_envs
        self.backend.make(env, {})
        self.backend.reset(1, None)
        self.lost = self.restored = 0
        self.board = Board.create()
        self.asked = Branching(self.backend, self.board, self._lose, self._restore, **more)

    def _lose(self) -> None:
        self.lost += 1

    def _restore(self) -> None:
        self.restored += 1

    @property
    def task(self) -> Any:
        return self.backend._env.unwrapped


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make_one(*args: Any, **kwargs: Any) -> Bench:
        made.append(Bench(*args, **kwargs))
        return made[-1]

    yield make_one
    for bench in made:
        bench.backend.close()
        bench.board.close()


def test_a_batch_has_none(make: Callable[..., Bench]) -> None:
    bench = make("CartPole-v1", 2)
    for ask in ({"fork": 2}, {"try": RIGHT}):
        with pytest.raises(Unsupported, match=r"a batch of environments has no snapshots.*RemoteEnv\(…\)"):
            bench.asked.branch(ask)
    with pytest.raises(Unsupported, match="a batch of environments"):
        bench.asked.snapshot({"take": None})


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (None, "a dict with one of try, fork, step, end is due"),
        ({}, "a dict with one of"),
        ({"fork": 1, "end": []}, "a dict with one of"),
        ({"fork": 0}, "0 branches: a whole number"),
        ({"fork": True}, "True branches"),
        ({"fork": "2"}, "'?2'? branches"),
        ({"fork": limits.MAX_KEPT + 1}, f"may keep {limits.MAX_KEPT}"),
        ({"fork": 2, "snapshot": 5}, "no snapshot '5'"),
        ({"end": "a"}, "a list of different ids"),
        ({"end": ["a", "a"]}, "a list of different ids"),
        ({"end": ["a"]}, "no branch 'a'"),
        ({"step": [], "actions": []}, "0 chunks"),
        ({"step": ["a"], "actions": [[1]]}, "no branch 'a'"),
        ({"try": None}, "actions are"),
        ({"try": 5}, "actions are"),
        ({"try": [5]}, "actions are"),
        ({"try": {}}, "0 chunks"),
        ({"try": RIGHT, "want": []}, r"want=\[\]"),
        ({"try": RIGHT, "want": np.zeros(2)}, "want=array"),
        ({"try": {"a": np.zeros((2, 1)), "b": np.zeros((3, 1))}}, "actions are"),
        ({"try": (np.zeros(2), 5)}, "actions are"),
        ({"try": ()}, "0 chunks"),
        ({"try": RIGHT, "stop": 1}, "stop is True or False"),
    ],
)
def test_requests_that_are_none(make: Callable[..., Bench], request_: Any, text: str) -> None:
    bench = make("CartPole-v1")
    with pytest.raises(InputError, match=text):
        bench.asked.branch(request_)
    assert bench.asked.branch({"try": RIGHT})["ran"].tolist() == [3]
    for none in ("mine", {}, {"ids": ["mine"]}):
        with pytest.raises(InputError, match="a dict with"):
            bench.asked.restore(none)
        with pytest.raises(InputError, match="a dict with"):
            bench.asked.snapshot(none)


def test_ids_are_nobody_else_s(make: Callable[..., Bench]) -> None:
    one, other = make("CartPole-v1").asked, make("CartPole-v1").asked
    assert one.snapshot({"take": None})["id"] != other.snapshot({"take": None})["id"]
    kept = one.snapshot({"take": None})["id"]
    one.forget_all()
    assert one.snapshot({"take": None})["id"] != kept
    with pytest.raises(InputError, match="it has 1 of them"):
        one.restore({"id": kept})


def test_what_is_kept_has_its_room_and_what_is_forgotten_frees_it(make: Callable[..., Bench]) -> None:
    size = make("CartPole-v1").asked.snapshot({"take": None})["size_bytes"]
    asked = make("CartPole-v1", limit_bytes=3 * size + 100).asked
    kept = [asked.snapshot({"take": None})["id"] for _ in range(3)]
    with pytest.raises(Unsupported, match="needs more than the 0 MiB that are left"):
        asked.branch({"try": RIGHT})
    with pytest.raises(Unsupported, match="needs more"):
        asked.snapshot({"take": None})
    asked.snapshot({"forget": kept[0]})
    assert asked.branch({"try": RIGHT})["ran"].tolist() == [3]
    assert len(asked.branch({"fork": 100})) == 100  # they share one state until they step


def test_branches_that_find_no_room_stay_where_they_are(make: Callable[..., Bench]) -> None:
    size = make("CartPole-v1").asked.snapshot({"take": None})["size_bytes"]
    bench = make("CartPole-v1", limit_bytes=4 * size + 100)
    names = bench.asked.branch({"fork": 4})
    before = bench.backend.step(1)
    with pytest.raises(Unsupported, match="needs more"):
        bench.asked.branch({"step": names, "actions": RIGHT * 4})
    done = bench.asked.branch({"step": names[:1], "actions": [[1]], "want": "last"})
    assert done["observations"][0].tobytes() == before[0].tobytes()


def test_what_is_in_one_buffer_is_copied(make: Callable[..., Bench]) -> None:
    bench = make(Fragile)
    tried = bench.asked.branch({"try": [[1, 1], [2, 2]], "want": "all"})
    assert [rows[:, 0].tolist() for rows in tried["observations"]] == [[1, 2], [2, 4]]
    assert [info["buffer"][0] for info in tried["infos"][1]] == [2, 4]
    assert bench.task.buffer.tolist() == [0, 0]
    assert bench.board.read().steps == 4


def test_observations_are_picked(make: Callable[..., Bench]) -> None:
    bench = make(Fragile, select=lambda observation: observation[:1])
    assert bench.asked.branch({"try": [[1]], "want": "last"})["observations"].tolist() == [[1]]


def test_a_task_that_cannot_go_back_has_lost_its_episode(make: Callable[..., Bench]) -> None:
    bench = make(Fragile)
    snapshot = bench.asked.snapshot({"take": None})["id"]
    bench.asked.restore({"id": snapshot})
    assert (bench.lost, bench.restored) == (0, 1)
    bench.task.breaks = "the cube is glued"
    with pytest.raises(ValueError, match="glued"):
        bench.asked.restore({"id": snapshot})
    assert bench.lost == 1
    with pytest.raises(ValueError, match="glued"):
        bench.asked.branch({"try": [[1]]})
    assert bench.lost == 2


@pytest.mark.parametrize("reward", ["much", None, [1, 2]])
def test_a_reward_that_is_none_is_the_task_s_fault(make: Callable[..., Bench], reward: Any) -> None:
    bench = make(Fragile)
    bench.task.reward = reward
    with pytest.raises(TaskError, match="a step of chunk 0 ran, but its reward or a flag is no number"):
        bench.asked.branch({"try": [[1]]})
    assert bench.task.buffer.tolist() == [0, 0]


def test_more_than_a_reply_holds_is_refused(make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "MAX_BYTES", 1000)
    bench = make(Fragile)
    with pytest.raises(InputError, match=r'more than 1000 bytes; send fewer at once.*want="last"'):
        bench.asked.branch({"try": [[1] * 20], "want": "all"})
    assert bench.asked.branch({"try": [[1] * 20], "want": "last"})["ran"].tolist() == [20]
