"""Walks over a counting environment, here and over a link that fails, and what they show: each call once, in order.

`benchmarks/reliability.py` takes the same walks, longer.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv

from remote_env import RemoteEnv
from remote_env.errors import NotRun
from remote_env.session import LinkEvent
from remote_env.state import SceneState
from remote_env.testing import CountingEnv, FaultProxy

TASK = "remote_env.testing.counting:make"
SEED = 11
WINDOW = 32
WAIT_S = 60.0
CALM_STEPS = 20

Tell = Callable[[int], None]
Walk = Callable[[Any, int, Tell], "Seen"]


@dataclass
class Seen:
    """What a client was told on a walk, in order.

    Attributes:
        steps: that were taken.
        doubled: calls that the task has counted and nobody made.
        lost: calls that were answered and that it has not counted.
        not_run: steps sent ahead, behind an episode's end.
        digest: the task's own chain over all calls.
    """

    steps: int = 0
    doubled: int = 0
    lost: int = 0
    not_run: int = 0
    digest: Any = ""
    _made: int = 0
    _chain: Any = field(default_factory=hashlib.blake2b)  # quicker than SHA-256 over images

    @property
    def view(self) -> str:
        """A hash over every value that came, in hex: observations, rewards, flags, infos, states, pictures."""
        return str(self._chain.hexdigest())

    def made(self, count: int = 1) -> None:
        """Note calls that the task counts."""
        self._made += count

    def told(self, info: dict[str, Any], *values: Any) -> None:
        """Note an answer, and compare how many calls the task has counted with how many were made."""
        calls = int(np.sum(info["calls"]))
        self.doubled += max(calls - self._made, 0)
        self.lost += max(self._made - calls, 0)
        self._made = calls
        self.digest = [*info["digest"]] if isinstance(info["digest"], np.ndarray) else info["digest"]
        self.note(*values, calls, repr(self.digest).encode())

    def note(self, *values: Any) -> None:
        """Note values that came, bit for bit."""
        for value in values:
            if isinstance(value, dict):
                self.note(*value.values())
            else:
                self._chain.update(value if isinstance(value, bytes) else np.ascontiguousarray(value))

    def is_like(self, other: Seen) -> bool:
        """Whether both have seen the same, bit for bit, and the task was called the same."""
        return (self.view, self.digest, self.steps) == (other.view, other.digest, other.steps)


def _silent(_steps: int) -> None:
    """Tell nobody."""


# Walks: each the same calls in the same order, here and there


def walk(env: Any, steps: int, tell: Tell = _silent) -> Seen:
    """Step by step, with a reset after each episode's end."""
    seen, rng = Seen(), np.random.default_rng(SEED)
    _reset(env, seen, SEED)
    for seen.steps in range(1, steps + 1):
        seen.made()
        observation, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, 2))
        seen.told(info, observation, reward, terminated, truncated)
        if terminated or truncated:
            _reset(env, seen)
        tell(seen.steps)
    return seen


def walk_ahead(env: RemoteEnv, steps: int, tell: Tell = _silent) -> Seen:
    """As `walk`, with up to WINDOW steps under way; those behind an episode's end are sent again after the reset."""
    seen, rng = Seen(), np.random.default_rng(SEED)
    actions: list[Any] = []  # those under way
    later: list[Any] = []  # those that were not run
    _reset(env, seen, SEED)
    while seen.steps < steps:
        while len(actions) < min(_window(env), steps - seen.steps):
            actions.append(later.pop(0) if later else rng.uniform(-1, 1, 2))
            env.step_async(actions[-1])
        seen.made()
        observation, reward, terminated, truncated, info = env.step_wait()
        seen.told(info, observation, reward, terminated, truncated)
        seen.steps += 1
        del actions[0]
        if terminated or truncated:
            seen.not_run += _take_not_run(env, len(actions))
            later, actions = [*actions, *later], []
            _reset(env, seen)
        tell(seen.steps)
    return seen


def _window(env: RemoteEnv) -> int:
    """How many steps are sent ahead: fewer where replies are large, since both ends keep them."""
    session = env._life.session
    return WINDOW if session is None else min(WINDOW, session.window)


def _take_not_run(env: RemoteEnv, count: int) -> int:
    for _ in range(count):
        try:
            env.step_wait()
        except NotRun:
            continue
        raise AssertionError("a step behind an episode's end was run")
    return count


def walk_mixed(env: Any, steps: int, tell: Tell = _silent) -> Seen:
    """Steps, and by chance among them states read and set, pictures, calls by name and resets with seeds."""
    seen, rng = Seen(), np.random.default_rng(SEED)
    _reset(env, seen, SEED)
    state: SceneState | None = None
    for seen.steps in range(1, steps + 1):
        seen.made()
        observation, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, 2))
        seen.told(info, observation, reward, terminated, truncated)
        match rng.integers(10):
            case 0:
                state = env.get_state(native=True)
                seen.note(state.values, state.native or b"")
            case 1 if state is not None:
                seen.made()
                env.set_state(state)
            case 2:
                seen.made()
                seen.note(env.render())
            case 3:
                seen.note(env.call("digest").encode())
            case 4 if truncated:
                _reset(env, seen, seen.steps)
        tell(seen.steps)
    return seen


