"""The files of one replay: a video, numbered frames, stills and a contact sheet, from one pass over the frames."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from remote_env.render import Frame
from remote_env.replay.beside import Moment, Picture
from remote_env.replay.codecs import DEFAULT_CODEC, DEFAULT_CRF, check_codec
from remote_env.replay.images import FrameFolder, image_mark, save_contact_sheet, save_still
from remote_env.replay.marks import mark_of
from remote_env.replay.progress import shown
from remote_env.replay.video import save_video, video_mark


@dataclass
class Outputs:
    """What is to be made of a picture, and what of it is there already.

    Attributes:
        picture: what the frames show.
        content: the mark of everything that decides how a moment looks.
        moments: what each frame of the video and of the numbered sequence shows.
        rate_hz: frames per second of the video.
        speed: simulated seconds per second of video.
        resume: leave files alone that were made from the same.
        reused: files and folders that were left alone, filled by `write`.
        rendered: how many different frames were rendered, filled by `write`.
    """

    picture: Picture
    content: str
    moments: Sequence[Moment]
    rate_hz: float
    speed: float = 1.0
    resume: bool = False
    video: Path | None = None
    codec: str = DEFAULT_CODEC
    crf: int = DEFAULT_CRF
    frames_dir: Path | None = None
    stills: Sequence[Still] = ()
    sheet: Path | None = None
    reused: list[Path] = field(default_factory=list)
    rendered: int = 0

    def write(self, name: str, *, progress: bool) -> None:
        """Make what is not there; each file appears only once it is whole.

        Raises:
            ConfigError: the codec, or its quality, is unknown.
            InputError: the folder of numbered frames holds some from elsewhere.
            CaptureError: the disk does not take them.
        """
        if self.video is not None:
            check_codec(self.video, self.codec, self.crf)
        needs_video = self.video is not None and not self._video_is_there()
        folder, numbers = self._missing_frames()
        needs_images = bool(self.stills) and not self._images_are_there()
        kept: dict[Moment, Frame | None] = {still.moment: None for still in self.stills} if needs_images else {}
        counts = collections.Counter(self.moments if needs_video else ())
        order = sorted({*counts, *numbers, *kept})
        self.rendered = len(order)

        def passed_on() -> Generator[Frame, None, None]:
            frames = shown(self.picture.frames(order), len(order), name, is_shown=progress)
            for moment, frame in zip(order, frames, strict=True):
                if moment in kept:
                    kept[moment] = frame
                for number in numbers.get(moment, ()):
                    folder.save(number, frame)  # type: ignore[union-attr]  # there are numbers only with a folder
                for _ in range(counts[moment]):
                    yield frame

        with contextlib.closing(passed_on()) as frames:
            if needs_video and self.video is not None:
                save_video(self.video, frames, self.rate_hz, codec=self.codec, crf=self.crf, mark=self._video_mark)
            collections.deque(frames, maxlen=0)
        if needs_images:
            self._save_images({moment: frame for moment, frame in kept.items() if frame is not None})

    @property
    def images(self) -> tuple[Path, ...]:
        """The stills, then the contact sheet."""
        return (*(still.path for still in self.stills), *filter(None, [self.sheet]))

    @property
    def _timed_mark(self) -> str:
        return mark_of(self.content, self.rate_hz, self.speed)

    @property
    def _video_mark(self) -> str:
        return mark_of(self._timed_mark, self.codec, self.crf)

    def _video_is_there(self) -> bool:
        if not (self.resume and self.video is not None and video_mark(self.video) == self._video_mark):
            return False
        self.reused.append(self.video)
        return True

    def _missing_frames(self) -> tuple[FrameFolder | None, Mapping[Moment, Sequence[int]]]:
        if self.frames_dir is None:
            return None, {}
        folder = FrameFolder(self.frames_dir, self._timed_mark, len(self.moments), resume=self.resume)
        numbers = collections.defaultdict(list)
        for number in sorted(folder.missing):
            numbers[self.moments[number]].append(number)
        if not numbers:
            self.reused.append(self.frames_dir)
        return folder, numbers

    def _images_are_there(self) -> bool:
        if not (self.resume and all(image_mark(path) == mark for path, mark in self._image_marks.items())):
            return False
        self.reused.extend(self.images)
        return True

    @property
    def _image_marks(self) -> dict[Path, str]:
        marks = {still.path: mark_of(self.content, still.step) for still in self.stills}
        if self.sheet is not None:
            marks[self.sheet] = mark_of(self.content, [[still.step, still.text] for still in self.stills])
        return marks

    def _save_images(self, kept: Mapping[Moment, Frame]) -> None:
        marks = self._image_marks
        for still in self.stills:
            save_still(still.path, kept[still.moment], mark=marks[still.path])
        if self.sheet is not None:
            frames = [kept[still.moment] for still in self.stills]
            save_contact_sheet(self.sheet, frames, [still.text for still in self.stills], mark=marks[self.sheet])


@dataclass(frozen=True)
class Still:
    """One picture of an episode.

    Attributes:
        step: 0 is after reset, t after the t-th action.
        moment: what it shows.
        text: under which it stands in the contact sheet.
        path: of its PNG.
    """

    step: int
    moment: Moment
    text: str
    path: Path
