"""The flags that say how a replay is filmed."""

from __future__ import annotations

import argparse
import inspect

import pytest

from remote_env.cli import replay_flags
from remote_env.errors import ConfigError
from remote_env.replay import replay_episode
from remote_env.replay.codecs import CODECS, DEFAULT_CRF, usual_suffix


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    replay_flags.add_video_flags(parser)
    return parser.parse_args(flags)


def test_without_flags_everything_is_as_replay_episode_has_it():
    known = inspect.signature(replay_episode).parameters
    assert replay_flags.video_arguments(parse()) == {
        name: known[name].default for name in replay_flags.video_arguments(parse())
    }


def test_flags_become_arguments():
    flags = ["--size", "320x240", "--fps", "25", "--speed", "0.5", "--overlay", "--codec", "vp9", "--crf", "30"]
    flags += ["--quality", "full", "--processes", "2", "--beside", "images/top", "--labels", "there, here", "--resume"]
    options = parse(*flags, "--camera", "top", "--camera", "track:hand")
    assert replay_flags.video_arguments(options) == {
        "camera": ["top", "track:hand"],
        "width": 320,
        "height": 240,
        "rate_hz": 25.0,
        "speed": 0.5,
        "overlay": True,
        "codec": "vp9",
        "crf": 30,
        "quality": "full",
        "processes": 2,
        "beside": "images/top",
        "labels": ("there", "here"),
        "resume": True,
    }
    assert replay_flags.video_arguments(parse("--camera", "top"))["camera"] == "top"


def test_codecs_and_suffixes_are_those_of_the_replay():
    assert set(replay_flags.CODECS) == set(CODECS)
    assert parse().crf == DEFAULT_CRF
    for codec in CODECS:
        assert replay_flags.video_suffix(parse("--codec", codec)) == usual_suffix(codec)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "640"], "640x480"),
        (["--size", "0x10"], "1 to 8192"),
        (["--fps", "0"], "not a number above 0"),
        (["--speed", "fast"], "not a number above 0"),
        (["--processes", "0"], "whole number from 1"),
        (["--codec", "divx"], "h264"),
        (["--labels", "one"], "LEFT,RIGHT"),
    ],
)
def test_what_is_no_setting_is_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        parse(*flags)
    assert message in capsys.readouterr().err


def test_labels_need_two_pictures():
    with pytest.raises(ConfigError, match="--beside"):
        replay_flags.video_arguments(parse("--labels", "a,b"))
