"""Whole replays: states in; video, stills, contact sheet and fidelity out."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from remote_env.errors import InputError, ReplayError
from remote_env.record import Episode, read_episode
from remote_env.render import Quality
from remote_env.replay.fidelity import Fidelity
from remote_env.replay.frames import View, default_processes, render_here, render_in_processes
from remote_env.replay.replayer import Frame, Model, Replayer, load_model
from remote_env.replay.video import save_contact_sheet, save_still, save_video
from remote_env.state import SceneState

DEFAULT_STILLS = 9  # a contact sheet of 3 × 3


class Replay:
    """Captured states shown in a local model: iterate for the frames, or save a video.

    Every pass renders anew. `fidelity` is there once a pass has come to its end.

    Args:
        states: as captured, all of one layout.
        model: as `load_model` takes it.
        view: size, camera and quality of the frames.
        processes: how many render; None decides by the number of frames.

    Raises:
        ReplayError: there are no states, they have different layouts, or they do not fit the model.
        ConfigError: the camera, the size or the quality is unknown.
    """

    def __init__(self, states: Iterable[SceneState], model: Model, view: View, *, processes: int | None = None) -> None:
        self._states = list(states)
        if not self._states:
            raise ReplayError("there are no scene states to replay; was the episode captured with state?")
        if any(state.layout != self._states[0].layout for state in self._states):
            raise ReplayError("the states have different layouts; replay the episodes one by one")
        self._model, self._view = load_model(model), view
        with Replayer(self._model, width=view.width, height=view.height, camera=view.camera) as replayer:
            replayer.check_names(self._states[0].layout)
        self.processes = processes or default_processes(len(self._states), view.quality)
        self._fidelity: Fidelity | None = None

    def __len__(self) -> int:
        """How many frames a pass gives."""
        return len(self._states)

    def __iter__(self) -> Iterator[Frame]:
        """(H, W, 3) uint8 RGB for each state, in order."""
        if self.processes > 1:
            self._fidelity = yield from render_in_processes(
                self._states, self._model, self._view, min(self.processes, len(self._states))
            )
        else:
            self._fidelity = yield from render_here(self._states, self._model, self._view)

    @property
    def fidelity(self) -> Fidelity:
        """How far the frames are from the capture.

        Raises:
            InputError: no pass has come to its end yet.
        """
        if self._fidelity is None:
            raise InputError("the fidelity is known after a whole pass: iterate, or save a video, first")
        return self._fidelity

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

    def save_video(self, path: str | os.PathLike[str], *, rate_hz: float | None = None, progress: bool = False) -> Path:
        """Render into an H.264 video at the states' own rate (or `rate_hz`); see `replay.save_video`."""
        frames = _shown(self, len(self), Path(path).name, shown=progress)
        save_video(path, frames, rate_hz or self.rate_hz)
        return Path(path)


def replay(
    states: Iterable[SceneState],
    model: Model,
    *,
    width: int = 640,
    height: int = 480,
    camera: str | None = None,
    quality: Quality = "fast",
    processes: int | None = None,
) -> Replay:
    """Show captured states in a local model: iterate over the result, or `.save_video(path)`.

    Args and errors are those of `Replayer` and `Replay`.
    """
    return Replay(states, model, View(width, height, camera, quality), processes=processes)


@dataclass(frozen=True)
class ReplayReport:
    """What `replay_episode` did.

    Attributes:
        frames: how many were rendered: one more than the episode has steps.
        seconds: how long rendering and encoding took [s].
        frames_per_s: frames / seconds.
        processes: how many rendered.
        fidelity: how far the replay is from the capture.
        video: the video file, or None.
        images: the stills, then the contact sheet.
    """

    frames: int
    seconds: float
    frames_per_s: float
    processes: int
    fidelity: Fidelity
    video: Path | None
    images: tuple[Path, ...]


