"""Frames to video through ffmpeg: whole, or not there, or cut short but playable under another name."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO

import imageio_ffmpeg  # type: ignore[import-untyped,unused-ignore]
import numpy as np

from remote_env.errors import CaptureError, InputError
from remote_env.render import Frame
from remote_env.replay.codecs import DEFAULT_CODEC, DEFAULT_CRF, check_codec, codec_options
from remote_env.replay.files import whole_file
from remote_env.replay.processes import running

_FINISH_S = 20.0  # what an interrupted ffmpeg gets for ending its file
_READ_MARK_S = 30.0


def save_video(
    path: str | os.PathLike[str],
    frames: Iterable[Frame],
    rate_hz: float,
    *,
    codec: str = DEFAULT_CODEC,
    crf: int = DEFAULT_CRF,
    mark: str = "",
) -> int:
    """Write a video and return how many frames it has.

    An odd width or height is made even by repeating the last column or row, never by scaling. `path` appears only
    once the video is whole. Ctrl-C leaves what was finished until then as `<name>.partial<suffix>`, which players
    show; a later run that comes to its end removes it.

    Args:
        path: `.mp4`, or what else the codec goes into.
        frames: (H, W, 3) uint8 RGB, all of one size.
        rate_hz: frames per second of playback.
        codec: "h264" (which every player shows), "h265", "vp9" or "ffv1" (lossless).
        crf: quality: 0 (best; with h264, lossless) to 51 (worst), 63 for vp9; ffv1 has none.
        mark: text kept in the file, which `video_mark` reads.

    Raises:
        ConfigError: the codec, the quality or the suffix is not one that goes.
        InputError: no frames, frames of different shapes, or a rate that is not positive.
        CaptureError: ffmpeg failed, as on a full disk; `path` is as it was before.
    """
    if not (math.isfinite(rate_hz) and rate_hz > 0):
        raise InputError(f"rate_hz={rate_hz!r}; give frames per second, such as 50.0")
    path, frames = Path(path), iter(frames)
    check_codec(path, codec, crf)
    first = next(frames, None)
    if first is None:
        raise InputError(f"no frames to write to {path}")
    partial = partial_path(path)
    options = (*codec_options(path, codec, crf), *(("-metadata", f"comment={mark}") if mark else ()))
    with whole_file(path, partial=partial) as temporary, _encoder(temporary, path, first, rate_hz, options) as encoder:
        for frame in _chain(first, frames):
            encoder.write(frame)
    partial.unlink(missing_ok=True)
    return encoder.frames


def partial_path(path: Path) -> Path:
    """Where an interrupted video of this path is left."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def video_mark(path: Path) -> str:
    """The mark of a video that `save_video` wrote; "" where there is none, or no video."""
    if not path.is_file():
        return ""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path), "-f", "ffmetadata", "-"]
    try:
        done = subprocess.run(  # noqa: S603  # our own ffmpeg
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_READ_MARK_S, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    notes = (line.partition("=") for line in done.stdout.decode(errors="replace").splitlines())
    return next((value for key, _, value in notes if key.lower() == "comment"), "")


class _Encoder:
    """An ffmpeg that takes frames of one shape.

    Attributes:
        frames: how many it was given whole.
    """

    def __init__(self, process: subprocess.Popen[bytes], shape: tuple[int, ...]) -> None:
        self._process, self._shape = process, shape
        self._pipe: IO[bytes] = process.stdin  # type: ignore[assignment]  # it is a pipe
        self.frames = 0

    def write(self, frame: Frame) -> None:
        """Give it one frame; InputError when its shape is not that of the first."""
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise InputError(
                f"frame {self.frames} is {frame.dtype} {frame.shape}; the video began with uint8 {self._shape}"
            )
        self._pipe.write(np.ascontiguousarray(_even(frame)).data)
        self.frames += 1

    def end(self) -> int:
        """Let it end its file; returns its exit status."""
        self._pipe.close()
        return self._process.wait()

    def cut_short(self, temporary: Path) -> None:
        """Let it end its file after the frames that it has; remove the file where that fails, or there are none."""
        ended = False
        try:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._pipe.close()
                ended = self._process.wait(_FINISH_S) == 0
        finally:  # also when interrupted once more
            if not (ended and self.frames):
                self._process.kill()
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _encoder(temporary: Path, path: Path, first: Frame, rate_hz: float, options: tuple[str, ...]) -> Iterator[_Encoder]:
    """An ffmpeg that takes frames; on leaving, it has written all or CaptureError says why not.

    Ctrl-C lets it end its file, which is then shorter but whole, or is removed.
    """
    height, width = _even(first).shape[:2]
    rate = str(Fraction(rate_hz).limit_denominator(1_000_000))
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate, "-i", "-")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *source, *options, str(temporary)]
    with tempfile.TemporaryFile() as messages:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": messages}
        status: int | None = None
        with running(command, **pipes) as process:
            encoder = _Encoder(process, first.shape)
            try:
                with contextlib.suppress(BrokenPipeError):  # it stopped by itself: its status and messages say why
                    yield encoder
                    status = encoder.end()
            except KeyboardInterrupt:
                encoder.cut_short(temporary)
                raise
            stopped = process.wait() if status is None else status
        if status != 0:
            messages.seek(0)
            said = messages.read()[-500:].decode(errors="replace").strip()
            raise CaptureError(f"ffmpeg could not write {path} (status {stopped}): {said or 'is the disk full?'}")


def _chain(first: Frame, rest: Iterator[Frame]) -> Iterator[Frame]:
    yield first
    yield from rest


def _even(frame: Frame) -> Frame:
    height, width = frame.shape[:2]
    if height % 2 == width % 2 == 0:
        return frame
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
