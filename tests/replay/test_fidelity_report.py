"""The fidelity report, on real MuJoCo models and scenes."""

from __future__ import annotations

import dataclasses
import json
import sys

import mujoco
import numpy as np
import pytest
from full_disk import file_size_limit
from PIL import Image

from remote_env.errors import CaptureError, InputError, ReplayError
from remote_env.replay.contacts import LimitViolation
from remote_env.replay.fidelity import FidelityMeter
from remote_env.replay.mapping import Mapping
from remote_env.replay.measuring import measure_replay, report_replay
from remote_env.replay.replayer import Replayer
from remote_env.replay.report import FidelityReport
from remote_env.replay.time_base import measure_time_base
from remote_env.tasks.mujoco_scene import MujocoScene

ARM = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody>
    <geom name="floor" type="plane" size="2 2 0.1"/>
    <body name="arm" pos="{base} 0 0.6">
      <joint name="lift" axis="0 1 0" range="-1 1" limited="{limited}"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.04" contype="{solid}" conaffinity="{solid}"/>
      <body name="hand" pos="0.3 0 0">
        <joint name="reach" type="slide" axis="1 0 0" range="-1 1"/>
        <geom type="box" size="0.05 0.05 0.05" contype="{solid}" conaffinity="{solid}"/>
      </body>
    </body>
    <body name="box" pos="-0.6 0 {height}"><freejoint/><geom type="box" size="0.1 0.1 {half}"/></body>
  </worldbody>
