"""Captures that are cut short, changed, or contradict themselves are refused, with what and where."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from recorded import recorded

from remote_env.errors import CaptureError
from remote_env.record import read_episode


def test_a_capture_cut_short_says_so(tmp_path):
    path = recorded(tmp_path, camera=True)
    data = path.read_bytes()
    for cut in range(0, len(data), len(data) // 20):
        path.write_bytes(data[:cut])
        with pytest.raises(CaptureError, match=r"episode_000\.hdf5"):
            read_episode(path)


def test_a_flipped_bit_in_any_number_is_noticed(tmp_path):
    path = recorded(tmp_path, camera=True)
    with h5py.File(path) as root:
        names = [
            "action",
            "rewards",
            "terminated",
            "observations/qpos",
            "observations/images/top",
            "scene/values",
        ]
        places = {name: root[name].id.get_chunk_info(0).byte_offset for name in names}
    data = path.read_bytes()
    for place in places.values():
        damaged = bytearray(data)
        damaged[place + 8] ^= 16
        path.write_bytes(damaged)
        with pytest.raises(CaptureError, match="damaged"):
            read_episode(path)


def edited(path: Path, edit) -> Path:
    with h5py.File(path, "r+") as root:
        edit(root)
    return path


def replace(name: str, change):
    def edit(root):
        values = change(root[name][()])
        del root[name]
        root[name] = values

    return edit


def set_value(row: int, column: int, value: float):
    def change(values):
        values[row, column] = value
        return values

    return replace("scene/values", change)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda root: root.attrs.__setitem__("schema", "other"), "schema is 'other'"),
        (lambda root: root.attrs.__setitem__("schema_version", 99), "version 99"),
        (lambda root: root.attrs.__setitem__("rate_hz", -1.0), "rate_hz"),
        (lambda root: root["scene"].attrs.__setitem__("layout", "{}"), "damaged"),
        (lambda root: root.__delitem__("action"), "action"),
        (replace("action", lambda values: values[:3]), "'action': 3"),
        (replace("observations/qpos", lambda values: values[:2]), "'observations/qpos': 2"),
        (replace("scene/values", lambda values: values[:4]), "'scene/values': 3"),
        (replace("scene/values", lambda values: values[:, :-1]), "float64 rows"),
        (set_value(2, 0, np.nan), "row 2 has the time nan"),
        (set_value(3, 5, np.inf), "row 3 .* 'arm'"),
        (set_value(3, 4, 50.0), "quaternion of norm"),
    ],
)
def test_a_capture_that_contradicts_itself_says_where(tmp_path, edit, message):
    path = edited(recorded(tmp_path), edit)
    with pytest.raises(CaptureError, match=message):
        read_episode(path)


def test_a_missing_capture_and_another_kind_of_file(tmp_path):
    with pytest.raises(CaptureError, match="there is no capture"):
        read_episode(tmp_path / "none.hdf5")
    other = tmp_path / "act.hdf5"
    with h5py.File(other, "w") as root:
        root["action"] = np.zeros((3, 14))
    with pytest.raises(CaptureError, match="schema"):
        read_episode(other)
    with pytest.raises(CaptureError):
        read_episode(tmp_path)
