"""Rollouts: episodes in which the policy beside the simulator acts, asked for slice by slice."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import InputError
from remote_env.protocol.stacking import join
from remote_env.session import Session
from remote_env.state import SceneState

WANTS = ("observation", "action", "reward", "state", "info", "frame")
FIRST_SLICE_S = 0.4
SHORTEST_SLICE_S = 0.1
LONGEST_S = 1.0  # of a slice and its round trip: whoever watches sees something happen
ROUND_TRIP_SHARE = 0.05  # of the wall time, as long as that leaves slices below LONGEST_S
MAX_SLICE_BYTES = 32 << 20  # well below a message's limits
MIN_SLICE_BYTES = 256 << 10


@dataclass(frozen=True, eq=False)
class Rollout:
    """One episode, or the part of it that was run, of T steps.

    Observations, states, infos and frames have T + 1 rows: the first is the reset's. What was not wanted is empty.

    Attributes:
        seed: what the episode was reset with.
        steps: T.
        terminated: as the last step said.
        truncated: likewise; with neither the episode was cut, by `n_steps` or `max_episode_steps`.
        success: whether any step's info said `is_success`; None when none of them spoke of it.
        rewards: (T,) in the dtype that the task gives.
        last_info: of the last step.
        actions: (T, …) as they were applied.
        observations: (T + 1, …): an array, a dict or tuple of arrays as the observation space is, or a list where
            rows differ in shape.
        infos: T + 1 dicts.
        states: T + 1 scene states.
        frames: (T + 1, height, width, 3) uint8, or what else the task renders.
        inferences: how often the policy was asked.
        inference_s: how long it took for that in all [s].
    """

    seed: int | None
    steps: int
    terminated: bool
    truncated: bool
    success: bool | None
    rewards: NDArray[Any]
    last_info: dict[str, Any]
    actions: Any = ()
    observations: Any = ()
    infos: list[dict[str, Any]] = field(default_factory=list)
    states: list[SceneState] = field(default_factory=list)
    frames: Any = ()
    inferences: int = 0
    inference_s: float = 0.0

    @property
    def total_reward(self) -> float:
        """The rewards' sum, added in the order of the steps, as a loop would."""
        return float(sum(self.rewards.tolist()))

    @property
    def complete(self) -> bool:
        """Whether the task itself ended the episode."""
        return self.terminated or self.truncated

    def __repr__(self) -> str:
        how = "terminated" if self.terminated else "truncated" if self.truncated else "cut"
        success = "" if self.success is None else f", success={self.success}"
        return f"<Rollout seed={self.seed}, {self.steps} steps, {how}, reward {self.total_reward:g}{success}>"


class RolloutStatus(NamedTuple):
    """How far rollouts have come.

    Attributes:
        episodes: how many have ended.
        successes: how many of them succeeded.
        steps: of all episodes.
        episode_steps: of the one that runs.
        elapsed_s: since they began [s].
    """

    episodes: int
    successes: int
    steps: int
    episode_steps: int
    elapsed_s: float


