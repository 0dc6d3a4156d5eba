"""PredictiveEnv: a local twin steps at once, and the far simulator runs and confirms each step behind it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

import gymnasium
import numpy as np

from remote_env.env import RemoteEnv
from remote_env.errors import (
    ConfigError,
    DeadlineExceeded,
    InputError,
    PredictionMismatch,
    RemoteEnvError,
    ReplayError,
    SessionLost,
    TaskError,
    Unsupported,
)
from remote_env.prediction.differences import Difference, compare, compare_resets, compare_states
from remote_env.prediction.following import ChunkByChunk, Following, StepByStep
from remote_env.prediction.statistics import Statistics
from remote_env.prediction.twin import TwinScene
from remote_env.protocol.chunks import MAX_STEPS
from remote_env.protocol.stacking import copied
from remote_env.protocol.vector_step import Transition
from remote_env.state import SceneState

log = logging.getLogger("remote_env")

VERIFICATIONS: dict[str, type[Following]] = {"every": StepByStep, "chunk": ChunkByChunk}
_CANNOT_BE_SET = (Unsupported, ReplayError, InputError, TaskError)
_CLOSED = "this environment is closed; make a new one"
_SEED_LIMIT = 2**31


class PredictiveEnv(gymnasium.Env[Any, Any]):
    """Steps a local twin at once and returns its prediction, while the remote runs the same steps behind it.

        remote = RemoteEnv("user@box", env="remote_env/AlohaTransferCube-v0")
        with PredictiveEnv(remote, gymnasium.make("remote_env/AlohaTransferCube-v0")) as env:
            observation, info = env.reset(seed=0)

    Nothing false stays unnoticed: each transition is compared with the remote's own, the end of an episode before it is
    handed out. For a twin that computes the same numbers (the same task, MuJoCo and seed) what is returned is the
    remote's trajectory, bit for bit, and a step costs no round trip.

    On a difference beyond `tolerance` the next call (the call itself, where an episode ends) raises
    `PredictionMismatch`: which step of the episode it was, what differs by how much, and what really came from there
    on. By then the remote has run every step that was taken; an action given to the call that raises was not sent,
    unless it is the one that ended the episode. The twin is put into the remote's state, and the episode goes on with
    the next `step`. Where the remote's episode has ended, or the twin has no scene state to be put into, `reset` must
    come next.

    A reset is the remote's, and costs a round trip. Both get the same seed; where the twin starts elsewhere
    nevertheless, it is put into the remote's state.

    Args:
        remote: the environment that counts. It may leave out keys of a Dict observation (`observation_keys=`), such as
            images: the twin's own are handed out then, and not compared. With `capture_state=True` the scenes are
            compared as well, which images are drawn from.
        twin: of this process, wrapped as the remote's task is; closed with this.
        verify: "every": each step is sent as it is predicted, and compared when its result has come. "chunk": `window`
            steps are collected, then run in one request, which costs the fewest messages, and a round trip each time.
        window: the most steps to be ahead, before one waits; None: as many as the session allows, of "chunk" 64.
        tolerance: how far numbers of observations, rewards and infos may differ, in the task's own units. 0: not by a
            bit. Flags, texts and shapes are always to be equal.

    Attributes:
        remote: as given.
        twin: as given.
        statistics: see `Statistics`.

    Raises:
        ConfigError: an argument is none.
    """

    def __init__(
        self,
        remote: RemoteEnv,
        twin: gymnasium.Env[Any, Any],
        *,
        verify: str = "every",
        window: int | None = None,
        tolerance: float = 0.0,
    ) -> None:
        _check_arguments(remote, twin, verify, window, tolerance)
        self.remote, self.twin = remote, twin
        self.observation_space, self.action_space = twin.observation_space, twin.action_space
        self.metadata, self.render_mode = twin.metadata, twin.render_mode
        self.statistics = Statistics()
        self._scene = TwinScene(twin)
        self._verify, self._window, self._tolerance = verify, window, float(tolerance)
        self._following: Following | None = None
        # Predicted and not confirmed: the number of each step, the transition, or what the twin raised, and the scene.
        self._ahead: deque[tuple[int, Transition | Exception, SceneState | None]] = deque()
        self._steps = 0  # of this episode
        self._must_reset = "no episode has begun"
        self._is_cut_short = self._is_seeded = False

    # The Gymnasium interface

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode on both, as `gymnasium.Env.reset`; the steps before are verified first.

        After an error or an interruption what is left of the episode before is abandoned, not verified.

        Raises:
            ConfigError: the twin's actions are not the remote's.
            PredictionMismatch: a step of the episode before was another, or the twin cannot start where the remote did.
            And as `RemoteEnv.reset`.
        """
        super().reset(seed=seed)
        if not self._is_cut_short:
            self.verify()
        following = self._follow()
        if seed is None and not self._is_seeded:
            seed = int(self.np_random.integers(_SEED_LIMIT))  # of both
        self._abandon("the last reset failed")
        following.forget()
        actual = self.remote.reset(seed=seed, options=options)
        predicted = self.twin.reset(seed=seed, options=options)
        self._steps, self._is_seeded = 0, True
        state = self.remote.get_state() if self.remote.captures_state else None
        found = self._beyond([*compare_resets(predicted, actual), *compare_states(self._predicted_state(), state)])
        if found:
            self._adopt_start(found, predicted[0], actual[0])
        self._must_reset, self._is_cut_short = "", False
        return actual if found else predicted

    def step(self, action: Any) -> Transition:
        """What the twin makes of the action, which the remote runs too; where the episode ends, confirmed by it.

        Raises:
            PredictionMismatch: see the class.
            InputError: there is no episode, or the action is none; nothing was sent.
            And as `RemoteEnv.step`, of this step or one before it: the error's `step` is its number in the episode.
        """
        following = self._episode()
        self._take_what_came(following)
        self._is_cut_short = True  # should anything come between here and the end
        self._send(following, action)
        transition = self._predict(action)
        self._note(copied(transition))
        self._is_cut_short = False
        if transition[2] or transition[3]:
            self.verify()
            self._must_reset = "the episode has ended"
        return transition

    def verify(self) -> None:
        """Wait until the remote has run and confirmed every step that was taken.

        Raises:
            PredictionMismatch: it did otherwise; see the class.
            And as `RemoteEnv.step`.
        """
        if self._ahead:
            self._wait_while(lambda: bool(self._ahead))

    def render(self) -> Any:
        """What the twin renders."""
        return self.twin.render()

    def get_state(self, *, native: bool = False) -> SceneState:
        """The twin's scene now, which costs no round trip.

        Raises:
            Unsupported: the twin has no scene state.
        """
        return self._scene.read(native=native)

    def set_state(self, state: SceneState) -> None:
        """Put both into a state, once every step is verified.

        Raises:
            As `verify`, and as `RemoteEnv.set_state`.
        """
        self._episode()
        self.verify()
        self.remote.set_state(state)
        self._scene.write(state)

    def close(self) -> None:
        """Close both. Steps that are not confirmed stay so, and the log says how many; `with` verifies them first."""
        if self._ahead:
            log.warning("closed with %d predicted steps that the remote has not confirmed", len(self._ahead))
        self._abandon(_CLOSED)
        try:
            self.twin.close()
        finally:
            self.remote.close()

    def __exit__(self, *error: Any) -> Literal[False]:
        try:
            if error[0] is None and not self._is_cut_short:
                self.verify()
        finally:
            self.close()
        return False

    @property
    def ahead(self) -> int:
        """How many steps are not confirmed yet."""
        return len(self._ahead)

    # An episode

    def _follow(self) -> Following:
        """How the remote follows; made when it is known what that takes."""
        if self._following is None:
            if self.remote.action_space != self.action_space:
                raise ConfigError(
                    f"the twin takes actions of {self.action_space}, and the remote of {self.remote.action_space}; the "
                    "twin has to be the same task, made with the same arguments"
                )
            self._following = VERIFICATIONS[self._verify](self.remote, self._window)
        return self._following

    def _episode(self) -> Following:
        if self._is_cut_short:
            raise InputError("the last call was cut short, and what ran of it is not known; call reset()")
        if self._must_reset == _CLOSED:
            raise ConfigError(_CLOSED)
        if self._must_reset or self._following is None:
            raise InputError(f"{self._must_reset}; call reset()")
        return self._following

    def _abandon(self, why: str) -> None:
        self._ahead.clear()
        self._must_reset = why

    def _adopt_start(self, found: list[Difference], predicted: Any, actual: Any) -> None:
        """Have the twin start where the remote did."""
        why = "the remote does not bring all that the twin shows" if _lacks(actual, predicted) else ""
        why = why or self._put_twin_right()
        if why:
            self._tell(0, found, [], why)
        self.statistics.resets_adopted += 1

    # A step

    def _send(self, following: Following, action: Any) -> None:
        try:
            following.send(action)
        except InputError:
            self._is_cut_short = False  # nothing was sent
            raise

    def _predict(self, action: Any) -> Transition:
        try:
            return self.twin.step(action)
        except Exception as error:
            self._note(error)
            self._is_cut_short = False
            self.verify()  # which raises what the remote raised, or that it did not
            raise

    def _note(self, prediction: Transition | Exception) -> None:
        self._steps += 1
        self._ahead.append((self._steps, prediction, self._predicted_state()))
        self.statistics.steps += 1
        self.statistics.most_ahead = max(self.statistics.most_ahead, len(self._ahead))

    def _take_what_came(self, following: Following) -> None:
        """Compare what has come meanwhile; wait only where no more steps may be ahead."""
        while following.is_due(len(self._ahead)):
            if following.must_wait(len(self._ahead)):
                self._wait_while(lambda: following.must_wait(len(self._ahead)))
            else:
                self._take_one()

    def _wait_while(self, condition: Any) -> None:
        began = time.perf_counter()
        try:
            while condition():
                self._take_one()
        finally:
            self.statistics.waits += 1
            self.statistics.waited_s += time.perf_counter() - began

    def _predicted_state(self) -> SceneState | None:
        """The twin's scene, where there is another to compare it with."""
        if not self.remote.captures_state:
            return None
        try:
            return self._scene.read()
        except Unsupported:
            return None

    # What the remote did

    def _take_one(self) -> None:
        """Compare the first step that is not confirmed with what the remote made of it."""
        assert self._following is not None  # noqa: S101  there is one where steps are
        number, predicted, state = self._ahead[0]
        try:
            actual = self._following.take()
        except (DeadlineExceeded, KeyboardInterrupt):
            self._is_cut_short = not self._following.can_wait_again
            raise
        except RemoteEnvError as error:
            self._fail(number, error)
        self._ahead.popleft()
        found = _twin_raised(predicted) if isinstance(predicted, Exception) else compare(predicted, actual)
        found += compare_states(state, self._following.state)
        if beyond := self._beyond(found):
            self._correct(number, beyond, actual)
        self.statistics.verified += 1
        for difference in found:
            self.statistics.largest_difference = max(self.statistics.largest_difference, difference.size)

    def _beyond(self, found: list[Difference]) -> list[Difference]:
        """Those that are not allowed."""
        return [each for each in found if each.size > self._tolerance or not self._tolerance]

    def _correct(self, number: int, found: list[Difference], actual: Transition) -> NoReturn:
        """Have the twin where the remote is by now, and tell."""
        others, failure = self._drain()
        came = [actual, *others]
        self._steps = number + len(others)
        if came[-1][2] or came[-1][3]:
            why = "the episode has ended there"
        elif failure is not None:
            why = f"the step after the {len(came)} that are known failed ({failure})"
        else:
            why = self._put_twin_right()
        self._tell(number, found, came, why)

    def _tell(self, number: int, found: list[Difference], came: list[Transition], why: str) -> NoReturn:
        self.statistics.mismatches += 1
        self._abandon(why)
        what = "; ".join(map(str, found[:4])) + ("; …" if len(found) > 4 else "")
        then = f"{why}: call reset()" if why else "the twin is in the remote's state now, from which step() goes on"
        raise PredictionMismatch(
            f"the remote did not do in step {number} what was predicted: {what} (allowed: {self._tolerance:g}). It has "
            f"run {self._steps} steps of this episode; {then}",
            step=number,
            differences=found,
            transitions=came,
            steps=self._steps,
            must_reset=bool(why),
        )

    def _fail(self, number: int, error: RemoteEnvError) -> NoReturn:
        """The remote raised in this step; those behind it did not run."""
        self._steps = number - 1
        if not isinstance(error, (TaskError, InputError)):
            self._abandon("the remote failed" if not isinstance(error, SessionLost) else "the remote's episode is gone")
        else:
            self._ahead.popleft()
            self._drain()
            self._must_reset = self._put_twin_right()
        error.step = number  # type: ignore[attr-defined]
        raise error

    def _drain(self) -> tuple[list[Transition], RemoteEnvError | None]:
        """What became of all steps that are not confirmed."""
        assert self._following is not None  # noqa: S101  there is one where steps are
        count = len(self._ahead)
        self._is_cut_short = True
        self._ahead.clear()
        result = self._following.drain(count)
        self._is_cut_short = False
        return result

    def _put_twin_right(self) -> str:
        """Put the twin into the remote's state; why that cannot be done, or ""."""
        self._is_cut_short, why = True, ""
        try:
            self._scene.write(self.remote.get_state(native=True))
        except _CANNOT_BE_SET as error:
            why = f"the twin cannot be put into the remote's state ({error})"
        self._is_cut_short = False
        return why


