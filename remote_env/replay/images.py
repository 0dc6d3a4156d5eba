"""Frames to pictures: stills, contact sheets and numbered sequences, each file whole or not there."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, PngImagePlugin, UnidentifiedImageError

from remote_env.errors import CaptureError, InputError
from remote_env.render import Frame
from remote_env.replay.files import whole_file
from remote_env.replay.overlay import LABEL_HEIGHT, font

MARK_KEY = "remote-env replay"  # of the text in a PNG that says what it was made from
_GAP = 4  # [pixels]
_NAME = "frame_{:06d}.png"
_PATTERN = re.compile(r"frame_\d{6,}\.png")


def save_still(path: str | os.PathLike[str], frame: Frame, *, mark: str = "", compression: int = 6) -> None:
    """Write one (H, W, 3) uint8 RGB frame as PNG; `path` appears only once it is whole.

    Args:
        path: of the PNG.
        frame: what to write.
        mark: text kept in the file, which `image_mark` reads.
        compression: 1 (soonest) to 9 (smallest).

    Raises:
        CaptureError: the disk does not take it.
    """
    with whole_file(Path(path)) as temporary:
        Image.fromarray(frame).save(temporary, format="PNG", pnginfo=_marked(mark), compress_level=compression)


def image_mark(path: Path) -> str:
    """The mark of a PNG that `save_still` or `save_contact_sheet` wrote; "" where there is none, or no PNG."""
    try:
        with Image.open(path) as image:
            return str(image.info.get(MARK_KEY, ""))
    except (OSError, UnidentifiedImageError):
        return ""


def save_contact_sheet(
    path: str | os.PathLike[str],
    frames: Sequence[Frame],
    labels: Sequence[str],
    *,
    columns: int | None = None,
    tile_width: int = 320,
    mark: str = "",
) -> None:
    """Write a grid of small frames, each under its label, as PNG; `path` appears only once it is whole.

    Args:
        path: of the PNG.
        frames: (H, W, 3) uint8 RGB, all of one size.
        labels: one for each frame.
        columns: of the grid; None makes it about as wide as high.
        tile_width: of each frame [pixels].
        mark: text kept in the file, which `image_mark` reads.

    Raises:
        InputError: no frames, or another number of labels.
        CaptureError: the disk does not take it.
    """
    if not frames or len(frames) != len(labels):
        raise InputError(f"a contact sheet needs frames and one label each; got {len(frames)} and {len(labels)}")
    columns = columns or math.ceil(math.sqrt(len(frames)))
    tile_height = round(tile_width * frames[0].shape[0] / frames[0].shape[1])
    row_height = tile_height + LABEL_HEIGHT + _GAP
    rows = math.ceil(len(frames) / columns)
    sheet = Image.new("RGB", (columns * (tile_width + _GAP) - _GAP, rows * row_height - _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        left, top = index % columns * (tile_width + _GAP), index // columns * row_height
        draw.text((left + _GAP, top + _GAP), label, fill="black", font=font(14))
        tile = Image.fromarray(frame).resize((tile_width, tile_height), Image.Resampling.LANCZOS)
        sheet.paste(tile, (left, top + LABEL_HEIGHT))
    with whole_file(Path(path)) as temporary:
        sheet.save(temporary, format="PNG", pnginfo=_marked(mark))


class FrameFolder:
    """A folder of `frame_000000.png` and so on, which ends up with these frames and no others.

    Args:
        folder: made where it is not there.
        mark: what the frames are made from; frames with another are replaced.
        count: how many there will be.
        resume: keep the frames that are there and carry this mark.

    Attributes:
        missing: the numbers of the frames that are to be written.

    Raises:
        InputError: the folder holds such files from elsewhere.
        CaptureError: the disk does not take them.
    """

    def __init__(self, folder: Path, mark: str, count: int, *, resume: bool) -> None:
        self._folder, self._mark = folder, mark
        there = sorted(path for path in folder.glob("frame_*.png") if _PATTERN.fullmatch(path.name))
        marks = {path.name: image_mark(path) for path in there}
        foreign = [name for name, found in marks.items() if not found]
        if foreign:
            raise InputError(
                f"{folder} holds {foreign[0]} and {len(foreign) - 1} more that no replay wrote; give another folder"
            )
        wanted = {_NAME.format(number): number for number in range(count)}
        kept = {name for name in wanted if resume and marks.get(name) == mark}
        for path in there:
            if path.name not in kept:
                _remove(path)
        self.missing: Collection[int] = {number for name, number in wanted.items() if name not in kept}

    def save(self, number: int, frame: Frame) -> None:
        """Write one frame; a number that is not missing is left as it is."""
        if number in self.missing:
            save_still(self._folder / _NAME.format(number), frame, mark=self._mark, compression=1)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CaptureError(f"{path} of a replay before cannot be removed: {error.strerror}") from error


def _marked(mark: str) -> PngImagePlugin.PngInfo:
    notes = PngImagePlugin.PngInfo()
    if mark:
        notes.add_text(MARK_KEY, mark)
    return notes
