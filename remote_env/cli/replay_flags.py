"""The flags that say how a replay is filmed, for `remote-env replay` and for programs that replay as well."""

from __future__ import annotations

import argparse
from typing import Any

from remote_env.errors import ConfigError

CODECS = ("h264", "h265", "vp9", "ffv1")  # of remote_env.replay.codecs, which needs more than flags do
_CRF = 18


def add_video_flags(parser: argparse.ArgumentParser) -> None:
    """Add a group of flags to `parser`; `video_arguments` reads them."""
    group = parser.add_argument_group("how it is filmed")
    group.add_argument(
        "--camera",
        action="append",
        metavar="CAMERA",
        help="of the local model by name, free, track:BODY, or free:azimuth=90,elevation=-30,distance=2,lookat=X/Y/Z; "
        "repeat it to tile several; default: the model's first",
    )
    group.add_argument("--size", type=_size, default=(640, 480), metavar="WxH", help="of each view; default: 640x480")
    group.add_argument(
        "--fps",
        type=_positive,
        metavar="HZ",
        help="of the video; default: the task's own rate, or an n-th of it below 60",
    )
    group.add_argument(
        "--speed", type=_positive, default=1.0, metavar="X", help="simulated seconds per second; 0.5 is slow motion"
    )
    group.add_argument("--overlay", action="store_true", help="write step, time, reward and success into the frames")
    group.add_argument("--codec", choices=CODECS, default=CODECS[0], help="ffv1 is lossless; default: %(default)s")
    group.add_argument(
        "--crf", type=int, default=_CRF, metavar="N", help="0 (best) to 51 (63 for vp9); default: %(default)s"
    )
    group.add_argument(
        "--quality",
        choices=("fast", "full"),
        default="fast",
        help="fast leaves out shadows and multisampling, some ten times faster in software; default: %(default)s",
    )
    group.add_argument("--processes", type=_count, metavar="N", help="that render; default: by the number of frames")
    group.add_argument(
        "--beside",
        metavar="CAPTURE",
        help="show a second capture to the right of the replay, or images/CAMERA of the same capture to its left",
    )
    group.add_argument("--labels", type=_pair, metavar="LEFT,RIGHT", help="of the two; default: their files or cameras")
    group.add_argument(
        "--resume", action="store_true", help="leave files alone that were made from the same capture, model and flags"
    )


def video_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, as keyword arguments of `remote_env.replay.replay_episode`.

    Where to write, the capture, the model and its mapping are the caller's.

    Raises:
        ConfigError: --labels are given without --beside.
    """
    if options.labels and options.beside is None:
        raise ConfigError("--labels are for two pictures beside each other; give --beside CAPTURE or images/CAMERA too")
    cameras = options.camera or []
    return {
        "camera": cameras if len(cameras) > 1 else next(iter(cameras), None),
        "width": options.size[0],
        "height": options.size[1],
        "rate_hz": options.fps,
        "speed": options.speed,
        "overlay": options.overlay,
        "codec": options.codec,
        "crf": options.crf,
        "quality": options.quality,
        "processes": options.processes,
        "beside": options.beside,
        "labels": options.labels,
        "resume": options.resume,
    }


def video_suffix(options: argparse.Namespace) -> str:
    """What the name of a video with the --codec that was asked for ends with, such as ".mp4"."""
    return {"vp9": ".webm", "ffv1": ".mkv"}.get(options.codec, ".mp4")


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and 1 <= int(width) <= 8192 and 1 <= int(height) <= 8192):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 640x480; each from 1 to 8192")
    return int(width), int(height)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    left, comma, right = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"{text!r} is not LEFT,RIGHT")
    return left.strip(), right.strip()
