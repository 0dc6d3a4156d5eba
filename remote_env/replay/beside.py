"""What the pictures show: one replay, or two things beside each other, in step by their simulated time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from remote_env.errors import InputError, ReplayError
from remote_env.record import Episode
from remote_env.render import Frame
from remote_env.replay.marks import mark_of
from remote_env.replay.overlay import draw_overlay, label_strip
from remote_env.replay.timeline import nearest
from remote_env.state import Floats

Indices = Sequence[int]
Moment = tuple[int, int]  # which state of the one, and which of the other (0 where there is no other)
IMAGES = "images/"
_GAP = 4  # [pixels]


class Source(Protocol):
    """Something with a picture for each state."""

    @property
    def times_s(self) -> Floats:
        """(N,) since its start, never falling."""
        ...

    def frames(self, indices: Indices) -> Iterator[Frame]:
        """(H, W, 3) uint8 RGB for each of these states, in order; `indices` rise."""
        ...


class CapturedImages:
    """The images that a camera took where the simulator ran, as a source.

    Args:
        episode: read with its images.
        key: "images/<camera>".
        times_s: (T + 1,) of the episode's states since the start.

    Raises:
        InputError: the capture holds no such images; the message lists those that it holds.
        ReplayError: they are not (H, W, 3) uint8.
    """

    def __init__(self, episode: Episode, key: str, times_s: Floats) -> None:
        if key not in episode.observations:
            known = [name for name in episode.observations if name.startswith(IMAGES)]
            raise InputError(f"the capture holds no {key!r}; it holds {', '.join(known) or 'no images'}")
        self._frames: Any = episode.observations[key]
        self._last: Any = episode.final_observation.get(key)
        self.times_s = times_s[: len(self)]

    def __len__(self) -> int:
        return len(self._frames) + (self._last is not None)

    def digest(self) -> str:
        """Letters that change with any pixel."""
        return mark_of(*(frame for index in range(len(self)) for frame in self.frames([index])))

    def frames(self, indices: Indices) -> Iterator[Frame]:
        """As captured, (H, W, 3) uint8 RGB."""
        for index in indices:
            frame = np.asarray(self._last if index == len(self._frames) else self._frames[index])
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] not in (3, 4):
                raise ReplayError(f"image {index} is {frame.dtype} {frame.shape}; pictures are uint8 (H, W, 3)")
            yield np.ascontiguousarray(frame[..., :3])


@dataclass(frozen=True)
class Overlaid:
    """A source with words in its pictures.

    Attributes:
        source: whose pictures.
        texts: one for each of its states.
    """

    source: Source
    texts: Sequence[str]

    @property
    def times_s(self) -> Floats:
        """As those of the source."""
        return self.source.times_s

    def frames(self, indices: Indices) -> Iterator[Frame]:
        """The source's, with the words."""
        for index, frame in zip(indices, self.source.frames(indices), strict=True):
            yield draw_overlay(frame, self.texts[index])


@dataclass(frozen=True)
class Picture:
    """What every frame is made of.

    Attributes:
        main: whose states the stills are numbered by.
        other: what stands beside it, or None. Whichever is shorter stands still at its end.
        labels: of the left and the right, or none.
        other_is_left: which side the other is on.
        height: of the frames beside each other [pixels]; each keeps its proportions.
    """

    main: Source
    other: Source | None = None
    labels: tuple[str, str] | None = None
    other_is_left: bool = False
    height: int = 480

    @property
    def duration_s(self) -> float:
        """Simulated time from the start to the end of the longer one [s]."""
        return max(float(source.times_s[-1]) for source in (self.main, self.other) if source is not None)

    def at_times(self, times_s: Floats) -> list[Moment]:
        """What is seen at each of these simulated times since the start."""
        others = [0] * len(times_s) if self.other is None else nearest(self.other.times_s, times_s).tolist()
        return list(zip(nearest(self.main.times_s, times_s).tolist(), others, strict=True))

    def at_states(self, states: Sequence[int]) -> list[Moment]:
        """What is seen at each of these states of the main source."""
        times = self.main.times_s[np.array(states, np.intp)]
        return [(state, other) for state, (_, other) in zip(states, self.at_times(times), strict=True)]

    def frames(self, moments: Sequence[Moment]) -> Iterator[Frame]:
        """One frame for each moment; none may come before the one before it."""
        mains = _held(self.main, [main for main, _ in moments])
        if self.other is None:
            yield from mains
            return
        for main, other in zip(mains, _held(self.other, [other for _, other in moments]), strict=True):
            yield self._joined((other, main) if self.other_is_left else (main, other))

    def _joined(self, pair: tuple[Frame, Frame]) -> Frame:
        left, right = (_of_height(frame, self.height) for frame in pair)
        if self.labels is not None:
            left, right = (_labelled(frame, text) for frame, text in zip((left, right), self.labels, strict=True))
        return np.hstack([left, np.zeros((left.shape[0], _GAP, 3), np.uint8), right])


def _held(source: Source, indices: Indices) -> Iterator[Frame]:
    """A frame for each index; those that follow each other and are the same are made once."""
    changes = [index for place, index in enumerate(indices) if place == 0 or index != indices[place - 1]]
    frames: Iterable[tuple[int, Frame]] = zip(changes, source.frames(changes), strict=True)
    frames = iter(frames)
    current: tuple[int, Frame] | None = None
    for index in indices:
        if current is None or current[0] != index:
            current = next(frames)
        yield current[1]


def _of_height(frame: Frame, height: int) -> Frame:
    if frame.shape[0] == height:
        return frame
    width = max(round(frame.shape[1] * height / frame.shape[0]), 1)
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))


def _labelled(frame: Frame, text: str) -> Frame:
    return np.vstack([label_strip(text, frame.shape[1]), frame])
