"""How videos are encoded: codec names and quality to ffmpeg's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from remote_env.errors import ConfigError

DEFAULT_CODEC = "h264"
DEFAULT_CRF = 18  # visually lossless for rendered scenes


@dataclass(frozen=True)
class _Codec:
    """One codec.

    Attributes:
        options: of ffmpeg.
        suffixes: of files that can hold it; the first is the usual one.
        max_crf: the worst quality, or -1 where it is always lossless.
        lossless: options instead of those above where the quality is 0.
    """

    options: tuple[str, ...]
    suffixes: tuple[str, ...]
    max_crf: int
    lossless: tuple[str, ...] = ()


_FASTSTART = ("-movflags", "+faststart")
# At speeds that rendering does not wait for.
CODECS: Mapping[str, _Codec] = {
    "h264": _Codec(
        ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "veryfast"),
        (".mp4", ".mov", ".mkv"),
        51,
        # Every bit of the RGB frames; few players besides ffmpeg's and VLC show it.
        ("-c:v", "libx264rgb", "-pix_fmt", "rgb24", "-preset", "veryfast"),
    ),
    "h265": _Codec(
        (
            *("-c:v", "libx265", "-pix_fmt", "yuv420p", "-preset", "veryfast", "-tag:v", "hvc1"),
            *("-x265-params", "log-level=error"),
        ),
        (".mp4", ".mov", ".mkv"),
        51,
    ),
    "vp9": _Codec(
        (
            *("-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p", "-b:v", "0", "-row-mt", "1"),
            *("-deadline", "realtime", "-cpu-used", "6"),
        ),
        (".webm", ".mkv", ".mp4"),
        63,
    ),
    "ffv1": _Codec(("-c:v", "ffv1", "-level", "3", "-pix_fmt", "bgr0"), (".mkv", ".avi"), -1),
}


def check_codec(path: Path, codec: str, crf: int) -> None:
    """Raise ConfigError unless `path` can hold this codec at this quality; the message lists what can be chosen."""
    found = CODECS.get(codec)
    if found is None:
        raise ConfigError(f"codec={codec!r} is unknown; choose {', '.join(CODECS)}")
    if path.suffix.lower() not in found.suffixes:
        others = [name for name, other in CODECS.items() if path.suffix.lower() in other.suffixes]
        raise ConfigError(
            f"{path.name}: {codec} goes into {', '.join(found.suffixes)}"
            + (f"; codecs for {path.suffix} are {', '.join(others)}" if others else "")
        )
    if found.max_crf >= 0 and not (isinstance(crf, int) and 0 <= crf <= found.max_crf):
        raise ConfigError(f"crf={crf!r}; the quality of {codec} goes from 0 (best) to {found.max_crf} (worst)")


def usual_suffix(codec: str) -> str:
    """What files of this codec end with; ConfigError when it is unknown."""
    if codec not in CODECS:
        raise ConfigError(f"codec={codec!r} is unknown; choose {', '.join(CODECS)}")
    return CODECS[codec].suffixes[0]


def codec_options(path: Path, codec: str, crf: int) -> tuple[str, ...]:
    """The options of ffmpeg for writing `path`; see `check_codec` for what is allowed."""
    check_codec(path, codec, crf)
    found = CODECS[codec]
    quality = () if found.max_crf < 0 else ("-crf", str(crf))
    options = found.lossless if crf == 0 and found.lossless else found.options
    return ("-an", *options, *quality, *(_FASTSTART if path.suffix.lower() in (".mp4", ".mov") else ()))
