"""Mirror: a local model that follows a scene elsewhere while it moves, at its own frame rate.

In use:

    with Mirror("model.xml", rate_hz=30) as mirror:
        mirror.begin(state)  # of each episode's start: does it fit?
        mirror.show(state)  # of each step: one reference is handed over
        image = mirror.frame()
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, TypeAlias

import mujoco

from remote_env.errors import ConfigError, DeadlineExceeded, RemoteEnvError
from remote_env.render import Quality
from remote_env.replay.cameras import tile
from remote_env.replay.mapping import MappingLike
from remote_env.replay.replayer import Frame, Model, Replayer
from remote_env.replay.video import save_video
from remote_env.replay.window import Window
from remote_env.state import SceneDescription, SceneState

START_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 30.0  # one frame, of whatever size
MAX_RATE_HZ = 240.0
NICENESS = 10  # whoever steps goes first where processors are scarce

States: TypeAlias = "SceneState | Sequence[SceneState]"

log = logging.getLogger("remote_env")


class Mirror:
    """Follows the newest state that it is shown; states in between are left out.

    A thread renders, with an OpenGL context of its own. It looks for a newer state `rate_hz` times a second; so showing
    one costs an assignment, and never waits. An error in that thread is logged, and raised by the next call of `begin`
    or `frame`.

    Args:
        model: as `Replayer` takes it; likewise `mapping`, `description`, `camera` and `quality`.
        mapping: from the states' names to the model's.
        description: of the scene, for models made from it.
        rate_hz: frames a second, at most.
        width: of each scene's image [pixels].
        height: likewise.
        camera: by name.
        quality: "fast" or "full".

    Raises:
        ReplayError: the model or the mapping cannot be loaded.
        ConfigError: the rate, the size, the camera or the quality is none, or there is no OpenGL.
        DeadlineExceeded: OpenGL has not come up in time.
    """

    def __init__(
        self,
        model: Model,
        *,
        mapping: MappingLike = None,
        description: SceneDescription | None = None,
        rate_hz: float = 30.0,
        width: int = 640,
        height: int = 480,
        camera: str | None = None,
        quality: Quality = "fast",
    ) -> None:
        check_rate(rate_hz)
        if isinstance(model, mujoco.MjModel):
            model = copy.copy(model)  # making a renderer changes it for a moment
        self.rate_hz = float(rate_hz)
        looks: dict[str, Any] = {"width": width, "height": height, "camera": camera, "quality": quality}
        self._replayer = Replayer(model, mapping=mapping, description=description, **looks)
        self._process_id = os.getpid()
        self._newest: tuple[SceneState, ...] = ()
        self._scene = threading.Lock()  # held while the replayer takes a state
        self._rendered = threading.Condition()
        self._frame: Frame | None = None
        self._shown: tuple[SceneState, ...] = ()
        self._frames = 0
        self._error: BaseException | None = None
        self._window: Window | None = None
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="remote-env-mirror")
        self._thread.start()
        self._wait_until_ready()

    def begin(self, states: States) -> None:
        """Follow a scene whose states may be of another layout than before.

        Args:
            states: the first one; or those of several scenes, which are shown in a grid.

        Raises:
            ReplayError: names do not match; all are listed.
            RemoteEnvError: what went wrong since the last call.
        """
        self._raise_error()
        states = _together(states)
        with self._scene:
            for state in states[:1]:
                self._replayer.check_names(state.layout)
        self._newest = states

    def show(self, states: States) -> None:
        """Have these shown next, unless there are newer ones by then; returns at once.

        Their values must not change any more.
        """
        self._newest = _together(states)

    def frame(self, *, timeout_s: float = 10.0) -> Frame:
        """The newest image: (height, width, 3) uint8 RGB, of several scenes a grid of such; not to be changed.

        Raises:
            DeadlineExceeded: there is none yet, and none came within `timeout_s`.
            ConfigError: this mirror is closed.
            RemoteEnvError: what went wrong since the last call.
        """
        with self._rendered:
            self._rendered.wait_for(lambda: self._frame is not None or self._error or self._stop.is_set(), timeout_s)
        self._raise_error()
        if self._frame is None:
            self._check_open()
            raise DeadlineExceeded(f"no frame within {timeout_s:g} s; has the mirror been shown a state?")
        return self._frame

    @property
    def frames_rendered(self) -> int:
        """How many images were made."""
        return self._frames

    @property
    def shown(self) -> tuple[SceneState, ...]:
        """The states in the newest image."""
        return self._shown

    def open_window(self) -> None:
        """Also show the (first) scene in a window of MuJoCo's viewer, until the user closes it.

        Raises:
            ConfigError: no window can be opened here; see `remote_env.replay.view`.
        """
        self._check_open()
        with self._scene:
            if self._window is None:
                self._window = Window(self._replayer.model, self._replayer.data)

    @property
    def has_window(self) -> bool:
        """Whether a window is open."""
        return self._window is not None

    @contextlib.contextmanager
    def save_video(self, path: str | os.PathLike[str]) -> Iterator[None]:
        """Record what is shown, as long as the block lasts: `with mirror.save_video("live.mp4"): …`.

        The video runs as long as the block did, at `rate_hz`: time is the clock's here, not the simulator's.

        Raises:
            As `remote_env.replay.save_video`, at the block's end.
        """
        self.frame()
        block, errors = _Block(), []

        def record() -> None:
            try:
                save_video(path, self._live(block), self.rate_hz)
            except BaseException as error:  # noqa: BLE001  # raised below
                errors.append(error)

        thread = threading.Thread(target=record, name="remote-env-mirror-video")
        thread.start()
        try:
            yield
        finally:
            block.end()
            thread.join()
        if errors:
            raise errors[0]

    def close(self) -> None:
        """End the thread, and free the window and what rendering holds; calling it again does nothing.

        Raises:
            DeadlineExceeded: the thread has not ended; OpenGL hangs.
        """
        if self._process_id != os.getpid():
            return  # a forked child has no such thread
        self._stop.set()
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            raise DeadlineExceeded(f"the mirror's frame has not ended in {CLOSE_TIMEOUT_S:g} s")

    def __enter__(self) -> Mirror:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The thread's

    def _run(self) -> None:
        _yield_to_others()
        with contextlib.ExitStack() as ending:
            ending.callback(self._end)
            ending.callback(self._replayer.close)  # here: an OpenGL context is its thread's
            try:
                self._replayer.render()
            except Exception as error:  # noqa: BLE001  # raised by whoever waits
                self._error = error
                return
            finally:
                self._ready.set()
            self._follow()

    def _follow(self) -> None:
        period_s, next_s = 1 / self.rate_hz, time.monotonic()
        # A program that ends without closing us waits for this thread, and this thread looks for that.
        while not self._stop.wait(max(next_s - time.monotonic(), 0.0)) and threading.main_thread().is_alive():
            next_s = max(next_s + period_s, time.monotonic())
            states = self._newest
            if states is not self._shown:
                self._try_to_show(states)
            self._update_window()

    def _try_to_show(self, states: tuple[SceneState, ...]) -> None:
        try:
            frame = tile([self._render(state) for state in states])
        except RemoteEnvError as error:
            if self._error is None:
                log.warning("the mirror cannot show the state at %g s: %s", states[0].time_s, error)
            self._error, self._shown = error, states
        else:
            self._frame, self._frames, self._shown = frame, self._frames + 1, states  # others wait for the last
        with self._rendered:
            self._rendered.notify_all()

    def _render(self, state: SceneState) -> Frame:
        window = self._window
        with self._scene, window.lock() if window is not None else contextlib.nullcontext():
            self._replayer.set_state(state)
            self._replayer.make_drawable()  # the window draws the same data
        return self._replayer.render()

    def _update_window(self) -> None:
        window = self._window
        if window is None:
            return
        if window.is_open:
            window.update()
        else:
            self._window = None
            window.close()

    def _live(self, block: _Block) -> Iterator[Frame]:
        frames = 0
        while block.reaches(frames / self.rate_hz):
            assert self._frame is not None  # noqa: S101  save_video waited for it
            yield self._frame
            frames += 1

    def _end(self) -> None:
        window, self._window = self._window, None
        if window is not None:
            window.close()
        self._stop.set()
        with self._rendered:
            self._rendered.notify_all()

    # The caller's

    def _wait_until_ready(self) -> None:
        try:
            in_time = self._ready.wait(START_TIMEOUT_S)
        except BaseException:  # Ctrl-C
            self._stop.set()
            raise
        if not in_time:
            self._stop.set()
            raise DeadlineExceeded(f"OpenGL has not come up within {START_TIMEOUT_S:g} s")
        if self._error is not None:
            self._thread.join()
            raise self._error

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
        self._check_open()

    def _check_open(self) -> None:
        if self._stop.is_set():
            raise ConfigError("this mirror is closed; make a new one")


class _Block:
    """How long a `with` block has lasted by the clock."""

    def __init__(self) -> None:
        self._began_s, self._lasted_s = time.monotonic(), math.inf
        self._ended = threading.Event()

    def end(self) -> None:
        """It is over."""
        self._lasted_s = time.monotonic() - self._began_s
        self._ended.set()

    def reaches(self, time_s: float) -> bool:
        """Wait until it has lasted so long; False when it ended before."""
        self._ended.wait(max(self._began_s + time_s - time.monotonic(), 0.0))
        return time_s <= self._lasted_s


def check_rate(rate_hz: float) -> None:
    """Raise ConfigError unless a mirror can have this rate."""
    if not 0.0 < rate_hz <= MAX_RATE_HZ:
        raise ConfigError(f"rate_hz={rate_hz!r}: frames a second, above 0 and up to {MAX_RATE_HZ:g}")


def _together(states: States) -> tuple[SceneState, ...]:
    return (states,) if isinstance(states, SceneState) else tuple(states)


def _yield_to_others() -> None:
    """Lower this thread's own priority, and that of the threads that OpenGL starts from it, where that can be done."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
