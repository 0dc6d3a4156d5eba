"""Captures of Isaac Lab tasks, made by examples/isaac/make_golden.py, replayed where there is no Isaac Lab."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from replay_scene import read_video

from remote_env.errors import ReplayError
from remote_env.record import read_episode
from remote_env.replay import Replayer, replay_episode

ROOT = Path(__file__).parents[1]
SCENES = ROOT / "examples" / "isaac"
NAMES = {
    "isaac_pick": (SCENES / "pick.xml", SCENES / "mapping.yaml"),
    "isaac_cartpole": (SCENES / "cartpole.xml", SCENES / "cartpole_mapping.yaml"),
}
MOST_M, MOST_RAD = 1e-3, 1e-2


def golden(name: str) -> Path:
    return ROOT / "tests" / "data" / f"{name}.hdf5"


@pytest.mark.parametrize("name", NAMES)
def test_every_link_is_where_the_far_end_had_it(name: str) -> None:
    model, mapping = NAMES[name]
    report = replay_episode(golden(name), model, mapping=mapping).report
    report.check(MOST_M, MOST_RAD)
    assert report.worst("position_m").max < 1e-6
    assert report.missing_links == ()
    assert report.time_base.is_even
    assert report.source == "isaaclab 3.0.0 Newton"
    captured = read_episode(golden(name)).states[0].layout
    compared = {link.name for entity in report.entities for link in entity.links}
    assert len(compared) >= sum(len(entity.link_names) for entity in captured.entities)
    assert not {"isaaclab", "torch", "warp"} & set(sys.modules)


@pytest.mark.parametrize("name", NAMES)
def test_the_capture_s_own_description_is_model_enough(name: str) -> None:
    report = replay_episode(golden(name), "capture").report
    report.check(MOST_M, MOST_RAD)
    assert report.missing_links == ()


def test_the_arm_picked_the_cube_and_holds_it_at_the_end() -> None:
    episode = read_episode(golden("isaac_pick"))
    assert [info.get("is_success", False) for info in episode.infos[:-1]] == [False] * len(episode)
    assert episode.infos[-1]["is_success"] is True
    assert (episode.terminated[-1], episode.truncated[-1]) == (True, False)
    start, end = (episode.states[index]["cube"].root_pose for index in (0, -1))
    assert 0.10 < end[2] - start[2] < 0.20
    assert episode.info.rate_hz == 50.0


def test_the_video_shows_the_cube_on_its_way(tmp_path: Path) -> None:
    model, mapping = NAMES["isaac_pick"]
    video = tmp_path / "pick.mp4"
    near = "free:azimuth=90,elevation=-10,distance=0.7,lookat=0.28/0.25/0.1"
    size = {"width": 240, "height": 180}
    replay_episode(golden("isaac_pick"), model, mapping=mapping, video=video, rate_hz=5.0, camera=near, **size)
    _, frames = read_video(video)
    episode = read_episode(golden("isaac_pick"))
    assert len(frames) == pytest.approx(5.0 * episode.states[-1].time_s, abs=1.5)
    assert all(frame.mean() > 40 and frame.std() > 20 for frame in frames)
    heights = [red_row(frame) for frame in (frames[0], frames[-1])]
    assert heights[1] < heights[0] - 10, f"the red cube is to rise in the picture: {heights}"


def red_row(frame: np.ndarray) -> float:
    red, green, blue = (frame[..., channel].astype(int) for channel in range(3))
    rows = np.argwhere((red > 90) & (2.6 * green < red) & (2.6 * blue < red))
    assert len(rows) > 10, "no cube in the picture"
    return float(rows[:, 0].mean())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("joints", "elbow_joint"), "bend"),  # its sign forgotten
        (("joints", "shoulder_lift_joint"), "lift"),  # its zero forgotten
        (("links", "hand_link"), "hand"),  # its frame forgotten
    ],
)
def test_a_mapping_that_is_wrong_is_told_with_the_link(path: tuple[str, str], value: str) -> None:
    model, mapping = NAMES["isaac_pick"]
    wrong = copy.deepcopy(yaml.safe_load(mapping.read_text()))
    wrong["entities"]["robot"][path[0]][path[1]] = value
    report = replay_episode(golden("isaac_pick"), model, mapping=wrong).report
    with pytest.raises(ReplayError, match=r"hand.* is off by .* m at state"):
        report.check(MOST_M, MOST_RAD)


def test_without_the_mapping_every_name_that_differs_is_listed() -> None:
    with (
        Replayer(NAMES["isaac_pick"][0]) as replayer,
        pytest.raises(ReplayError) as caught,
    ):
        replayer.set_state(read_episode(golden("isaac_pick")).states[0])
    for name in ("robot", "cube"):
        assert name in str(caught.value)
