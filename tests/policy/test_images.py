"""Sizes of images, compared with pillow where that is installed."""

from __future__ import annotations

import numpy as np
import pytest

from remote_env.policy.images import Resizing, layout_of


@pytest.mark.parametrize(("height", "width"), [(24, 32), (7, 90), (97, 120)])
def test_as_pillow_does_it(height: int, width: int) -> None:
    image_module = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
    ours = Resizing.between(48, 64, height, width, pad=False).apply(image[None])[0]
    theirs = np.asarray(
        image_module.fromarray(image).resize((width, height), image_module.Resampling.BILINEAR), np.int16
    )
    assert np.abs(ours.astype(np.int16) - theirs).max() <= 1  # it rounds between its two passes


def test_the_same_size_is_the_same_image() -> None:
    image = np.random.default_rng(0).random((1, 5, 7, 3)).astype(np.float32)
    np.testing.assert_array_equal(Resizing.between(5, 7, 5, 7, pad=False).apply(image), image)


def test_borders_keep_the_proportions() -> None:
    image = np.full((2, 10, 20, 1), 255, np.uint8)
    out = Resizing.between(10, 20, 8, 8, pad=True).apply(image)
    assert out.shape == (2, 8, 8, 1)
    assert out[0, :, 0, 0].tolist() == [0, 0, 255, 255, 255, 255, 0, 0]


def test_layouts() -> None:
    assert layout_of((480, 640, 3)) == "HWC"
    assert layout_of((3, 480, 640)) == "CHW"
    assert layout_of((480, 640)) == ""
    assert layout_of((2, 3, 5)) == ""
