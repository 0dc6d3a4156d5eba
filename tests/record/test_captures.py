"""Captures on disk: what describes the scene, and files that claim what is not so."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from remote_env.errors import CaptureError
from remote_env.record import Recorder, read_episode, recover_part, repair_part
from remote_env.record.checks import name_column
from remote_env.record.part import MAGIC, encode, freeze, read_part
from remote_env.state import EntityLayout, SceneDescription, SceneLayout, SceneState, Shape

LAYOUT = SceneLayout((EntityLayout("arm", ("elbow",), ("base", "tip")), EntityLayout("box")), "test 1")
DESCRIPTION = SceneDescription(
    (Shape("arm", "tip", "capsule", (0.02, 0.1)), Shape("box", "box", "box", (0.1, 0.1, 0.2), is_solid=False)),
    "<mujoco/>",
    ("the mesh of 'arm/base' was left out",),
)
STEPS = 3


def state_at(step: int) -> SceneState:
    values = np.zeros(LAYOUT.size)
    values[0] = step / 50.0
    for start in (4, 4 + 15, 4 + 22, LAYOUT.offsets["box"] + 3):
        values[start] = 1.0
    return SceneState(LAYOUT, values)


def record(folder: Path, description: SceneDescription | None = DESCRIPTION, *, finish: bool = True) -> Path:
    recorder = Recorder(folder, rate_hz=50.0, task="T-v0")
    image = np.zeros((4, 6, 3), np.uint8)
    recorder.start({"image": image}, state=state_at(0), seed=1, description=description)
    for step in range(1, STEPS + 1):
        recorder.record(np.zeros(2), {"image": image}, 0.0, step == STEPS, False, state=state_at(step))
    if finish:
        return recorder.finish()
    recorder.flush()
    recorder._part.close()
    return folder / "episode_000.part"


# ---- what the scene looks like


def test_a_description_is_read_back(tmp_path):
    assert read_episode(record(tmp_path)).description == DESCRIPTION


def test_a_capture_without_a_description_has_none(tmp_path):
    assert read_episode(record(tmp_path, None)).description is None


def test_a_description_survives_a_crash(tmp_path):
    part = record(tmp_path, finish=False)
    assert recover_part(part).description == DESCRIPTION
    assert read_episode(repair_part(part)).description == DESCRIPTION


def test_a_description_longer_than_an_hdf5_attribute_is_read_back(tmp_path):
    shapes = tuple(Shape("arm", f"link {index}", "sphere", (0.1,)) for index in range(1000))
    long = SceneDescription(shapes, "<mujoco>" + "ä" * 100_000 + "</mujoco>", ("note",) * 10_000)
    path = record(tmp_path, long)
    assert read_episode(path).description == long
    assert path.stat().st_size < 200_000  # compressed


def test_a_layout_longer_than_an_hdf5_attribute_is_read_back(tmp_path):
    layout = SceneLayout(tuple(EntityLayout(f"an object with a long name {index}") for index in range(2000)))
    values = np.zeros(layout.size)
    values[1:].reshape(-1, 13)[:, 3] = 1.0
    with Recorder(tmp_path, rate_hz=50.0) as recorder:
        recorder.start(None, state=SceneState(layout, values))
        recorder.record(np.zeros(1), None, 0.0, True, False, state=SceneState(layout, values))
        path = recorder.finish()
    assert read_episode(path).layout == layout


def test_a_part_of_an_earlier_version_knows_no_description(tmp_path):
    part = record(tmp_path, None, finish=False)
    data = part.read_bytes()
    assert b'"description":null,' in data
    first, *rest = read_part(part)[0]
    del first.fields["description"]
    whole = data[:18] + b"".join(encode(fields, freeze(arrays)) for fields, arrays in (first, *rest))
    part.write_bytes(whole)
    episode = recover_part(part)
    assert len(episode) == STEPS
    assert episode.description is None


# ---- what is no capture


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return record(tmp_path_factory.mktemp("whole"))


def edit(path: Path, change) -> Path:
    with h5py.File(path, "r+") as root:
        change(root)
    return path


def put(row: int, column: int, value: float):
    def change(root):
        values = root["scene/values"][()]
        values[row, column] = value
        del root["scene/values"]
        root["scene/values"] = values

    return change


def claim(name: str, shape: tuple[int, ...]):
    """A data set of that shape of which nothing was written."""

    def change(root):
        del root[name]
        root.create_dataset(name, shape, np.float64, chunks=True)

    return change


def without(name: str):
    return lambda root: root.__delitem__(name)


def attribute(group: str, name: str, value: object):
    return lambda root: root[group].attrs.__setitem__(name, value)


def info_line(row: int, text: str):
    return lambda root: root["infos"].__setitem__(row, text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(2, 14, np.nan), r"state in row 2 is not finite: the position of joint 'elbow' of 'arm' is nan"),
        (put(1, 7, np.inf), r"row 1 is not finite: the root pose of 'arm'|row 1 .* the root pose"),
        (put(1, 4, 0.0), r"row 1 holds a quaternion of norm 0, the root pose of 'arm'; quaternions are wxyz"),
        (put(3, 4 + 22, 0.0), r"row 3 holds a quaternion of norm 0, the pose of link 'tip' of 'arm'"),
        (put(2, 0, 0.001), r"time runs backwards in row 2 of /scene/values, from 0\.02 s to 0\.001 s"),
        (
            claim("rewards", (10**13,)),
            r"/rewards claims \(10000000000000,\) float64, 80000000000000 bytes, and holds 0",
        ),
        (claim("scene/values", (10**9, 100)), r"/scene/values claims"),
        (claim("observations/images/image", (10**9, 4, 6, 3)), r"/observations/images/image claims|1000000000 images"),
        (claim("observations/images/image", (2, 4, 6, 3)), r"3 steps, but .*image.*2"),
        (without("final_observation/images/image"), r"images of \['image'\] are missing"),
        (without("observations/images/image"), r"images of \['image'\] are missing"),
        (without("infos"), "infos"),
        (without("observations"), "observations"),
        (attribute("/", "rate_hz", np.inf), "rate_hz is inf"),
        (attribute("/", "rate_hz", "fast"), "fast"),
        (attribute("/", "versions", "[1]"), r"its versions is \[1\]; it must be a JSON object"),
        (attribute("/", "extra", "[" * 50_000), "damaged or is not a capture"),
        (attribute("scene", "layout", "3"), "not a scene layout"),
        (attribute("scene", "layout", json.dumps({"entities": [], "source": ""})), r"float64 rows of 1"),
        (attribute("scene", "shapes", '[{"kind": "teapot"}]'), "not a scene description"),
        (info_line(1, "3"), r"/infos row 1 is 3; each must be a JSON object"),
        (info_line(1, "{"), "damaged or is not a capture"),
    ],
)
def test_a_capture_that_is_none_is_refused_with_what_and_where(tmp_path, whole, change, message):
    path = edit(Path(shutil.copy(whole, tmp_path)), change)
    for images in (True, False):
        with pytest.raises(CaptureError, match=message) as caught:
            read_episode(path, images=images)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["hdf5", "part"])
def test_bytes_changed_anywhere_are_refused_or_do_not_matter(tmp_path, whole, kind):
    """Never another error, a crash of HDF5 or memory without end."""
    data = whole.read_bytes() if kind == "hdf5" else record(tmp_path / "part", finish=False).read_bytes()
    path, random, refused = tmp_path / f"damaged.{kind}", np.random.default_rng(0), 0
    for _ in range(60):
        damaged = np.frombuffer(data, np.uint8).copy()
        places = random.integers(len(damaged), size=random.integers(1, 8))
        damaged[places] = random.integers(256, size=len(places))
        path.write_bytes(damaged.tobytes())
        try:
            read_episode(path)
        except CaptureError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"info": {"rate_hz": 1.0, "unknown": 1}, "layout": None, "step_info": {}},
        {"info": {"rate_hz": 1.0}, "layout": [1], "step_info": {}},
        {"info": [], "layout": None, "step_info": {}},
        {"info": {"rate_hz": "fast"}, "layout": None, "step_info": {}},
    ],
)
def test_a_part_that_no_recorder_wrote_is_refused(tmp_path, fields):
    path = tmp_path / "episode_000.part"
    path.write_bytes(MAGIC + encode(fields, freeze({})))
    with pytest.raises(CaptureError, match=r"episode_000\.part"):
        recover_part(path)


@pytest.mark.parametrize("shape", [[10**12], [-1], ["a"], [3, 3]])
def test_a_part_that_claims_more_than_it_holds_ends_there(tmp_path, shape):
    path = record(tmp_path, finish=False)
    text = json.dumps({"fields": {}, "arrays": [["scene", "<f8", shape]]}).encode()
    payload = struct.pack("<I", len(text)) + text + bytes(16)
    path.write_bytes(path.read_bytes() + struct.pack("<II", len(payload), zlib.crc32(payload)) + payload)
    episode = recover_part(path)
    assert len(episode) == STEPS
    assert episode.dropped_bytes == len(payload) + 8


def test_what_is_wrong_in_a_readable_capture_can_be_looked_at(tmp_path, whole):
    path = edit(Path(shutil.copy(whole, tmp_path)), put(2, 14, np.nan))
    assert np.isnan(read_episode(path, check=False).scene_values[2, 14])


def test_every_column_of_a_state_has_a_name():
    said = [name_column(LAYOUT, column) for column in range(LAYOUT.size)]
    assert said[0] == "the time"
    assert said[1] == "the root pose of 'arm'"
    assert said[8] == "the root velocity of 'arm'"
    assert said[14:16] == ["the position of joint 'elbow' of 'arm'", "the velocity of joint 'elbow' of 'arm'"]
    assert said[16] == said[22] == "the pose of link 'base' of 'arm'"
    assert said[23] == "the pose of link 'tip' of 'arm'"
    assert said[-1] == "the root velocity of 'box'"