def replay_episode(
    capture: Episode | str | os.PathLike[str],
    model: Model,
    *,
    video: str | os.PathLike[str] | None = None,
    images_dir: str | os.PathLike[str] | None = None,
    stills: Mapping[int, str] | None = None,
    name: str | None = None,
    rate_hz: float | None = None,
    width: int = 640,
    height: int = 480,
    camera: str | None = None,
    quality: Quality = "fast",
    processes: int | None = None,
    progress: bool = False,
) -> ReplayReport:
    """Replay one capture in a local model; each file asked for appears only once it is whole.

    Args:
        capture: an episode, or the path of its `.hdf5` or `.part`.
        model: as `load_model` takes it.
        video: where to write the video.
        images_dir: where to write `<name>_<step>_<label>.png` for each still, and `<name>_sheet.png`.
        stills: step -> label; step 0 is after reset, step t after the t-th action. None takes some evenly
            spread.
        name: of the images; by default that of the capture.
        rate_hz: frames per second of the video; None takes the capture's.
        width: of the frames [pixels].
        height: of the frames [pixels].
        camera: by name; None takes the model's first.
        quality: "fast" or "full".
        processes: how many render; None decides by the number of frames.
        progress: show a bar with the time left.

    Raises:
        CaptureError: the capture is damaged, or the disk is full.
        ReplayError: the capture holds no states, or does not fit the model.
        ConfigError: the camera, the size or the quality is unknown, or there is no OpenGL.
        InputError: a still lies outside the episode.
    """
    episode = capture if isinstance(capture, Episode) else read_episode(capture, images=False)
    name = name or ("episode" if isinstance(capture, Episode) else Path(capture).stem)
    show = replay(
        episode.states,
        model,
        width=width,
        height=height,
        camera=camera,
        quality=quality,
        processes=processes,
    )
    chosen = _chosen(stills, len(show)) if images_dir is not None else {}
    kept: dict[int, Frame] = {}
    started = time.perf_counter()
    frames = _shown(_keeping(show, chosen, kept), len(show), name, shown=progress)
    if video is not None:
        save_video(video, frames, rate_hz or episode.info.rate_hz)
    else:
        for _ in frames:
            pass
    seconds = time.perf_counter() - started
    images = () if images_dir is None else _save_images(Path(images_dir), name, chosen, kept, episode.info.rate_hz)
    path = Path(video) if video is not None else None
    return ReplayReport(len(show), seconds, len(show) / seconds, show.processes, show.fidelity, path, images)


def _chosen(stills: Mapping[int, str] | None, frames: int) -> dict[int, str]:
    if stills is None:
        spread = np.linspace(0, frames - 1, min(DEFAULT_STILLS, frames)).round().astype(int)
        return {int(step): "" for step in spread}
    outside = [step for step in stills if not 0 <= step < frames]
    if outside:
        raise InputError(f"stills {outside} lie outside the episode; its steps are 0 to {frames - 1}")
    return dict(sorted(stills.items()))


def _keeping(frames: Iterable[Frame], chosen: Mapping[int, str], kept: dict[int, Frame]) -> Iterator[Frame]:
    """Pass `frames` on, and keep the chosen ones."""
    for step, frame in enumerate(frames):
        if step in chosen:
            kept[step] = frame
        yield frame


def _save_images(
    folder: Path, name: str, chosen: Mapping[int, str], kept: Mapping[int, Frame], rate_hz: float
) -> tuple[Path, ...]:
    if not chosen:
        return ()
    paths = []
    for step, label in chosen.items():
        paths.append(folder / f"{name}_{step:04d}{_slug(label)}.png")
        save_still(paths[-1], kept[step])
    labels = [" - ".join(filter(None, [f"step {step}, {step / rate_hz:.2f} s", chosen[step]])) for step in chosen]
    paths.append(folder / f"{name}_sheet.png")
    save_contact_sheet(paths[-1], [kept[step] for step in chosen], labels)
    return tuple(paths)


def _slug(label: str) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in label.lower()).split()
    return "".join(f"_{word}" for word in words)


def _shown(frames: Iterable[Frame], total: int, name: str, *, shown: bool) -> Iterator[Frame]:
    """Pass `frames` on under a progress bar with the rate and the time left."""
    with contextlib.ExitStack() as stack:
        advance: Callable[[], None] = _bar(stack, total, name) if shown else _nothing
        for frame in frames:
            yield frame
            advance()


def _bar(stack: contextlib.ExitStack, total: int, name: str) -> Callable[[], None]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = stack.enter_context(Progress(*columns))
    task = bar.add_task(f"replay {name}", total=total)
    return lambda: bar.advance(task)


def _nothing() -> None:
    """No bar to move."""