def walk_batch(env: Any, steps: int, tell: Tell = _silent) -> Seen:
    """Step a batch, which resets its environments itself."""
    seen, rng = Seen(), np.random.default_rng(SEED)
    count = env.num_envs
    _reset(env, seen, SEED, count)
    for seen.steps in range(1, steps + 1):
        seen.made(count)
        observation, rewards, terminated, truncated, infos = env.step(rng.uniform(-1, 1, (count, 2)))
        seen.told(infos, observation, rewards, terminated, truncated)
        tell(seen.steps)
    return seen


def _reset(env: Any, seen: Seen, seed: int | None = None, count: int = 1) -> None:
    seen.made(count)
    observation, info = env.reset(seed=seed)
    seen.told(info, observation)


class HereEnv(CountingEnv):
    """The counting environment in this process, with `RemoteEnv`'s names for what Gymnasium has none for."""

    def get_state(self, *, native: bool = False) -> SceneState:
        """See `RemoteEnv.get_state`."""
        return self.get_scene_state(native=native)

    def set_state(self, state: SceneState) -> None:
        """See `RemoteEnv.set_state`."""
        self.set_scene_state(state)

    def call(self, name: str) -> Any:
        """See `RemoteEnv.call`."""
        return getattr(self, name)()


def here(walk: Walk, steps: int, num_envs: int | None = None, **kwargs: Any) -> Seen:
    """The same walk undisturbed, in this process."""
    if num_envs is None:
        return walk(HereEnv(**kwargs), steps, _silent)
    return walk(SyncVectorEnv([lambda: HereEnv(**kwargs)] * num_envs), steps, _silent)


# Links that fail


@dataclass
class Events:
    """What `on_link` was told."""

    all: list[LinkEvent] = field(default_factory=list)
    is_cut: threading.Event = field(default_factory=threading.Event)

    def __call__(self, event: LinkEvent) -> None:
        self.all.append(event)
        if event.kind == "cut":
            self.is_cut.set()

    @property
    def resumed_s(self) -> list[float]:
        """Seconds from each cut until the session went on."""
        return [event.after_s for event in self.all if event.kind == "resumed"]


def random_cuts(proxy: FaultProxy, mean_steps: float, ahead: int = 0) -> Tell:
    """Cuts at random bytes about every so many steps, once a few undisturbed ones have shown how many bytes one has.

    Args:
        proxy: that carries the session's link; it is connected already.
        mean_steps: between two cuts, exponentially distributed.
        ahead: how many steps are under way at once.
    """
    begun = proxy.carried("up") + proxy.carried("down")

    def tell(steps: int) -> None:
        if steps == CALM_STEPS:
            carried = proxy.carried("up") + proxy.carried("down") - begun
            proxy.cut_every(mean_steps * carried / (steps + ahead))

    return tell


def silent_until_noticed(proxy: FaultProxy, events: Events) -> None:
    """Let a link carry nothing and tell nobody until the client takes it for cut."""
    events.is_cut.clear()
    proxy.pause()
    try:
        if not events.is_cut.wait(WAIT_S):
            raise AssertionError("nobody noticed that the link is silent")
    finally:
        proxy.resume()


@contextlib.contextmanager
def now_and_then(strike: Callable[[], object], mean_steps: float) -> Iterator[Tell]:
    """Strikes from a thread of its own, about every so many steps; to be told of each step.

    The walk goes on meanwhile, so that a strike falls wherever it falls: between two steps or into one.

    Args:
        strike: breaks the link.
        mean_steps: between two strikes, exponentially distributed.
    """
    rng, due, over = np.random.default_rng(SEED), threading.Event(), threading.Event()
    failed: list[BaseException] = []
    next_at = rng.exponential(mean_steps)

    def work() -> None:
        try:
            while due.wait() and not over.is_set():
                due.clear()
                strike()
        except BaseException as error:  # noqa: BLE001  raised where the walk is
            failed.append(error)

    def tell(steps: int) -> None:
        nonlocal next_at
        if failed:
            raise failed[0]
        if steps >= next_at:
            next_at = steps + rng.exponential(mean_steps)
            due.set()

    thread = threading.Thread(target=work, name="strikes")
    thread.start()
    try:
        yield tell
    finally:
        over.set()
        due.set()
        thread.join(WAIT_S)


# Memory


def resident_bytes(pid: int | str = "self") -> int:
    """The resident memory of a process of this machine."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
