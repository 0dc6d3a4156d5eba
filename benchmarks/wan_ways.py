"""The ways that bench_wan compares to run one episode of ALOHA whose simulator stands at the far end of a link."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from benchmarks.aloha_rivals import expert_actions
from benchmarks.wan_far import EPISODE_STEPS, PORTS, PickleClient, PingPong, make_task
from remote_env import RemoteEnv
from remote_env.prediction import PredictiveEnv

SEED_STYLE = "pickle: step, get_state"
STEP, STEP_STATE = "step", "step, state"
PIPELINED = "step_async, state"
CHUNKS_16, CHUNKS_64, CHUNKS_64_BARE = "step_many K=16, state", "step_many K=64, state", "step_many K=64"
FAR_PICTURE, LOCAL_PICTURE = "step, render() far", "step, render='local'"
CHUNK_PICTURES = "step_many K=32, local_pixels"
PREDICTED, PREDICTED_CHUNKS = "PredictiveEnv, every", "PredictiveEnv, chunk"
LOCAL, PICTURE_HERE = "in this process", "in this process, render()"

WINDOW = 64  # as many as a session allows
PICTURE_BYTES = 480 * 640 * 3
STATE_BYTES = 1000


class Timed(NamedTuple):
    """One episode, or the beginning of one.

    Attributes:
        reset_s: of the reset.
        steps: how many were run.
        steps_s: of all of them.
        each_s: of each, where the way waits for each.
        simulate_s: of each in the simulator alone, where the way tells.
        received_bytes: that came over the link.
    """

    reset_s: float
    steps: int
    steps_s: float
    each_s: list[float]
    simulate_s: list[float]
    received_bytes: int = 0

    @property
    def episode_s(self) -> float:
        """Of 400 steps at this pace, and the reset."""
        return self.reset_s + self.steps_s * EPISODE_STEPS / self.steps


@dataclass(frozen=True)
class Way:
    """How an episode is run.

    Attributes:
        run: runs so many steps of one; what came over the link is left out.
        round_trips: that a step waits for; 0 where whole episodes are short enough to be run.
        size_bytes: that a step brings.
        here_s: what each step takes in this process, roughly [s].
        least: steps to run, however slow they are.
        most: steps to run, however fast they are.
    """

    run: Callable[[int], Timed]
    round_trips: float = 0.0
    size_bytes: int = 0
    here_s: float = 0.001
    least: int = 3
    most: int = EPISODE_STEPS

    def steps_within(self, seconds: float, round_trip_s: float, rate_bits_per_s: float) -> int:
        """How many steps to run: a whole episode, or as many as about fit."""
        if not self.round_trips:
            return self.most
        step_s = self.round_trips * round_trip_s + self.size_bytes * 8 / rate_bits_per_s + self.here_s
        return int(np.clip(seconds / step_s, self.least, self.most))


def open_ways(host: str, stack: ExitStack) -> tuple[dict[str, Way], PingPong]:
    """All ways to the programs at `host`, and raw ping-pong there.

    Args:
        host: where `wan_far`'s programs run, and our task servers; the one without images takes three sessions.
        stack: closes all that is opened here.
    """
    address, images = (f"tcp://{host}:{PORTS[name]}" for name in ("ours", "ours with images"))
    actions = _whole_episode()
    look = {"camera": "top", "width": 640, "height": 480, "quality": "fast"}
    plain = stack.enter_context(RemoteEnv(address, progress=False))
    informed = stack.enter_context(RemoteEnv(address, capture_state=True, progress=False))
    drawn = stack.enter_context(RemoteEnv(address, render="local", local_view=look, progress=False))
    pixels = stack.enter_context(RemoteEnv(images, local_pixels=True, progress=False))
    local, twin, pickled, ping = make_task(), make_task(), PickleClient(host), PingPong(host)
    for opened in (local, twin, pickled, ping):
        stack.callback(opened.close)
    by_step, by_chunk = PredictiveEnv(plain, twin), PredictiveEnv(plain, twin, verify="chunk")
    ways = {
        SEED_STYLE: Way(lambda steps: _seed_style(pickled, actions[:steps]), 2.0, least=4),
        STEP_STATE: Way(lambda steps: _each(informed, actions[:steps]), 1.0, STATE_BYTES, least=8),
        STEP: Way(lambda steps: _each(plain, actions[:steps]), 1.0, least=8),
        PIPELINED: Way(lambda steps: _pipelined(informed, actions[:steps])),
        CHUNKS_16: Way(lambda steps: _chunks(informed, actions[:steps], 16)),
        CHUNKS_64: Way(lambda steps: _chunks(informed, actions[:steps], 64)),
        CHUNKS_64_BARE: Way(lambda steps: _chunks(plain, actions[:steps], 64)),
        PREDICTED: Way(lambda steps: _predicted(by_step, actions[:steps])),
        PREDICTED_CHUNKS: Way(lambda steps: _predicted(by_chunk, actions[:steps])),
        LOCAL: Way(lambda steps: _each(local, actions[:steps])),
        FAR_PICTURE: Way(lambda steps: _drawn(plain, actions[:steps]), 2.0, PICTURE_BYTES, here_s=0.03),
        LOCAL_PICTURE: Way(lambda steps: _drawn(drawn, actions[:steps]), 1.0, STATE_BYTES, here_s=0.02),
        CHUNK_PICTURES: Way(lambda steps: _chunks(pixels, actions[:steps], 32), most=32),
        PICTURE_HERE: Way(lambda steps: _drawn(local, actions[:steps]), 0.001, here_s=0.02),
    }
    return ways, ping


def _whole_episode() -> Any:
    """(400, 14) float32: what the expert does, and then its last action."""
    actions = expert_actions(seed=0)
    return np.concatenate([actions, np.repeat(actions[-1:], EPISODE_STEPS - len(actions), axis=0)])


def _timed(reset: Callable[[], Any], steps: int, run: Callable[[], tuple[list[float], list[float]]]) -> Timed:
    began = time.perf_counter()
    reset()
    ready = time.perf_counter()
    each, simulate = run()
    return Timed(ready - began, steps, time.perf_counter() - ready, each, simulate)


def _each(env: Any, actions: Any) -> Timed:
    def run() -> tuple[list[float], list[float]]:
        stamps = [time.perf_counter()]
        for action in actions:
            env.step(action)
            stamps.append(time.perf_counter())
        return np.diff(stamps).tolist(), []

    return _timed(lambda: env.reset(seed=0), len(actions), run)


def _drawn(env: Any, actions: Any) -> Timed:
    """With a picture of each step."""

    def run() -> tuple[list[float], list[float]]:
        stamps = [time.perf_counter()]
        for action in actions:
            env.step(action)
            env.render()
            stamps.append(time.perf_counter())
        return np.diff(stamps).tolist(), []

    return _timed(lambda: env.reset(seed=0), len(actions), run)


def _seed_style(client: PickleClient, actions: Any) -> Timed:
    def run() -> tuple[list[float], list[float]]:
        each, simulate = [], []
        for action in actions:
            began = time.perf_counter()
            client.step(action)
            client.get_state()
            each.append(time.perf_counter() - began)
            simulate.append(client.simulate_s)
        return each, simulate

    return _timed(lambda: client.reset(0), len(actions), run)


def _pipelined(env: RemoteEnv, actions: Any) -> Timed:
    """As many steps under way as may be."""

    def run() -> tuple[list[float], list[float]]:
        for index, action in enumerate(actions):
            if index >= WINDOW:
                env.step_wait()
            env.step_async(action)
        for _ in range(min(WINDOW, len(actions))):
            env.step_wait()
        return [], []

    return _timed(lambda: env.reset(seed=0), len(actions), run)


def _predicted(env: PredictiveEnv, actions: Any) -> Timed:
    """Until the last step is verified."""

    def run() -> tuple[list[float], list[float]]:
        for action in actions:
            env.step(action)
        env.verify()
        assert env.statistics.mismatches == 0
        return [], []

    return _timed(lambda: env.reset(seed=0), len(actions), run)


def _chunks(env: RemoteEnv, actions: Any, size: int) -> Timed:
    def run() -> tuple[list[float], list[float]]:
        for first in range(0, len(actions), size):
            done = env.step_many(actions[first : first + size])
            assert done.ran == len(actions[first : first + size])
        return [], []

    return _timed(lambda: env.reset(seed=0), len(actions), run)
