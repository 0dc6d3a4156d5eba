"""A simulator that behaves like a large one: it takes its time, talks much, holds the interpreter, dies; all on demand.

What it is to do is a *plan*: deeds joined by ";", done in order. `perform` lists them; any other is one of
`misbehaving.die` ("raise", "exit", "segv", "kill", "sleep", "hold-gil", "until:<path>").
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from tasks_for_tests.misbehaving import die

CUDA_LINE = "RuntimeError: CUDA error: an illegal memory access was encountered (printed by a test, nothing happened)"
ACTIONS = ("", "raise", "exit", "segv", "kill", "sleep", "hold-gil")
LIVES_LONG = "import time; time.sleep(300)"


def perform(plan: str) -> None:
    """Do all that a plan says."""
    for deed in filter(None, plan.split(";")):
        name, _, argument = deed.partition(":")
        if name in DEEDS:
            DEEDS[name](argument)
        else:
            die(deed)


def say(text: str) -> None:
    """Print a line."""
    print(text, flush=True)


def talk(count: str) -> None:
    """As many different lines as Kit prints when it loads its extensions."""
    for number in range(int(count)):
        say(f"[{number / 100:.3f}s] [ext: omni.kit.extension_{number}-1.0.{number}] startup")


def repeat(count: str) -> None:
    """The same line again and again, but for its time stamp."""
    for number in range(int(count)):
        say(f"2025-06-30T21:31:42Z [{number},468ms] [Warning] [omni.usd] the stage is dirty")


def draw_bar(count: str) -> None:
    """A progress bar that draws itself anew, without an end of its line until it is full."""
    for number in range(int(count) + 1):
        print(f"\rloading: {100 * number // int(count):3d}%|{'#' * number}", end="", flush=True)
    say("")


def hold_interpreter(seconds: str) -> None:
    """Sleep in native code without letting go of the interpreter."""
    ctypes.PyDLL(None).usleep(int(float(seconds) * 1e6))


def start_session(path: str) -> None:
    """Start a process in a session of its own that never ends by itself; its number is written to `path`."""
    child = subprocess.Popen([sys.executable, "-c", LIVES_LONG], start_new_session=True)
    Path(path).write_text(str(child.pid))


def start_daemon(path: str) -> None:
    """The same, by a parent that ends: it is orphaned, and has no number of its parents in its environment."""
    starter = (
        "import pathlib, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {LIVES_LONG!r}], start_new_session=True, env={{}})\n"
        f"pathlib.Path({path!r}).write_text(str(child.pid))"
    )
    subprocess.run([sys.executable, "-c", starter], check=True, start_new_session=True)


def start_short_daemons(count: str) -> None:
    """As many processes that are orphaned and end at once."""
    for _ in range(int(count)):
        if not (child := os.fork()):
            os.setsid()
            os.fork()
            os._exit(0)
        os.waitpid(child, 0)


DEEDS: dict[str, Callable[[str], Any]] = {
    "say": say,
    "talk": talk,
    "repeat": repeat,
    "bar": draw_bar,
    "cuda": lambda _: say(CUDA_LINE),
    "touch": lambda path: Path(path).touch(),
    "wait": lambda seconds: time.sleep(float(seconds)),
    "hold": hold_interpreter,
    "eat": lambda mebibytes: bytearray(b"x") * (int(mebibytes) << 20),
    "session": start_session,
    "daemon": start_daemon,
    "daemons": start_short_daemons,
}


class Slow(gymnasium.Env[Any, Any]):
    """Counts its steps, and does what its plans say.

    Args:
        build: the plan of its construction.
        close: the plan of its end.
    """

    observation_space = spaces.Box(-1e9, 1e9, (2,), np.float64)
    action_space = spaces.Discrete(len(ACTIONS))
    remote_calls = ("plan", "perform")

    def __init__(self, build: str = "", close: str = "", render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._close, self._next, self._steps = close, "", 0
        perform(build)

    def plan(self, plan: str) -> None:
        """What the next step is to do."""
        self._next = plan

    def perform(self, plan: str) -> None:
        """Do it now."""
        perform(plan)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`; options["plan"] is done."""
        super().reset(seed=seed)
        perform((options or {}).get("plan", ""))
        return np.array([-1.0, self._steps]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`; does what was planned, then what the action's number in ACTIONS says."""
        plan, self._next = self._next, ""
        self._steps += 1
        perform(plan)
        perform(ACTIONS[int(action)])
        return np.array([float(action), self._steps]), 1.0, False, False, {}

    def close(self) -> None:
        """See `gymnasium.Env.close`."""
        perform(self._close)