@dataclass(frozen=True)
class Plan:
    """What rollouts were asked for; see `RemoteEnv.rollout`.

    Raises:
        InputError: it cannot be done as asked.
    """

    n_steps: int | None
    n_episodes: int | None
    seed: int | tuple[int | None, ...] | None
    options: dict[str, Any] | None
    want: tuple[str, ...]
    chunk_size: int | None
    max_episode_steps: int | None

    @classmethod
    def of(cls, n_steps: int | None, n_episodes: int | None, seed: Any, options: Any, want: Any, *limits: Any) -> Plan:
        """The plan with what is left out filled in."""
        seeds = _seeds(seed)
        if n_episodes is None and isinstance(seeds, tuple):
            n_episodes = len(seeds)
        elif n_episodes is None and n_steps is None:
            n_episodes = 1
        if not isinstance(want, Iterable):
            raise InputError(f"want={want!r}: a rollout brings any of {', '.join(WANTS)}")
        want = (want,) if isinstance(want, str) else tuple(want)
        steps, episodes, *others = (_plain(number) for number in (n_steps, n_episodes, *limits))
        return cls(steps, episodes, seeds, options, want, *others)

    def __post_init__(self) -> None:
        for name in ("n_steps", "n_episodes", "chunk_size", "max_episode_steps"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name}={value!r}: a whole number from 1 on, or None for no limit")
        if self.options is not None and not isinstance(self.options, dict):
            raise InputError(f"options={self.options!r}: a dict for each reset, or None")
        if isinstance(self.seed, tuple) and len(self.seed) != self.n_episodes:
            raise InputError(f"{len(self.seed)} seeds for {self.n_episodes} episodes: give one each, or one for all")
        unknown = [name for name in self.want if name not in WANTS]
        if unknown:
            raise InputError(f"want={unknown[0]!r}: a rollout brings any of {', '.join(WANTS)}")

    def seed_of(self, number: int) -> int | None:
        """What episode `number`, from 0, is reset with: of one seed given, that many after it."""
        if isinstance(self.seed, tuple):
            return self.seed[number]
        return None if self.seed is None else self.seed + number

    def may_step(self, steps: int, episode_steps: int) -> int:
        """How many steps more the episode may have, after so many of it and so many in all."""
        limits = [MAX_SLICE_BYTES]
        if self.n_steps is not None:
            limits.append(self.n_steps - steps)
        if self.max_episode_steps is not None:
            limits.append(self.max_episode_steps - episode_steps)
        return min(limits)

    def is_done(self, episodes: int, steps: int) -> bool:
        """Whether no further episode is to begin."""
        return episodes == self.n_episodes or (self.n_steps is not None and steps >= self.n_steps)


def _seeds(seed: Any) -> int | tuple[int | None, ...] | None:
    if isinstance(seed, Iterable) and not isinstance(seed, (str, bytes)):
        return tuple(_seed(each) for each in seed)
    return _seed(seed)


def _seed(value: Any) -> int | None:
    plain = _plain(value)
    if plain is None:
        return None
    if isinstance(plain, bool) or not isinstance(plain, int) or plain < 0:
        raise InputError(f"seed={value!r}: a whole number from 0 on, a sequence of such, or None")
    return plain


def _plain(number: Any) -> Any:
    """NumPy's whole numbers as Python's; anything else as it is."""
    return int(number) if isinstance(number, np.integer) else number


class Pace:
    """How much to ask of the far end at once.

    Long enough that round trips cost little of the time, short enough that one sees it go on, and that a Ctrl-C leaves
    no work behind.

    Attributes:
        time_s: for the next slice [s].
        size_bytes: for its reply.
    """

    def __init__(self) -> None:
        self.time_s, self.size_bytes = FIRST_SLICE_S, MAX_SLICE_BYTES // 8

    def note(self, took_s: float, worked_s: float) -> None:
        """Learn from a slice: how long its answer took, and how long the far end worked for it [s]."""
        on_the_way_s = max(took_s - worked_s, 1e-6)
        longest_s = max(LONGEST_S - on_the_way_s, SHORTEST_SLICE_S)
        self.time_s = min(max(on_the_way_s / ROUND_TRIP_SHARE, SHORTEST_SLICE_S), longest_s)
        by = min(max(LONGEST_S / 2 / on_the_way_s, 0.25), 2.0)
        self.size_bytes = int(min(max(self.size_bytes * by, MIN_SLICE_BYTES), MAX_SLICE_BYTES))


