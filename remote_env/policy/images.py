"""Images between layouts, sizes and dtypes, with numpy alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from remote_env.policy.policy import Array

CHANNELS = (1, 3, 4)
Floats = NDArray[np.float32]
Taps = tuple[NDArray[np.intp], Floats]


def layout_of(shape: tuple[int, ...]) -> str:
    """Return "HWC" or "CHW", by where 1, 3 or 4 channels stand; "" when the shape is no image's."""
    if len(shape) != 3:
        return ""
    if shape[2] in CHANNELS:
        return "HWC"
    return "CHW" if shape[0] in CHANNELS else ""


def size_of(shape: tuple[int, ...], layout: str) -> tuple[int, int, int]:
    """Height, width and channels of an image's shape."""
    if layout == "CHW":
        return shape[1], shape[2], shape[0]
    return shape[0], shape[1], shape[2]


def to_layout(images: Array, layout: str, wanted: str) -> Array:
    """(B, …) images in the wanted layout; the same array where it is that already."""
    if layout == wanted:
        return images
    if wanted == "CHW":
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    # Channel by channel: numpy copies a transposed view a pixel at a time, five times slower.
    return np.stack([images[:, channel] for channel in range(images.shape[1])], axis=-1)


def cast_image(image: Array, dtype: str) -> Array:
    """This image in a feature's dtype, C-contiguous: uint8 is 0–255, floats are 0–1."""
    wanted = np.dtype(dtype)
    if wanted.kind == "f" and image.dtype == np.uint8:
        scaled: Array = np.ascontiguousarray(image, wanted) / wanted.type(255)
        return scaled
    if wanted == np.uint8 and image.dtype.kind == "f":
        return np.ascontiguousarray(np.rint(np.clip(image, 0, 1) * 255), wanted)
    return np.ascontiguousarray(image, wanted)


@dataclass(frozen=True)
class Resizing:
    """Scales images by a triangle filter, as wide as the scale where it shrinks, so that nothing flickers.

    Attributes:
        rows: which old rows a new one is made of, and how much of each: (new height, taps) each.
        columns: likewise.
        border: pixels of black above, below, left and right of what is scaled.
    """

    rows: Taps
    columns: Taps
    border: tuple[int, int, int, int] = (0, 0, 0, 0)

    @classmethod
    def between(cls, height: int, width: int, new_height: int, new_width: int, *, pad: bool) -> Resizing:
        """From one size to another [pixels]; `pad` keeps the proportions and fills up with black."""
        if not pad:
            return cls(_taps(height, new_height), _taps(width, new_width))
        scale = min(new_height / height, new_width / width)
        inner_height, inner_width = (max(1, round(size * scale)) for size in (height, width))
        above, left = (new_height - inner_height) // 2, (new_width - inner_width) // 2
        border = (above, new_height - inner_height - above, left, new_width - inner_width - left)
        return cls(_taps(height, inner_height), _taps(width, inner_width), border)

    def apply(self, images: Array) -> Array:
        """(B, H, W, C) images in the new size and their own dtype."""
        scaled = np.stack([self._scaled(image) for image in images])
        above, below, left, right = self.border
        if any(self.border):
            scaled = np.pad(scaled, ((0, 0), (above, below), (left, right), (0, 0)))
        if images.dtype.kind != "f":
            scaled = np.rint(scaled)
        return scaled.astype(images.dtype)

    def _scaled(self, image: Array) -> Floats:
        lines = _gathered(image, *self.rows)
        # Columns as rows, so that whole lines are added up and not single pixels.
        columns = np.ascontiguousarray(lines.transpose(1, 0, 2))
        return _gathered(columns, *self.columns).transpose(1, 0, 2)


def _gathered(lines: Array, taps: NDArray[np.intp], weights: Floats) -> Floats:
    """(N, …): each new line the weighted sum of its old ones."""
    total: Floats = lines[taps[:, 0]] * weights[:, 0, None, None]
    for tap in range(1, taps.shape[1]):
        total += lines[taps[:, tap]] * weights[:, tap, None, None]
    return total


def _taps(size: int, new_size: int) -> Taps:
    """Of each new pixel the old ones within the filter's reach, and their weights, which sum to 1."""
    scale = size / new_size
    reach = max(scale, 1.0)
    centres = (np.arange(new_size) + 0.5) * scale - 0.5
    first = np.ceil(centres - reach).astype(np.intp)
    taps = first[:, None] + np.arange(math.floor(2 * reach) + 1)
    weights = np.maximum(0.0, 1.0 - np.abs(taps - centres[:, None]) / reach) * ((taps >= 0) & (taps < size))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(taps, 0, size - 1), weights.astype(np.float32)
