"""Whole replays: a capture in; video, frames, stills, contact sheet and fidelity out."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from remote_env.errors import InputError
from remote_env.render import Quality
from remote_env.replay.cameras import Cameras
from remote_env.replay.codecs import DEFAULT_CODEC, DEFAULT_CRF
from remote_env.replay.fidelity import Fidelity
from remote_env.replay.frames import View
from remote_env.replay.mapping import MappingLike
from remote_env.replay.measuring import report_replay
from remote_env.replay.outputs import Outputs, Still
from remote_env.replay.pictures import (
    Capture,
    Look,
    Shown,
    names_images,
    picture_alone,
    picture_beside_images,
    picture_of_two,
    show_capture,
)
from remote_env.replay.replayer import Model
from remote_env.replay.report import FidelityReport
from remote_env.replay.timeline import default_rate, frame_times

DEFAULT_STILLS = 9  # a contact sheet of 3 × 3


@dataclass(frozen=True)
class ReplayReport:
    """What `replay_episode` did.

    Attributes:
        frames: how many different frames were rendered; states that no file shows are not.
        seconds: how long rendering and encoding took [s].
        frames_per_s: frames / seconds; 0 where nothing had to be rendered.
        processes: how many rendered.
        fidelity: how far the replay is from the capture, over every state.
        report: the same in full: by entity and link, with contacts, joint limits and the clock.
        video: the video file, or None.
        images: the stills, then the contact sheet.
        frames_dir: the folder of numbered frames, or None.
        video_frames: how many frames the video, or the folder, has.
        rate_hz: frames per second of them.
        reused: what was left as it was, since it had been made from the same.
    """

    frames: int
    seconds: float
    frames_per_s: float
    processes: int
    fidelity: Fidelity
    report: FidelityReport
    video: Path | None
    images: tuple[Path, ...]
    frames_dir: Path | None = None
    video_frames: int = 0
    rate_hz: float = 0.0
    reused: tuple[Path, ...] = ()


def replay_episode(
    capture: Capture,
    model: Model,
    *,
    mapping: MappingLike = None,
    video: str | os.PathLike[str] | None = None,
    frames_dir: str | os.PathLike[str] | None = None,
    images_dir: str | os.PathLike[str] | None = None,
    stills: Mapping[int, str] | None = None,
    name: str | None = None,
    rate_hz: float | None = None,
    speed: float = 1.0,
    width: int = 640,
    height: int = 480,
    camera: Cameras = None,
    overlay: bool = False,
    codec: str = DEFAULT_CODEC,
    crf: int = DEFAULT_CRF,
    quality: Quality = "fast",
    processes: int | None = None,
    beside: Capture | None = None,
    beside_model: Model | None = None,
    beside_mapping: MappingLike = None,
    labels: tuple[str, str] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> ReplayReport:
    """Replay one capture in a local model; each file asked for appears only once it is whole.

    The video lasts as long as the episode in simulated time, within one frame: each frame shows the state that is
    nearest in time, whatever the rates of capture and video, also where the captured times are uneven. On Ctrl-C
    what is finished of the video stays as `<video>.partial.mp4`.

    Args:
        capture: an episode, or the path of its `.hdf5` or `.part`.
        model: as `load_model` takes it.
        mapping: how captured names become the model's, as `Replayer` takes it; None for the same names.
        video: where to write the video.
        frames_dir: where to write the frames of the video as `frame_000000.png` and so on.
        images_dir: where to write `<name>_<step>_<label>.png` for each still, and `<name>_sheet.png`.
        stills: step -> label; step 0 is after reset, step t after the t-th action. None takes some evenly
            spread.
        name: of the images; by default that of the capture.
        rate_hz: frames per second of the video; None takes the states' own rate, or an n-th of it below 60.
        speed: simulated seconds per second of video; 0.5 is slow motion.
        width: of the frames, or of each tile [pixels].
        height: likewise.
        camera: by name, "free", "track:BODY", or a sequence of them, which are tiled; see `cameras.aim`. None takes
            the model's first.
        overlay: write step, time, reward and success into the frames.
        codec: "h264", "h265", "vp9" or "ffv1"; see `video.save_video`.
        crf: of the codec.
        quality: "fast" or "full".
        processes: how many render; None decides by the number of frames.
        beside: what to show beside the replay: a second capture, to its right, or "images/<camera>" of this one, to its
            left. Both keep their own time from their start; the shorter stands still at its end.
        beside_model: the second capture's; None takes `model`.
        beside_mapping: likewise, where `beside_model` is given.
        labels: of the left and the right; None names them by their files or cameras.
        resume: leave files alone that were made from the same capture, model and settings, and go on with a folder of
            frames.
        progress: show a bar with the time left.

    Raises:
        CaptureError: the capture is damaged, or the disk is full.
        ReplayError: the capture holds no states, or does not fit the model, or its times go back.
        ConfigError: the camera, the size, the quality or the codec is unknown, or there is no OpenGL.
        InputError: a still lies outside the episode, a rate or speed is not positive, there are no such images, or
            `frames_dir` holds frames from elsewhere.
    """
    look = Look(View(width, height, camera, quality), overlay, labels, processes)
    shown = show_capture(capture, model, mapping, look, name=name, images=names_images(beside))
    if beside is None:
        picture, content = picture_alone(shown)
    elif isinstance(beside, str) and names_images(beside):
        picture, content = picture_beside_images(shown, beside, look)
    else:
        theirs = (model, mapping) if beside_model is None else (beside_model, beside_mapping)
        picture, content = picture_of_two(shown, show_capture(beside, *theirs, look), look)
    rate_hz = default_rate(shown.replay.times_s) if rate_hz is None else rate_hz
    moments = picture.at_times(frame_times(picture.duration_s, rate_hz, speed))
    outputs = Outputs(picture, content, moments, rate_hz, speed, resume)
    outputs.video, outputs.codec, outputs.crf = _path(video), codec, crf
    outputs.frames_dir = _path(frames_dir)
    if images_dir is not None:
        _add_stills(outputs, shown, Path(images_dir), stills)
    report = _report(shown)
    started = time.perf_counter()
    outputs.write(shown.name, progress=progress)
    seconds = time.perf_counter() - started
    return ReplayReport(
        frames=outputs.rendered,
        seconds=seconds,
        frames_per_s=outputs.rendered / seconds,
        processes=shown.replay.processes_for(outputs.rendered),
        fidelity=report.fidelity,
        report=report,
        video=outputs.video,
        images=outputs.images,
        frames_dir=outputs.frames_dir,
        video_frames=len(moments),
        rate_hz=rate_hz,
        reused=tuple(outputs.reused),
    )


def _report(shown: Shown) -> FidelityReport:
    episode, name = shown.episode, shown.name
    with shown.replay.scene.open() as replayer:
        values = np.stack([state.values for state in shown.replay.states])
        layout = shown.replay.states[0].layout
        return report_replay(replayer, layout, values, rate_hz=episode.info.rate_hz, infos=episode.infos, name=name)


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def _add_stills(outputs: Outputs, shown: Shown, folder: Path, stills: Mapping[int, str] | None) -> None:
    chosen = _chosen(stills, len(shown.replay))
    if not chosen:
        return
    moments = outputs.picture.at_states(list(chosen))
    times, name = shown.replay.times_s, shown.name
    outputs.stills = [
        Still(step, moment, _text(step, times[step], label), folder / f"{name}_{step:04d}{_slug(label)}.png")
        for moment, (step, label) in zip(moments, chosen.items(), strict=True)
    ]
    outputs.sheet = folder / f"{name}_sheet.png"


def _chosen(stills: Mapping[int, str] | None, frames: int) -> dict[int, str]:
    if stills is None:
        spread = np.linspace(0, frames - 1, min(DEFAULT_STILLS, frames)).round().astype(int)
        return {int(step): "" for step in spread}
    outside = [step for step in stills if not 0 <= step < frames]
    if outside:
        raise InputError(f"stills {outside} lie outside the episode; its steps are 0 to {frames - 1}")
    return dict(sorted(stills.items()))


def _text(step: int, time_s: float, label: str) -> str:
    return " - ".join(filter(None, [f"step {step}, {time_s:.2f} s", label]))


def _slug(label: str) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in label.lower()).split()
    return "".join(f"_{word}" for word in words)