class Rollouts:
    """Runs a plan, episode by episode.

    Args:
        plan: what to run.
        begin: given a seed, the session in which the next episode begins.
        timeouts_s: for a slice that goes on, and for one that begins with a reset, besides its own time [s].
        tell: told how far it is, after each slice.
        pace: learnt from the slices before.
    """

    def __init__(
        self,
        plan: Plan,
        begin: Callable[[int | None], Session],
        timeouts_s: tuple[float, float],
        tell: Callable[[RolloutStatus], None],
        pace: Pace,
    ) -> None:
        self._plan, self._begin, self._tell, self._pace = plan, begin, tell, pace
        self._step_timeout_s, self._reset_timeout_s = timeouts_s
        self._episodes = self._successes = self._steps = 0
        self._began = time.monotonic()

    def run(self) -> Iterator[Rollout]:
        """Each episode when it has ended."""
        for number in itertools.count():
            if self._plan.is_done(self._episodes, self._steps):
                return
            seed = self._plan.seed_of(number)
            rollout = assemble(seed, list(self._slices(seed)))
            self._episodes += 1
            self._successes += rollout.success is True
            self._report(0)
            yield rollout

    def _slices(self, seed: int | None) -> Iterator[dict[str, Any]]:
        """The replies of one episode, in order."""
        session, done = self._begin(seed), 0
        begin: tuple[Any, Any] | None = (seed, self._plan.options)
        acts = session.acts
        while (left := self._plan.may_step(self._steps, done)) > 0:
            if session.acts != acts:
                raise InputError(
                    "something else acted on this environment, or closed it, in the middle of its rollout "
                    "(on_progress, or another thread): the episode is no longer the policy's alone, and is not returned"
                )
            reply = self._ask(session, begin, left)
            begin, acts = None, session.acts
            done += reply["steps"]
            self._steps += reply["steps"]
            yield reply
            _, terminated, truncated, _ = reply["last"]
            if terminated or truncated:
                return
            self._report(done)

    def _ask(self, session: Session, begin: tuple[Any, Any] | None, steps: int) -> dict[str, Any]:
        plan, pace = self._plan, self._pace
        request = {
            "begin": begin,
            "steps": steps,
            "time_s": pace.time_s,
            "size_bytes": pace.size_bytes,
            "want": list(plan.want),
            "chunk_size": plan.chunk_size,
            "stacked": True,
        }
        timeout_s = self._step_timeout_s + (self._reset_timeout_s if begin is not None else 0.0)
        asked = time.monotonic()
        reply = session.rollout(request, timeout_s)
        pace.note(time.monotonic() - asked, float(reply["elapsed_s"]))
        return reply

    def _report(self, episode_steps: int) -> None:
        elapsed_s = time.monotonic() - self._began
        self._tell(RolloutStatus(self._episodes, self._successes, self._steps, episode_steps, elapsed_s))


def assemble(seed: int | None, replies: Sequence[dict[str, Any]]) -> Rollout:
    """The episode whose slices these are."""
    rows = {name: [reply["rows"][name] for reply in replies] for name in replies[0]["rows"]}
    _, terminated, truncated, last_info = replies[-1]["last"]
    told = [reply["success"] for reply in replies if reply["success"] is not None]
    return Rollout(
        seed=seed,
        steps=sum(reply["steps"] for reply in replies),
        terminated=bool(terminated),
        truncated=bool(truncated),
        success=any(told) if told else None,
        rewards=np.asarray(join(rows["reward"])),
        last_info=last_info,
        actions=join(rows.get("action", ())),
        observations=join(rows.get("observation", ())),
        infos=[info for part in rows.get("info", ()) for info in part],
        states=[state for part in rows.get("state", ()) for state in part],
        frames=join(rows.get("frame", ())),
        inferences=sum(reply["inferences"] for reply in replies),
        inference_s=sum(reply["inference_s"] for reply in replies),
    )


ONE_STEP: dict[str, Any] = {
    "begin": None,
    "steps": 1,
    "time_s": 0.0,
    "size_bytes": 0,
    "want": ["observation", "action"],
    "chunk_size": None,
    "stacked": False,
}
"""The request of one step of the policy, whose values are to arrive as they are."""
