"""Words in pictures: what step a frame shows, and labels above frames that stand beside each other."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from remote_env.record import Episode
from remote_env.render import Frame
from remote_env.state import Floats

LABEL_HEIGHT = 24  # [pixels]
_SUCCESS = ("is_success", "success")  # of an info, the first that is there
_SHADE = 0.35  # of the picture below the words that is left


def overlay_texts(episode: Episode, times_s: Floats) -> list[str]:
    """What the overlay of each state says: step, time, the reward of the action that led there, and success.

    Args:
        episode: of T steps.
        times_s: (T + 1,) since the start.
    """
    rewards = ["", *(f"   reward {reward:.4g}" for reward in episode.rewards)]
    done = ["   success" if _succeeded(info) else "" for info in episode.infos]
    return [
        f"step {step}   {time_s:.2f} s{reward}{success}"
        for step, (time_s, reward, success) in enumerate(zip(times_s, rewards, done, strict=True))
    ]


def _succeeded(info: dict[str, Any]) -> bool:
    return bool(np.any(next((info[name] for name in _SUCCESS if info.get(name) is not None), False)))


def draw_overlay(frame: Frame, text: str) -> Frame:
    """A copy of (H, W, 3) uint8 `frame` with `text` in its upper left corner, on a darker ground."""
    mask = _mask(text, max(9, round(frame.shape[1] / 40)))[: frame.shape[0], : frame.shape[1]]
    height, width = mask.shape
    drawn = frame.copy()
    ground = drawn[:height, :width] * _SHADE
    drawn[:height, :width] = np.maximum(ground, mask[..., None])
    return drawn


def label_strip(text: str, width: int) -> Frame:
    """(LABEL_HEIGHT, width, 3) uint8: `text` in black on white."""
    strip = np.full((LABEL_HEIGHT, width, 3), 255, np.uint8)
    mask = _mask(text, 14)[:LABEL_HEIGHT, :width]
    strip[: mask.shape[0], : mask.shape[1]] -= mask[..., None]
    return strip


@functools.cache
def font(size: int) -> Any:
    """Pillow's own font at `size` pixels."""
    return ImageFont.load_default(size=size)


@functools.lru_cache(maxsize=64)
def _mask(text: str, size: int) -> Frame:
    """(h, w) uint8: the letters white on black, with a margin."""
    margin = size // 3
    left, top, right, bottom = (round(edge) for edge in font(size).getbbox(text))
    ascent, descent = font(size).getmetrics()
    image = Image.new("L", (right - min(left, 0) + 2 * margin, max(ascent + descent, bottom - top) + 2 * margin))
    ImageDraw.Draw(image).text((margin, margin), text, fill=255, font=font(size))
    return np.asarray(image)
