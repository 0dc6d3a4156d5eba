"""Playback: which state of which episode is shown when. Pure: keys and clock readings in, indices and words out.

The clock is a number of seconds that the caller reads; nothing here waits or draws.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import numpy as np

from remote_env.errors import InputError
from remote_env.state import Floats

SLOWEST, FASTEST = 1 / 64, 64.0
JUMP_S = 1.0  # simulated


class Key(enum.IntEnum):
    """Keys that MuJoCo's viewer leaves free, by their GLFW codes."""

    SPACE = 32
    COMMA = 44
    PERIOD = 46
    SLASH = 47
    RIGHT = 262
    LEFT = 263
    DOWN = 264
    UP = 265
    PAGE_UP = 266
    PAGE_DOWN = 267
    HOME = 268
    END = 269


HELP = (
    ("Space", "pause, play"),
    ("Left, Right", "one state"),
    ("Down, Up", f"{JUMP_S:g} s"),
    ("Home, End", "first, last state"),
    (", .", "half, double speed"),
    ("Page Up, Down", "episode"),
    ("[ ] Esc", "cameras"),
    ("/", "hide this"),
)


class Playback:
    """Where a playback of several episodes stands.

    Args:
        episodes: how many there are.
        episode: which one to begin with, from 0.
        speed: simulated seconds per second.
        paused: whether to stand still at first.

    Attributes:
        episode: the one to show; when it changes, the caller gives its times to `begin`.
        speed: as above.
        paused: whether it stands still.
        shows_help: whether the caller shows `HELP`.

    Raises:
        InputError: there is no such episode, or the speed is out of bounds.
    """

    def __init__(self, episodes: int, *, episode: int = 0, speed: float = 1.0, paused: bool = False) -> None:
        if not 0 <= episode < episodes:
            raise InputError(f"there is no episode {episode}; there are {episodes}, numbered from 0")
        if not SLOWEST <= speed <= FASTEST:
            raise InputError(f"speed={speed!r}: a number from 1/{1 / SLOWEST:g} to {FASTEST:g}; 1 is real time")
        self.episodes, self.episode = episodes, episode
        self.speed, self.paused = float(speed), paused
        self.shows_help = True
        self._times_s: Floats = np.zeros(1)
        self._at_s = 0.0
        self._clock_s: float | None = None
        self._actions: dict[int, Callable[[], None]] = {
            Key.SPACE: self._toggle,
            Key.RIGHT: lambda: self._step(1),
            Key.LEFT: lambda: self._step(-1),
            Key.UP: lambda: self._go_to(self._at_s + JUMP_S),
            Key.DOWN: lambda: self._go_to(self._at_s - JUMP_S),
            Key.HOME: lambda: self._go_to(0.0),
            Key.END: lambda: self._go_to(self.length_s),
            Key.PERIOD: lambda: self._change_speed(2.0),
            Key.COMMA: lambda: self._change_speed(0.5),
            Key.PAGE_DOWN: lambda: self._change_episode(1),
            Key.PAGE_UP: lambda: self._change_episode(-1),
            Key.SLASH: self._toggle_help,
        }

    def begin(self, times_s: Floats) -> None:
        """Go to the first state of the episode whose states have these times.

        Args:
            times_s: (T,) ascending simulated seconds, of any origin.

        Raises:
            InputError: there are none, or they do not ascend.
        """
        if not len(times_s) or (np.diff(times_s) <= 0).any():
            raise InputError(f"the times of {len(times_s)} states do not ascend")
        self._times_s = np.asarray(times_s, np.float64) - times_s[0]
        self._at_s = 0.0

    @property
    def states(self) -> int:
        """How many states the episode has."""
        return len(self._times_s)

    @property
    def length_s(self) -> float:
        """Simulated seconds from the first state to the last."""
        return float(self._times_s[-1])

    @property
    def at_s(self) -> float:
        """Simulated seconds since the first state."""
        return self._at_s

    @property
    def index(self) -> int:
        """Of the state to show: the last one whose time has come."""
        return max(int(np.searchsorted(self._times_s, self._at_s + 1e-9, side="right")) - 1, 0)

    def advance(self, clock_s: float) -> None:
        """The clock shows `clock_s` [s]: move on by what passed since the last call; pause at the end."""
        passed_s = 0.0 if self._clock_s is None else max(clock_s - self._clock_s, 0.0)
        self._clock_s = clock_s
        if self.paused:
            return
        self._at_s = min(self._at_s + passed_s * self.speed, self.length_s)
        self.paused = self._at_s >= self.length_s

    def press(self, key: int) -> bool:
        """Do what `key` (a GLFW code) asks; whether it means anything here."""
        action = self._actions.get(key)
        if action is None:
            return False
        action()
        return True

    @property
    def status(self) -> tuple[tuple[str, str], ...]:
        """Rows of what to show beside the scene."""
        speed = f"{self.speed:g} x" if self.speed >= 1 else f"1/{1 / self.speed:g} x"
        return (
            ("episode", f"{self.episode + 1} / {self.episodes}"),
            ("state", f"{self.index} / {self.states - 1}"),
            ("time", f"{self._at_s:.2f} / {self.length_s:.2f} s"),
            ("speed", f"{speed}{', paused' if self.paused else ''}"),
        )

    def _toggle(self) -> None:
        if self.paused and self._at_s >= self.length_s:
            self._at_s = 0.0  # once more
        self.paused = not self.paused

    def _toggle_help(self) -> None:
        self.shows_help = not self.shows_help

    def _step(self, states: int) -> None:
        self.paused = True
        self._at_s = float(self._times_s[min(max(self.index + states, 0), self.states - 1)])

    def _go_to(self, at_s: float) -> None:
        self._at_s = min(max(at_s, 0.0), self.length_s)

    def _change_speed(self, factor: float) -> None:
        self.speed = min(max(self.speed * factor, SLOWEST), FASTEST)

    def _change_episode(self, by: int) -> None:
        self.episode = (self.episode + by) % self.episodes
