"""Images between layouts, sizes and dtypes, with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from remote_env.policy.policy import Array

CHANNELS = (1, 3, 4)
Floats = NDArray[np.float32]


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
    """A view of (B, …) images in the wanted layout."""
    if layout == wanted:
        return images
    return images.transpose(0, 3, 1, 2) if wanted == "CHW" else images.transpose(0, 2, 3, 1)


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
        rows: (new height, height) weights.
        columns: (new width, width) weights.
        border: pixels of black above, below, left and right of what is scaled.
    """

    rows: Floats
    columns: Floats
    border: tuple[int, int, int, int] = (0, 0, 0, 0)

    @classmethod
    def between(cls, height: int, width: int, new_height: int, new_width: int, *, pad: bool) -> Resizing:
        """From one size to another [pixels]; `pad` keeps the proportions and fills up with black."""
        if not pad:
            return cls(_weights(height, new_height), _weights(width, new_width))
        scale = min(new_height / height, new_width / width)
        inner_height, inner_width = (max(1, round(size * scale)) for size in (height, width))
        above, left = (new_height - inner_height) // 2, (new_width - inner_width) // 2
        border = (above, new_height - inner_height - above, left, new_width - inner_width - left)
        return cls(_weights(height, inner_height), _weights(width, inner_width), border)

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
        height, width, channels = image.shape
        lines = self.rows @ image.reshape(height, width * channels).astype(np.float32)
        scaled: Floats = np.matmul(self.columns, lines.reshape(-1, width, channels))
        return scaled


def _weights(size: int, new_size: int) -> Floats:
    """(new_size, size): how much of each old pixel is in each new one; every row sums to 1."""
    if size == new_size:
        return np.eye(size, dtype=np.float32)
    scale = size / new_size
    reach = max(scale, 1.0)
    centres = (np.arange(new_size) + 0.5) * scale - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(size) - centres[:, None]) / reach)
    normalised: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised
