"""Simulated time to frames: which state each frame of a video shows, so that the video lasts as long as the episode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import InputError, ReplayError
from remote_env.state import Floats

MAX_DEFAULT_RATE_HZ = 60.0  # players and screens show no more; a rate that is asked for may be higher
MIN_RATE_HZ, MAX_RATE_HZ = 0.001, 100_000.0
MAX_FRAMES = 1_000_000  # of a video or a sequence: four and a half hours at 60 frames per second
_TOLERANCE = 1e-3  # of a frame or a step: what rounding of the captured times may amount to


def since_start(times_s: Sequence[float] | Floats, *, rate_hz: float | None = None) -> Floats:
    """Simulated time since the first state.

    Args:
        times_s: (N,) as captured; they may be uneven, and may start anywhere.
        rate_hz: states per second where the capture has no clock, so that all times are the same.

    Returns:
        (N,) [s], the first 0, never falling.

    Raises:
        ReplayError: they fall, or are not finite; the message says where.
        InputError: they stand still, and `rate_hz` is None.
    """
    times = np.asarray(times_s, np.float64)
    steps = np.diff(times)
    wrong = np.flatnonzero(~(steps >= 0))  # also where one is not a number
    if wrong.size or not np.isfinite(times).all():
        at = int(wrong[0]) + 1 if wrong.size else 0
        raise ReplayError(
            f"the time of state {at} is {times[at]} s after {times[max(at - 1, 0)]} s; times must not go back. "
            "Are these several episodes in one? Replay them one by one"
        )
    if steps.any() or len(times) < 2:
        since: Floats = times - times[0]
        return since
    if rate_hz is None:
        raise InputError("the states' times do not advance, so their rate is unknown; pass rate_hz=")
    return np.arange(len(times)) / rate_hz


def default_rate(times_s: Floats) -> float:
    """Frames per second at which every state is shown once; above 60, an n-th of it, whole if that goes.

    Args:
        times_s: (N,) as `since_start` gives them.
    """
    steps = np.diff(times_s)
    if not steps.any():
        return MAX_DEFAULT_RATE_HZ
    rate = float(f"{1.0 / np.median(steps[steps > 0]):.4g}")
    fewest = max(math.ceil(rate / MAX_DEFAULT_RATE_HZ - _TOLERANCE), 1)
    whole = (count for count in range(fewest, fewest + fewest // 4 + 1) if (rate / count).is_integer())
    return rate / next(whole, fewest)


def frame_times(duration_s: float, rate_hz: float, speed: float = 1.0) -> Floats:
    """The simulated moment that each frame shows.

    The video's length, frames / rate_hz, is above duration_s / speed by at most one frame. The first frame shows
    the start and the last one the end.

    Args:
        duration_s: simulated time from the first state to the last [s].
        rate_hz: frames per second of the video.
        speed: simulated seconds per second of video; 0.5 is slow motion.

    Returns:
        (F,) [s] since the start.

    Raises:
        InputError: the rate or the speed is not a positive number, or they make more frames than a video may have.
    """
    for name, value in (("rate_hz", rate_hz), ("speed", speed)):
        if not (isinstance(value, (int, float, np.number)) and math.isfinite(value) and value > 0):
            raise InputError(f"{name}={value!r}; give a number above 0, such as {50.0 if name == 'rate_hz' else 1.0}")
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise InputError(f"rate_hz={rate_hz!r}; videos have {MIN_RATE_HZ} to {MAX_RATE_HZ} frames per second")
    step = speed / rate_hz
    if not duration_s < MAX_FRAMES * step:
        frames = duration_s / step if step else math.inf
        raise InputError(
            f"{duration_s:.6g} s at {rate_hz:g} frames per second and speed {speed:g} are {frames:.3g} "
            f"frames; a video has up to {MAX_FRAMES}. Give another rate or speed; where the episode is shorter than "
            "that, its states' times are wrong (remote-env inspect)"
        )
    moments = np.arange(math.floor(duration_s / step + _TOLERANCE) + 1, dtype=np.float64) * np.float64(step)
    if len(moments) > 1:
        moments[-1] = duration_s
    return moments


def nearest(times_s: Floats, moments_s: Floats) -> NDArray[np.intp]:
    """The index of the state nearest in time to each moment; of two as near, the earlier.

    Args:
        times_s: (N,) never falling.
        moments_s: (F,) on the same clock; beyond the last time, the last state.
    """
    steps = np.diff(times_s)
    tolerance = _TOLERANCE * float(np.median(steps)) if steps.size else 0.0
    found = np.searchsorted(times_s[:-1] + steps / 2, moments_s - tolerance, side="right")
    found[moments_s >= times_s[-1]] = len(times_s) - 1
    return found
