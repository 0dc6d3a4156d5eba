"""The doctor's last test: a whole episode of a small task over there, compared bit by bit with the same one here."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from remote_env.cli.rows import FAIL, OK, WARN, Row, Where
from remote_env.cli.show import one_line
from remote_env.env import RemoteEnv
from remote_env.errors import RemoteEnvError

TASK, STEPS, SEED = "CartPole-v1", 100, 7
START_TIMEOUT_S, CALL_TIMEOUT_S = 120.0, 20.0
IDLE_TIMEOUT_S = 30.0  # should we be killed


class RememberingAsk:
    """Asks for a login's secrets, and can answer a second login as the first was answered.

    Args:
        ask: asks a person; None when there is nobody.
    """

    def __init__(self, ask: Callable[[Any], str | None] | None) -> None:
        self._ask = ask
        self._given: dict[tuple[str, str, str], str | None] = {}
        self._ready: dict[tuple[str, str, str], str | None] = {}

    def __call__(self, prompt: Any) -> str | None:
        """The secret; None when nobody knows it."""
        key = (prompt.target, prompt.kind, prompt.text)
        answer = self._ready.pop(key, None)
        if answer is None and self._ask is not None:
            answer = self._ask(prompt)
        if prompt.kind != "keyboard-interactive":  # such as one-time codes, of which a second one is due
            self._given[key] = answer
        return answer

    def reuse(self) -> None:
        """From now on give each answer that was right once more before asking again."""
        self._ready = dict(self._given)


def self_test_row(where: Where, arguments: dict[str, Any], tell: Callable[[str], None]) -> Row:
    """Start a server, run a short episode, close; how fast, and whether its numbers are ours.

    Args:
        where: the machine.
        arguments: of `RemoteEnv`: how to reach it.
        tell: told what happens.
    """
    try:
        return _judge(*_run_both(arguments, tell))
    except RemoteEnvError as error:
        lines = str(error).strip().splitlines()
        log = [one_line(line) for line in str(getattr(error, "log_tail", "")).splitlines()[-5:] if line.strip()]
        found = "\n".join([*lines[:12], *(line for line in log if line not in str(error))])
        look = where.inside(f'{where.python} -X faulthandler -c "import numpy, gymnasium"')
        return Row("self-test", FAIL, found, f"{look}   # what does it say there?")


def _run_both(arguments: dict[str, Any], tell: Callable[[str], None]) -> tuple[float, float, bool, str]:
    """Seconds to start, seconds for the steps, whether all numbers were equal, and what else runs there."""
    began = time.monotonic()
    remote = RemoteEnv(
        env=TASK,
        start_timeout_s=START_TIMEOUT_S,
        reset_timeout_s=CALL_TIMEOUT_S,
        step_timeout_s=CALL_TIMEOUT_S,
        idle_timeout_s=IDLE_TIMEOUT_S,
        progress=False,
        on_progress=lambda text: tell(f"self-test: {text}"),
        **arguments,
    )
    with remote, gymnasium.make(TASK) as local:
        theirs = [remote.reset(seed=SEED)[0]]
        started_s = time.monotonic() - began
        actions = np.random.default_rng(SEED).integers(0, 2, STEPS)
        began = time.monotonic()
        theirs += [_step(remote, action) for action in actions]
        stepped_s = time.monotonic() - began
        ours = [local.reset(seed=SEED)[0], *(_step(local, action) for action in actions)]
        facts = remote.facts
    equal = all(one.tobytes() == other.tobytes() for one, other in zip(theirs, ours, strict=True))
    return started_s, stepped_s, equal, f"numpy {facts.get('numpy')}, gymnasium {facts.get('gymnasium')}"


def _step(env: Any, action: np.integer[Any]) -> Any:
    observation, _, terminated, truncated, _ = env.step(action)
    if terminated or truncated:
        observation, _ = env.reset(seed=SEED)
    return observation


def _judge(started_s: float, stepped_s: float, equal: bool, facts: str) -> Row:
    rate = f"{TASK} started in {started_s:.1f} s, {STEPS / stepped_s:.0f} steps/s"
    if equal:
        return Row("self-test", OK, f"{rate}, bit-equal to this machine, closed")
    ours = f"numpy {np.__version__}, gymnasium {gymnasium.__version__}"
    found = f"{rate}, closed; its numbers differ from this machine's: {facts} there, {ours} here"
    return Row(
        "self-test", WARN, found, "install equal versions there and here; bit-equality needs the same kind of CPU too"
    )
