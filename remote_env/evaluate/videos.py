"""Videos of episodes, rendered after the evaluation: from recorded scene states, or by playing the actions again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from remote_env.errors import ConfigError, RemoteEnvError, ReplayError, Unsupported
from remote_env.evaluate.environments import EnvironmentChoice
from remote_env.evaluate.episodes import EpisodeResult
from remote_env.evaluate.opening import open_environment
from remote_env.evaluate.runner import capture_path, wants_video

MAX_VIDEOS = 12  # of one environment, so that a policy that always fails does not fill the disk
SHOWN_HZ = 25  # rendering in software takes most of the time, and more frames show nothing more
ALOHA_CAMERA = "angle"  # both arms and the table; the model's first stands behind a pillar
OUTCOMES = {True: "success", False: "failure", None: "done"}


def save_videos(
    results: Mapping[str, Sequence[EpisodeResult]],
    choices: Sequence[EnvironmentChoice],
    folder: Path,
    videos: tuple[str, ...],
    say: Callable[[str], None],
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Write `videos/<env>_<episode>_<outcome>.mp4` for the episodes that `videos` asks for.

    Videos that are there already stay.

    Args:
        results: the episodes of each environment.
        choices: the environments.
        folder: of the evaluation; captures lie in it.
        videos: which episodes: "first", "failed", "all".
        say: told what is rendered.

    Returns:
        The videos, and why others are missing: a line for each environment.

    Raises:
        CaptureError: the disk does not take them.
    """
    paths: list[Path] = []
    notes: list[str] = []
    for choice in choices:
        wanted = [result for result in results.get(choice.name, ()) if wants_video(videos, result)]
        if len(wanted) > MAX_VIDEOS:
            notes.append(f"{choice.name}: videos of the first {MAX_VIDEOS} of {len(wanted)} episodes; all are captured")
        try:
            paths += _save_of_environment(choice, wanted[:MAX_VIDEOS], folder, say)
        except (ConfigError, ReplayError, Unsupported, ImportError) as error:
            notes.append(f"{choice.name}: no videos: {error}")
    return tuple(paths), tuple(notes)


def _save_of_environment(
    choice: EnvironmentChoice, results: Sequence[EpisodeResult], folder: Path, say: Callable[[str], None]
) -> list[Path]:
    paths = []
    for result in results:
        name = f"{choice.slug}_{result.index:04d}_{OUTCOMES[result.success]}.mp4"
        paths.append(folder / "videos" / name)
        if paths[-1].exists():
            continue
        say(f"rendering {paths[-1].name}")
        _save_video(choice, capture_path(folder / "captures", choice, result.index), paths[-1])
    return paths


def _save_video(choice: EnvironmentChoice, capture: Path, video: Path) -> None:
    from remote_env.record import read_episode
    from remote_env.replay import replay, save_video

    if not capture.is_file():
        raise Unsupported(f"{capture} is not there (was the episode run with --video none?)")
    episode = read_episode(capture, images=False)
    if episode.layout is not None:
        stride = max(round(episode.info.rate_hz / SHOWN_HZ), 1)
        model, camera = _local_model(choice, episode.info.task)
        shown = replay(episode.states[::stride], model, camera=camera)
        shown.save_video(video, rate_hz=episode.info.rate_hz / stride)
        return
    with contextlib.closing(_play_again(choice, episode)) as frames:
        save_video(video, frames, episode.info.rate_hz)


def _local_model(choice: EnvironmentChoice, env_id: str) -> tuple[Any, str | None]:
    """The MuJoCo model of the environment, on this machine, and the camera to see it by; None for the model's first.

    Raises:
        Unsupported: the environment is not here, and what it is, is not known.
    """
    if env_id.startswith("remote_env/Aloha"):
        from remote_env.replay import load_model
        from remote_env.tasks.aloha_model import aloha_model_path

        return load_model(aloha_model_path("insertion" if "Insertion" in env_id else "transfer_cube")), ALOHA_CAMERA
    if choice.host is not None:
        raise Unsupported("the model lies with the task server; its captures can be replayed where the model is")
    with contextlib.closing(open_environment(choice)) as env:
        return env.unwrapped.model, None  # type: ignore[attr-defined]  # states came from it


def _play_again(choice: EnvironmentChoice, episode: Any) -> Generator[Any, None, None]:
    """Frames of the same episode: the same seed and actions, rendered."""
    try:
        env = open_environment(choice, render_mode="rgb_array")
    except RemoteEnvError as error:
        raise Unsupported(f"it has no scene states, and does not render as rgb_array: {error}") from error
    with contextlib.closing(env):
        env.reset(seed=episode.info.seed)
        yield _frame(env)
        for action in episode.actions:
            env.step(np.asarray(action))
            yield _frame(env)


def _frame(env: Any) -> Any:
    frame = env.render()
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        raise Unsupported(f"it renders {type(frame).__name__}, not images")
    return frame
