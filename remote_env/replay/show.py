"""Replay: captured states as frames of a local model, one for each, or as a video in their own time."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from remote_env.errors import InputError, ReplayError
from remote_env.render import Quality, check_image_settings
from remote_env.replay.beside import Picture
from remote_env.replay.cameras import Cameras, aims, as_tuple
from remote_env.replay.codecs import DEFAULT_CODEC, DEFAULT_CRF
from remote_env.replay.fidelity import Fidelity
from remote_env.replay.frames import LocalScene, View, default_processes, render_here, render_in_processes
from remote_env.replay.mapping import MappingLike
from remote_env.replay.progress import shown
from remote_env.replay.replayer import Frame, Model, Replayer
from remote_env.replay.timeline import default_rate, frame_times, since_start
from remote_env.replay.video import save_video
from remote_env.state import Floats, SceneDescription, SceneState


class Replay:
    """Captured states shown in a local model: iterate for a frame of each, or save a video.

    Every pass renders anew.

    Args:
        states: as captured, all of one layout.
        model: as `load_model` takes it.
        view: size, camera and quality of the frames.
        mapping: how captured names become the model's, as `Replayer` takes it; None for the same names.
        description: what the captured scene looks like, as `Replayer` takes it.
        rate_hz: states per second where the states' times stand still; None makes that an InputError where it matters.
        processes: how many render; None decides by the number of frames.

    Raises:
        ReplayError: there are no states, they have different layouts, or they do not fit the model.
        ConfigError: the camera, the size or the quality is unknown.
    """

    def __init__(
        self,
        states: Iterable[SceneState],
        model: Model,
        view: View,
        *,
        mapping: MappingLike = None,
        description: SceneDescription | None = None,
        rate_hz: float | None = None,
        processes: int | None = None,
    ) -> None:
        self._states = list(states)
        if not self._states:
            raise ReplayError("there are no scene states to replay; capture them: record(..., state=env.get_state())")
        if any(state.layout != self._states[0].layout for state in self._states):
            raise ReplayError("the states have different layouts; replay the episodes one by one")
        check_image_settings(view.width, view.height, view.quality)
        self.view, self._rate_hz = view, rate_hz
        with Replayer(model, mapping=mapping, description=description) as replayer:
            replayer.check_names(self._states[0].layout)
            aims(replayer.model, view.camera)
            self.scene = LocalScene(replayer.model, replayer.mapping, description)
        self._processes = processes

    def __len__(self) -> int:
        """How many states there are."""
        return len(self._states)

    def __iter__(self) -> Iterator[Frame]:
        """(H, W, 3) uint8 RGB for each state, in order."""
        return self.frames(range(len(self)))

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """(H, W, 3) uint8 RGB for each of these states, in the order given."""
        states = [self._states[index] for index in indices]
        processes = min(self.processes_for(len(states)), len(states))
        if processes > 1:
            return render_in_processes(states, self.scene, self.view, processes)
        return render_here(states, self.scene, self.view)

    def processes_for(self, frames: int) -> int:
        """How many processes render so many frames."""
        return self._processes or default_processes(frames * len(as_tuple(self.view.camera)), self.view.quality)

    @property
    def states(self) -> Sequence[SceneState]:
        """As given."""
        return self._states

    @functools.cached_property
    def times_s(self) -> Floats:
        """(N,) simulated time since the first state; see `timeline.since_start` for what is refused."""
        return since_start([state.time_s for state in self._states], rate_hz=self._rate_hz)

    @functools.cached_property
    def fidelity(self) -> Fidelity:
        """How far the local model is from the capture, over every state.

        Raises:
            InputError: a state holds a value that is not finite, or a quaternion without unit norm.
        """
        with self.scene.open() as replayer:
            replayer.set_states(self._states[0].layout, np.stack([state.values for state in self._states]))
            return replayer.fidelity

    @property
    def rate_hz(self) -> float:
        """States per simulated second, from their times.

        Raises:
            InputError: their times do not advance.
        """
        steps = np.diff([state.time_s for state in self._states])
        if not len(steps) or not np.median(steps) > 0:
            raise InputError("the states' times do not advance, so their rate is unknown; pass rate_hz=")
        return round(1.0 / float(np.median(steps)), 6)

    def save_video(
        self,
        path: str | os.PathLike[str],
        *,
        rate_hz: float | None = None,
        speed: float = 1.0,
        codec: str = DEFAULT_CODEC,
        crf: int = DEFAULT_CRF,
        progress: bool = False,
    ) -> Path:
        """Render into a video that lasts as long as the states' own time, within one frame.

        Args:
            path: see `video.save_video`.
            rate_hz: frames per second of the video; None takes the states' own rate, or an n-th of it below 60.
                Where the states' times stand still, it is also their rate.
            speed: simulated seconds per second of video.
            codec: see `video.save_video`.
            crf: likewise.
            progress: show a bar with the time left.

        Raises:
            ReplayError: the states' times go back.
            InputError: the rate or the speed is not a positive number, or unknown.
            ConfigError: the codec, or its quality, is unknown.
            CaptureError: the disk does not take the video.
        """
        times = since_start([state.time_s for state in self._states], rate_hz=self._rate_hz or rate_hz)
        rate_hz = rate_hz or default_rate(times)
        picture = Picture(_Timed(self, times))
        moments = picture.at_times(frame_times(picture.duration_s, rate_hz, speed))
        frames = shown(picture.frames(moments), len(moments), Path(path).name, is_shown=progress)
        save_video(path, frames, rate_hz, codec=codec, crf=crf)
        return Path(path)


class _Timed:
    """A replay whose times are given."""

    def __init__(self, replay: Replay, times_s: Floats) -> None:
        self.times_s = times_s
        self.frames = replay.frames


def replay(
    states: Iterable[SceneState],
    model: Model,
    *,
    mapping: MappingLike = None,
    description: SceneDescription | None = None,
    width: int = 640,
    height: int = 480,
    camera: Cameras = None,
    quality: Quality = "fast",
    processes: int | None = None,
) -> Replay:
    """Show captured states in a local model: iterate over the result, or `.save_video(path)`.

    Args and errors are those of `Replayer` and `Replay`.
    """
    view = View(width, height, camera, quality)
    return Replay(states, model, view, mapping=mapping, description=description, processes=processes)