def _twin_raised(error: Exception) -> list[Difference]:
    return [Difference("the step", float(np.inf), error, "no error")]


def _lacks(actual: Any, predicted: Any) -> bool:
    """Whether an observation has not all the keys of another."""
    if not isinstance(actual, Mapping) or not isinstance(predicted, Mapping):
        return False
    return any(key not in actual or _lacks(actual[key], value) for key, value in predicted.items())


def _check_arguments(remote: Any, twin: Any, verify: str, window: int | None, tolerance: float) -> None:
    if not isinstance(remote, RemoteEnv):
        raise ConfigError(
            f"remote is a {type(remote).__name__}; give the RemoteEnv itself (the `unwrapped` of what gymnasium.make "
            "returns), and wrap the PredictiveEnv"
        )
    if not isinstance(twin, gymnasium.Env):
        raise ConfigError(f"twin is a {type(twin).__name__}; give the environment itself: gymnasium.make(…)")
    if verify not in VERIFICATIONS:
        raise ConfigError(f"verify={verify!r}: allowed are {', '.join(map(repr, VERIFICATIONS))}")
    if window is not None and (not isinstance(window, int) or not 1 <= window <= MAX_STEPS):
        raise ConfigError(f"window={window!r}: the most steps to be ahead, 1 to {MAX_STEPS}, or None")
    if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < np.inf:
        raise ConfigError(f"tolerance={tolerance!r}: a number from 0 on, in the units of the task")
