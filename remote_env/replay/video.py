"""Frames to files: video, stills and contact sheets, each whole or not there."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import imageio_ffmpeg  # type: ignore[import-untyped,unused-ignore]
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from remote_env.errors import CaptureError, InputError, RemoteEnvError
from remote_env.replay.processes import running

Frame = NDArray[np.uint8]
# Visually lossless for rendered scenes, and at a speed that rendering does not wait for.
_X264 = (
    "-an",
    "-c:v",
    "libx264",
    "-pix_fmt",
    "yuv420p",
    "-preset",
    "veryfast",
    "-crf",
    "18",
    "-movflags",
    "+faststart",
)
_LABEL_HEIGHT = 24  # [pixels]
_GAP = 4  # [pixels]


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write under; renamed to `path` when all went well, removed otherwise."""
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except RemoteEnvError:
        raise
    except OSError as error:
        raise CaptureError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_video(path: str | os.PathLike[str], frames: Iterable[Frame], rate_hz: float) -> int:
    """Write an H.264 video (yuv420p, which every player shows) and return how many frames it has.

    An odd width or height is made even by repeating the last column or row, never by scaling.

    Args:
        path: usually `.mp4`; appears only once it is whole, also after Ctrl-C.
        frames: (H, W, 3) uint8 RGB, all of one size.
        rate_hz: frames per second of playback.

    Raises:
        InputError: no frames, frames of different shapes, or a rate that is not positive.
        CaptureError: ffmpeg failed, as on a full disk; `path` is as it was before.
    """
    if not (math.isfinite(rate_hz) and rate_hz > 0):
        raise InputError(f"rate_hz={rate_hz!r}; give frames per second, such as 50.0")
    path, frames = Path(path), iter(frames)
    first = next(frames, None)
    if first is None:
        raise InputError(f"no frames to write to {path}")
    with _whole_file(path) as temporary, _encoder(temporary, path, first, rate_hz) as pipe:
        return _encode(pipe, first, frames)


@contextlib.contextmanager
def _encoder(temporary: Path, path: Path, first: Frame, rate_hz: float) -> Iterator[IO[bytes]]:
    """An ffmpeg that takes raw frames; on leaving, it has written all or CaptureError says why not."""
    height, width = _even(first).shape[:2]
    rate = str(Fraction(rate_hz).limit_denominator(1_000_000))
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate, "-i", "-")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *source, *_X264, str(temporary)]
    with tempfile.TemporaryFile() as messages:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": messages}
        finished = False
        with running(command, **pipes) as process:
            pipe: IO[bytes] = process.stdin  # type: ignore[assignment]  # it is a pipe
            with contextlib.suppress(BrokenPipeError):  # it stopped by itself: its status and messages say why
                yield pipe
                pipe.close()
                finished = True
            status = process.wait()
        if status or not finished:
            messages.seek(0)
            said = messages.read()[-500:].decode(errors="replace").strip()
            raise CaptureError(f"ffmpeg could not write {path} (status {status}): {said or 'is the disk full?'}")


def _encode(pipe: IO[bytes], first: Frame, rest: Iterator[Frame]) -> int:
    count = 0
    for frame in _chain(first, rest):
        if frame.shape != first.shape or frame.dtype != np.uint8:
            raise InputError(f"frame {count} is {frame.dtype} {frame.shape}; the video began with uint8 {first.shape}")
        pipe.write(np.ascontiguousarray(_even(frame)).data)
        count += 1
    return count


def _chain(first: Frame, rest: Iterator[Frame]) -> Iterator[Frame]:
    yield first
    yield from rest


def _even(frame: Frame) -> Frame:
    height, width = frame.shape[:2]
    if height % 2 == width % 2 == 0:
        return frame
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def save_still(path: str | os.PathLike[str], frame: Frame) -> None:
    """Write one (H, W, 3) uint8 RGB frame as PNG; `path` appears only once it is whole."""
    with _whole_file(Path(path)) as temporary:
        Image.fromarray(frame).save(temporary, format="PNG")


def save_contact_sheet(
    path: str | os.PathLike[str],
    frames: Sequence[Frame],
    labels: Sequence[str],
    *,
    columns: int | None = None,
    tile_width: int = 320,
) -> None:
    """Write a grid of small frames, each under its label, as PNG; `path` appears only once it is whole.

    Args:
        path: of the PNG.
        frames: (H, W, 3) uint8 RGB, all of one size.
        labels: one for each frame.
        columns: of the grid; None makes it about as wide as high.
        tile_width: of each frame [pixels].

    Raises:
        InputError: no frames, or another number of labels.
    """
    if not frames or len(frames) != len(labels):
        raise InputError(f"a contact sheet needs frames and one label each; got {len(frames)} and {len(labels)}")
    columns = columns or math.ceil(math.sqrt(len(frames)))
    tile_height = round(tile_width * frames[0].shape[0] / frames[0].shape[1])
    row_height = tile_height + _LABEL_HEIGHT + _GAP
    rows = math.ceil(len(frames) / columns)
    sheet = Image.new("RGB", (columns * (tile_width + _GAP) - _GAP, rows * row_height - _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        left, top = index % columns * (tile_width + _GAP), index // columns * row_height
        draw.text((left + _GAP, top + _GAP), label, fill="black", font=_font())
        tile = Image.fromarray(frame).resize((tile_width, tile_height), Image.Resampling.LANCZOS)
        sheet.paste(tile, (left, top + _LABEL_HEIGHT))
    with _whole_file(Path(path)) as temporary:
        sheet.save(temporary, format="PNG")


def _font() -> Any:
    return ImageFont.load_default(size=14)
