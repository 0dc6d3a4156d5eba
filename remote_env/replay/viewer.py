"""Watch captures in MuJoCo's own viewer: pause, scrub, speed, choice of the episode."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from remote_env.errors import ReplayError
from remote_env.record import Episode, read_episode
from remote_env.replay.mapping import MappingLike
from remote_env.replay.playback import HELP, Playback
from remote_env.replay.replayer import Model, Replayer
from remote_env.replay.window import Window
from remote_env.state import Floats, SceneDescription, SceneState

RATE_HZ = 60.0  # at which the window is told of changes

Capture: TypeAlias = "Episode | str | os.PathLike[str]"


def view(
    captures: Capture | Sequence[Capture],
    model: Model,
    *,
    mapping: MappingLike = None,
    description: SceneDescription | None = None,
    episode: int = 0,
    speed: float = 1.0,
    start_paused: bool = False,
) -> None:
    """Show captures in a window until that is closed, or Ctrl-C is pressed.

    Keys are shown in the window, and hidden by "/": Space pauses, Left and Right go by one state, Up and Down by 1 s,
    Home and End to the first and last state, comma and period halve and double the speed, Page Up and Page Down
    choose the episode. The mouse, the brackets and Esc move the camera, as ever in MuJoCo's viewer.

    Args:
        captures: one or several: an episode, the path of its `.hdf5` or `.part`, or a folder of such.
        model: as `load_model` takes it; "capture" is made from the first episode's own description.
        mapping: from the capture's names to the model's; as `Replayer` takes it.
        description: of the scene; by default the first episode's own.
        episode: which one to begin with, from 0.
        speed: simulated seconds per second, from 1/64 to 64.
        start_paused: stand at the first state until Space is pressed.

    Raises:
        ConfigError: no window can be opened here, such as without a display, or on macOS without `mjpython`.
        CaptureError: a capture is damaged.
        ReplayError: there is no capture, or one holds no states, or does not fit the model.
        InputError: there is no such episode, or the speed is out of bounds.
    """
    shelf = _Shelf(captures)
    playback = Playback(len(shelf), episode=episode, speed=speed, paused=start_paused)
    if description is None:
        description = shelf.open(0).description
    with Replayer(model, mapping=mapping, description=description) as replayer:
        show = _Show(shelf, playback, replayer)
        with Window(replayer.model, replayer.data) as window, contextlib.suppress(KeyboardInterrupt):
            show.run(window)


class _Shelf:
    """The captures, each read when it is first wanted."""

    def __init__(self, captures: Capture | Sequence[Capture]) -> None:
        given = [captures] if isinstance(captures, (Episode, str, os.PathLike)) else list(captures)
        self._captures = [found for capture in given for found in _expanded(capture)]
        if not self._captures:
            raise ReplayError(f"there is no capture in {captures!r}; give .hdf5 files, or folders of them")
        self._at = -1
        self._open: Episode | None = None

    def __len__(self) -> int:
        return len(self._captures)

    def name(self, number: int) -> str:
        """What to call it."""
        capture = self._captures[number]
        return f"episode {number}" if isinstance(capture, Episode) else Path(capture).name

    def open(self, number: int) -> Episode:
        """The episode, with states in it."""
        if self._open is None or self._at != number:
            capture = self._captures[number]
            episode = capture if isinstance(capture, Episode) else read_episode(capture, images=False)
            if episode.layout is None or episode.scene_values is None or not len(episode.scene_values):
                raise ReplayError(
                    f"{self.name(number)} holds no scene states; capture them: record(..., state=env.get_state())"
                )
            self._at, self._open = number, episode
        return self._open


def _expanded(capture: Capture) -> Iterable[Capture]:
    if isinstance(capture, Episode) or not Path(capture).is_dir():
        return [capture]
    return sorted(path for path in Path(capture).iterdir() if path.suffix == ".hdf5")


class _Show:
    """One run of the viewer: what the playback says goes into the replayer's model."""

    def __init__(self, shelf: _Shelf, playback: Playback, replayer: Replayer) -> None:
        self._shelf, self._playback, self._replayer = shelf, playback, replayer
        self._episode = self._load()
        self._place()  # before a window opens: does it fit?

    def run(self, window: Window) -> None:
        """Until the window is closed."""
        next_s = time.monotonic()
        while window.is_open:
            now_s = time.monotonic()
            self._advance(now_s, window.pressed())
            with window.lock():
                self._place()
            window.update(HELP if self._playback.shows_help else (), self._status())
            next_s = max(next_s + 1 / RATE_HZ, now_s)
            time.sleep(max(next_s - time.monotonic(), 0.0))

    def _advance(self, now_s: float, keys: Iterable[int]) -> None:
        self._playback.advance(now_s)  # first: what passed so far passed before the keys
        for key in keys:
            episode = self._playback.episode
            self._playback.press(key)
            if self._playback.episode != episode:
                self._episode = self._load()

    def _load(self) -> Episode:
        episode = self._shelf.open(self._playback.episode)
        self._playback.begin(_times(episode))
        return episode

    def _place(self) -> None:
        """Put the model into the state; each time, since whoever plays with the viewer's controls moves it."""
        episode, index = self._episode, self._playback.index
        assert episode.layout is not None and episode.scene_values is not None  # noqa: S101, PT018  _Shelf saw them
        state = SceneState(episode.layout, np.asarray(episode.scene_values[index], np.float64))
        self._replayer.set_state(state, index=index)
        self._replayer.make_drawable()

    def _status(self) -> tuple[tuple[str, str], ...]:
        episode, index = self._episode, self._playback.index
        rows = (("", self._shelf.name(self._playback.episode)), *self._playback.status)
        if not 0 < index <= len(episode.rewards):
            return rows
        rows += (("reward", f"{episode.rewards[index - 1]:g}"),)
        success = episode.infos[index].get("is_success") if index < len(episode.infos) else None
        return rows if success is None else (*rows, ("success", "yes" if success else "no"))


def _times(episode: Episode) -> Floats:
    """When each state was [s]: by its own clock where that ascends, else by the capture's rate."""
    assert episode.scene_values is not None  # noqa: S101  _Shelf saw it
    times: Floats = np.asarray(episode.scene_values[:, 0], np.float64)
    if np.isfinite(times).all() and (np.diff(times) > 0).all():
        return times
    return np.arange(len(times)) / episode.info.rate_hz