</mujoco>
"""


def model_of(
    *, base: float = 0.3, limited: bool = False, solid: int = 1, height: float = 0.1, half: float = 0.1
) -> mujoco.MjModel:
    text = ARM.format(base=base, limited=str(limited).lower(), solid=solid, height=height, half=half)
    return mujoco.MjModel.from_xml_string(text)


def simulate(model: mujoco.MjModel, steps: int = 12) -> np.ndarray:
    """(steps + 1, size) values, every 20 ms, of the arm falling while the box stands."""
    scene, data = MujocoScene(model), mujoco.MjData(model)
    data.qvel[:2] = [0.5, 0.2]
    rows = [scene.read(data).values]
    for _ in range(steps):
        mujoco.mj_step(model, data, 10)
        rows.append(scene.read(data).values)
    return np.stack(rows)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return simulate(model_of())


def measure(values: np.ndarray, model: mujoco.MjModel, plain=None, **options) -> FidelityReport:
    layout = MujocoScene(model_of()).layout
    scene = MujocoScene(model)
    mapped = Mapping.from_plain({"version": 1, **(plain or {})}).compile(layout, scene.layout)
    return measure_replay(values, scene, mapped, **{"rate_hz": 50.0, "name": "episode_000", **options})


def column(entity: str, place: int) -> int:
    return MujocoScene(model_of()).layout.offsets[entity] + place


def test_the_same_model_has_exactly_no_error(values):
    report = measure(values, model_of())
    assert report.states == 13
    assert [entity.name for entity in report.entities] == ["arm", "box"]
    for kind in ("position_m", "rotation_rad", "joint_rad", "joint_m"):
        assert report.worst(kind).max == report.worst(kind).rms == 0.0
    assert report.entities[1].joint_rad is None
    assert report.missing_links == report.limits == report.penetrations == report.hints == ()
    report.check(0.0, 0.0)


def test_each_entity_s_errors_are_the_largest_and_the_root_of_the_mean_square(values):
    changed = values.copy()
    changed[5, column("arm", 14)] += 0.03  # the slide, at state 5 alone
    report = measure(changed, model_of())
    arm, box = report.entities
    assert arm.position_m.max == pytest.approx(0.03, abs=1e-9)
    assert (arm.position_m.worst, arm.position_m.state) == ("arm/hand", 5)
    assert arm.position_m.rms == pytest.approx(0.03 / np.sqrt(13 * 3))  # of the root, its link of that name, the hand
    assert arm.rotation_rad.max == pytest.approx(0.0, abs=1e-7)
    assert arm.joint_m.max == arm.joint_rad.max == box.position_m.max == 0.0
    assert [link.name for link in arm.links] == ["arm", "arm/arm", "arm/hand"]
    assert [link.position_m.max > 0.01 for link in arm.links] == [False, False, True]
    assert arm.over_time["position_m"].argmax() == 5


def test_a_threshold_names_the_worst_link_and_when(values):
    changed = values.copy()
    changed[7, column("arm", 13)] += 0.2  # the hinge
    report = measure(changed, model_of())
    with pytest.raises(
        ReplayError, match=r"^episode_000 .*: arm/hand is off by 0\.0\d+ m at state 7 \(allowed: 0\.001 m\)"
    ):
        report.check(max_error_m=0.001)
    with pytest.raises(ReplayError, match=r"arm(/arm|/hand)? is off by 0\.2 rad at state 7 \(allowed: 0\.01 rad\)"):
        report.check(max_error_rad=0.01)
    report.check(max_error_m=1.0, max_error_rad=1.0)
    report.check()


def test_a_replayer_s_model_and_mapping_are_reported(values):
    layout, plain = MujocoScene(model_of()).layout, {"entities": {"arm": {"ignore_links": {"hand": "another hand"}}}}
    changed = values.copy()
    changed[7, column("arm", 13)] += 0.2
    with Replayer(model_of(), mapping={"version": 1, **plain}) as replayer:
        report = report_replay(replayer, layout, changed, rate_hz=50.0, name="a")
        replayer.set_states(layout, changed)
        assert report.fidelity == replayer.fidelity
    assert report.left_out == {"arm/hand": "another hand"}
    assert report.fidelity.max_rotation_error_rad == report.worst("rotation_rad").max == pytest.approx(0.2)


def test_nothing_compared_is_not_taken_for_no_error(values):
    everything = {"entities": {"arm": "no", "box": "no"}, "model_entities": {"arm": "no", "box": "no"}}
    report = measure(values, model_of(), {"ignore": everything})
    with pytest.raises(ReplayError, match="not one pose or joint was compared"):
        report.check(0.1)


def test_a_base_that_stands_elsewhere_is_said_to(values):
    report = measure(values, model_of(base=0.5))
    assert report.worst("position_m").max == pytest.approx(0.2)
    assert "off by the same (-0.2, 0, 0) m" in " ".join(report.hints).replace("-0, ", "0, ")
    with pytest.raises(ReplayError, match="stands elsewhere"):
        report.check(0.001)


def test_quaternions_in_another_order_are_said_to_be(values):
    changed = values.copy()
    layout = MujocoScene(model_of()).layout
    for entity in layout.entities:
        first = layout.offsets[entity.name] + 13 + 2 * len(entity.joint_names)
        for start in (first + 7 * link for link in range(len(entity.link_names))):
            changed[:, start + 3 : start + 7] = np.roll(changed[:, start + 3 : start + 7], -1, axis=1)
    report = measure(changed, model_of())
    assert "the captured quaternions look like x, y, z, w; states hold w, x, y, z" in report.hints


def test_names_of_the_capture_stand_beside_the_model_s(values):
    model = mujoco.MjModel.from_xml_string(
        ARM.format(base=0.31, limited="false", solid=1, height=0.1, half=0.1).replace('"hand"', '"palm"')
    )
    report = measure(values, model, {"entities": {"arm": {"links": {"hand": "palm"}}}})
    with pytest.raises(ReplayError, match=r"arm/palm \(arm/hand in the capture\) is off by 0\.01 m"):
        report.check(0.005)


def test_links_that_the_model_lacks_are_listed(values):
    model = mujoco.MjModel.from_xml_string(
        ARM.format(base=0.3, limited="false", solid=1, height=0.1, half=0.1).replace('"hand"', '"palm"')
    )
    report = measure(values, model)
    assert report.missing_links == ("arm/hand",)
    assert any("lacks them: arm/hand" in line for line in report.lines())


def test_a_person_is_told_the_worst_few_and_where_the_rest_is(values):
    limits = tuple(LimitViolation(f"arm/j{index}", 0.1, 0, 1, (0.0, 1.0)) for index in range(8))
    report = dataclasses.replace(measure(values, model_of()), limits=limits)
    first, *some, rest = report.lines()
    assert first == "largest error 0 m, 0 rad"
    assert len(some) == 3
    assert rest == "and 5 more of these, in fidelity.json"


# ---- what the local model sees


def test_a_resting_object_touches_throughout_and_is_no_penetration(values):
    report = measure(values, model_of(half=0.102))
    contact = report.contacts[0]
    assert (contact.first, contact.second, contact.throughout) == ("world", "box", True)
    assert contact.max_depth_m == pytest.approx(0.002, abs=2e-4)
    assert (contact.first_state, contact.states, contact.deep_states, contact.is_told) == (0, 13, 13, None)
    assert report.penetrations == ()


def test_a_new_penetration_is_told_with_its_depth_and_state(values):
    changed = values.copy()
    changed[6:9, column("box", 2)] -= np.array([0.004, 0.01, 0.004])
    changed[:6, column("box", 2)] += 0.05
    changed[9:, column("box", 2)] += 0.05
    report = measure(changed, model_of())
    (contact,) = report.penetrations
    assert (contact.first, contact.second) == ("world", "box")
    assert contact.max_depth_m == pytest.approx(0.01, abs=2e-4)
    assert (contact.at_state, contact.first_state, contact.states) == (7, 6, 3)
    assert any(
        "in the local model world and box sink into each other, by 10 mm at state 7" in line for line in report.lines()
    )


def test_a_contact_that_the_far_end_told_of_is_no_news(values):
    changed = values.copy()
    changed[:6, column("box", 2)] += 0.05
    changed[6:, column("box", 2)] -= 0.005
    infos = [{"contacts": [["box", "world"]]}] + [{"contacts": []}] * 12
    told, untold = measure(changed, model_of(), infos=infos), measure(changed, model_of(), infos=[{}])
    assert told.contacts_told
    assert told.contacts[0].is_told is True
    assert told.penetrations == ()
    assert not untold.contacts_told
    assert len(untold.penetrations) == 1


def test_a_joint_beyond_its_range_is_told(values):
    changed = values.copy()
    changed[3, column("arm", 13)] = 1.25
    report = measure(changed, model_of(limited=True))
    (limit,) = report.limits
    assert limit.joint == "arm/lift"
    assert limit.max_excess == pytest.approx(0.25)
    assert (limit.at_state, limit.states, limit.limits) == (3, 1, (-1.0, 1.0))
    assert any("arm/lift is 0.25 beyond its range" in line for line in report.lines())
    assert measure(changed, model_of()).limits == ()
    changed[3, column("arm", 13)] = 1.0001
    barely = measure(changed, model_of(limited=True))
    assert len(barely.limits) == 1
    assert not any("range" in line for line in barely.lines())
    assert barely.hints == ()


def test_states_that_are_none_are_refused(values):
    changed = values.copy()
    changed[3, column("arm", 13)] = np.nan
    with pytest.raises(InputError, match="'arm'"):
        measure(changed, model_of())


# ---- time


def test_an_even_clock_has_nothing_to_say():
    time_base = measure_time_base(np.arange(401, dtype=np.float32).astype(float) * 0.02, 50.0)
    assert time_base.is_even
    assert time_base.matches_rate
    assert time_base.notes() == []


def test_float32_times_of_a_long_episode_are_even():
    times = np.cumsum(np.full(20_000, 0.02, np.float32), dtype=np.float32).astype(float)
    assert measure_time_base(times, 50.0).uneven < 20  # the float32 sum itself drifts where it rounds
    assert measure_time_base((np.arange(200_000) * 0.02).astype(np.float32).astype(float), 50.0).is_even


def test_a_clock_that_stumbles_is_told():
    times = np.arange(101) * 0.02
    times[40] = times[39]
    times[60:] += 0.5
    times[70] -= 1.0
    time_base = measure_time_base(times, 30.0)
    assert (time_base.repeated, time_base.backwards, time_base.first_odd) == (1, 1, 40)
    assert time_base.uneven >= 2
    rate, odd = time_base.notes()
    assert rate == "the states' own rate is 50 Hz; the capture says 30 Hz"
    assert odd.startswith("of 101 states 1 have the time of the one before, 1 go back in time, ")
    assert odd.endswith("the first at state 40")


def test_states_without_time_and_single_states_are_told():
    assert measure_time_base(np.zeros(5), 50.0).notes() == ["the states carry no time: all have the same"]
    assert measure_time_base(np.zeros(1), 50.0).notes() == []


# ---- files


def test_json_and_plot_are_whole(tmp_path, values):
    changed = values.copy()
    changed[5, column("arm", 14)] += 0.03
    report = measure(changed, model_of(limited=True), left_out={"lamp": "decoration"})
    path = report.save(tmp_path / "new" / "folder")
    plain = json.loads(path.read_text())
    assert plain == json.loads(json.dumps(report.to_plain()))
    assert plain["max_position_error_m"] == pytest.approx(0.03)
    assert plain["entities"]["arm"]["position_m"]["worst"] == "arm/hand"
    assert plain["time_base"]["is_even"] is True
    assert plain["left_out"] == {"lamp": "decoration"}
    image = np.asarray(Image.open(path.with_name("fidelity.png")).convert("RGB"))
    assert image.shape[0] > 300
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20  # lines and letters, not one colour
    assert sorted(file.name for file in path.parent.iterdir()) == ["fidelity.json", "fidelity.png"]


def test_the_plot_touches_no_pyplot(tmp_path, values):
    had = "matplotlib.pyplot" in sys.modules
    measure(values, model_of()).save(tmp_path)
    assert ("matplotlib.pyplot" in sys.modules) == had


@pytest.mark.parametrize("limit", [0, 4000])
def test_a_full_disk_leaves_no_half_report(tmp_path, values, limit):
    report = measure(values, model_of())
    with file_size_limit(limit), pytest.raises(CaptureError, match="cannot be written"):
        report.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- the meter


def test_all_at_once_is_as_one_by_one(values):
    scene = MujocoScene(model_of(base=0.4))
    shown = values + np.random.default_rng(0).normal(scale=1e-3, size=values.shape)
    together = FidelityMeter(scene.layout, scene.layout)
    together.add_all(values, shown, first=3, stride=2)
    alone = FidelityMeter(scene.layout, scene.layout)
    for index in range(len(values)):
        alone.add_all(values[index : index + 1], shown[index : index + 1], first=3 + 2 * index)
    assert together.fidelity == alone.fidelity
    assert together.fidelity.states == 13
