"""From captures and what was asked for to the pictures that show it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from remote_env.record import Episode, read_episode
from remote_env.replay.beside import IMAGES, CapturedImages, Overlaid, Picture, Source
from remote_env.replay.frames import View
from remote_env.replay.mapping import MappingLike, as_mapping
from remote_env.replay.marks import mark_of, model_digest, states_digest
from remote_env.replay.overlay import overlay_texts
from remote_env.replay.replayer import Model
from remote_env.replay.show import Replay

Capture = Episode | str | os.PathLike[str]


@dataclass(frozen=True)
class Look:
    """How captures are shown.

    Attributes:
        view: size, camera and quality.
        overlay: whether words are written into the frames.
        labels: of the left and the right of two; None names them by where they come from.
        processes: how many render; None decides by the number of frames.
    """

    view: View
    overlay: bool = False
    labels: tuple[str, str] | None = None
    processes: int | None = None


@dataclass(frozen=True)
class Shown:
    """One capture, replayed.

    Attributes:
        name: of its file, or "episode".
        episode: as captured.
        replay: its states in a local model.
        source: the pictures of it, with words if wanted.
        content: the mark of all that decides how it looks.
    """

    name: str
    episode: Episode
    replay: Replay
    source: Source
    content: str


def show_capture(
    capture: Capture, model: Model, mapping: MappingLike, look: Look, *, name: str | None = None, images: bool = False
) -> Shown:
    """Open a capture and make it ready to be rendered; errors are those of `replay_episode`.

    Args:
        capture: an episode, or its file.
        model: as `load_model` takes it.
        mapping: as `Replayer` takes it.
        look: how it is shown.
        name: of the capture; None takes that of its file.
        images: whether the camera images of a file are needed too.
    """
    episode = capture if isinstance(capture, Episode) else read_episode(capture, images=images)
    replay = Replay(
        episode.states,
        model,
        look.view,
        mapping=mapping,
        description=episode.description,
        rate_hz=episode.info.rate_hz,
        processes=look.processes,
    )
    texts = overlay_texts(episode, replay.times_s) if look.overlay else []
    source = Overlaid(replay, texts) if look.overlay else replay
    plain = as_mapping(replay.scene.mapping).to_plain()
    content = mark_of(states_digest(replay.states), model_digest(replay.scene.model), plain, asdict(look.view), texts)
    own_name = "episode" if isinstance(capture, Episode) else Path(capture).stem
    return Shown(name or own_name, episode, replay, source, content)


def picture_alone(shown: Shown) -> tuple[Picture, str]:
    """The replay itself, and the mark of its content."""
    return Picture(shown.source), shown.content


def picture_beside_images(shown: Shown, key: str, look: Look) -> tuple[Picture, str]:
    """Captured images to the left of their replay, and the mark of both."""
    images = CapturedImages(shown.episode, key, shown.replay.times_s)
    labels = look.labels or (key, "replay")
    picture = Picture(shown.source, images, labels, other_is_left=True, height=look.view.shape[0])
    return picture, mark_of(shown.content, images.digest(), labels)


def picture_of_two(left: Shown, right: Shown, look: Look) -> tuple[Picture, str]:
    """Two replays beside each other, and the mark of both."""
    labels = look.labels or _told_apart(left, right)
    picture = Picture(left.source, right.source, labels, height=look.view.shape[0])
    return picture, mark_of(left.content, right.content, labels)


def names_images(beside: Capture | None) -> bool:
    """Whether it is "images/<camera>", not a capture."""
    return isinstance(beside, str) and beside.startswith(IMAGES) and not Path(beside).exists()


def _told_apart(left: Shown, right: Shown) -> tuple[str, str]:
    if left.name != right.name:
        return left.name, right.name
    sources = [shown.replay.states[0].layout.source or shown.name for shown in (left, right)]
    return (sources[0], sources[1]) if sources[0] != sources[1] else (f"{left.name} (1)", f"{right.name} (2)")
