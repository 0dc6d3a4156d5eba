"""SimulatedAloha: not a robot, but a simulation of one behind LeRobot's robot interface, in real time.

It runs the bundled ALOHA task in a process of its own, where time goes on whether or not anybody acts: an action that
comes late is late. Use it to try a policy and its link before a robot is at hand. Beside joints it "senses" the poses
of the objects, which on a real table something else has to see.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

ANSWER_TIMEOUT_S = 30.0  # its process has MuJoCo to load first
ENDING_S = 5.0


class SimulatedAloha:
    """A simulated pair of ViperX arms with a cube before them.

    Args:
        task: "transfer_cube" or "insertion".
        rate_hz: of its controller: so often it takes up the latest action [Hz].

    Attributes:
        observation_features: each number that it senses, by name.
        action_features: each number of an action, by name.
    """

    name = "simulated_aloha"

    def __init__(self, task: str = "transfer_cube", rate_hz: float = 50.0) -> None:
        from remote_env.tasks.aloha import AlohaEnv
        from remote_env.tasks.aloha_model import ACTION_NAMES

        self._task, self._rate_hz = task, rate_hz
        names = AlohaEnv(task, obs_type="state").state_names
        self._keys = tuple(f"{name}.pos" if name in ACTION_NAMES else name for name in names)
        self.observation_features: dict[str, Any] = dict.fromkeys(self._keys, float)
        self._action_keys = tuple(f"{name}.pos" for name in ACTION_NAMES)
        self.action_features: dict[str, Any] = dict.fromkeys(self._action_keys, float)
        self._process: Any = None
        self._pipe: Connection | None = None

    @property
    def is_connected(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.is_alive()

    def connect(self, calibrate: bool = True) -> None:  # noqa: ARG002  a simulation needs none
        """Start it, at rest in its start pose."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_simulate, args=(theirs, self._task, self._rate_hz), name="simulated robot", daemon=True
        )
        self._process.start()
        theirs.close()
        self._ask("observe")

    def reset(self, seed: int | None = None) -> None:
        """Put the arms into their start pose and the objects somewhere, as `seed` says."""
        self._ask("reset", seed)

    def get_observation(self) -> dict[str, float]:
        """What it senses now."""
        values, _ = self._ask("observe")
        return dict(zip(self._keys, values, strict=True))

    def send_action(self, action: Mapping[str, float]) -> Mapping[str, float]:
        """Give it targets, which hold until the next ones; what was given."""
        self._send("act", [float(action[key]) for key in self._action_keys])
        return action

    def is_success(self) -> bool:
        """Whether the task has been done since the last reset."""
        _, success = self._ask("observe")
        return bool(success)

    def disconnect(self) -> None:
        """End it; may be called again."""
        pipe, self._pipe = self._pipe, None
        process, self._process = self._process, None
        if pipe is not None:
            pipe.close()
        if process is None:
            return
        process.join(ENDING_S)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()

    def _send(self, name: str, value: Any = None) -> None:
        if self._pipe is None:
            raise RuntimeError("the simulated robot is not connected; call connect() first")
        self._pipe.send((name, value))

    def _ask(self, name: str, value: Any = None) -> Any:
        self._send(name, value)
        assert self._pipe is not None  # noqa: S101  _send looked
        if not self._pipe.poll(ANSWER_TIMEOUT_S):
            raise TimeoutError(f"the simulated robot did not answer {name!r} within {ANSWER_TIMEOUT_S:g} s")
        return self._pipe.recv()


def _simulate(pipe: Connection, task: str, rate_hz: float) -> None:
    """The robot's process: the physics in step with the clock, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program, which disconnects us
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _Simulation(task, rate_hz).run(pipe)


class _Simulation:
    def __init__(self, task: str, rate_hz: float) -> None:
        from remote_env.tasks.aloha import AlohaEnv

        self._period_s = 1 / rate_hz
        self._env = AlohaEnv(task, obs_type="state", end_on_success=False)
        self._reset(None)

    def _reset(self, seed: int | None) -> None:
        self._state, _ = self._env.reset(seed=seed)
        self._target = self._state[: self._env.action_space.shape[0]].copy()  # type: ignore[index]
        self._success = False

    def run(self, pipe: Connection) -> None:
        due = time.monotonic() + self._period_s
        while True:
            while pipe.poll(max(due - time.monotonic(), 0.0)):
                self._answer(pipe, *pipe.recv())
            self._state, _, _, _, info = self._env.step(self._target)
            self._success = self._success or info["is_success"]
            due = max(due + self._period_s, time.monotonic() - self._period_s)

    def _answer(self, pipe: Connection, name: str, value: Any) -> None:
        if name == "act":
            self._target[:] = value
            return
        if name == "reset":
            self._reset(value)
        pipe.send((self._state.tolist(), self._success))
