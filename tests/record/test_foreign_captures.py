"""Captures that somebody else made to do harm: they reach no other file, claim no memory, and are told as damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from remote_env.errors import CaptureError
from remote_env.record import read_episode, reading
from remote_env.record.inspection import inspect_capture

GOLDEN = Path(__file__).parents[1] / "data" / "isaac_cartpole.hdf5"
STEPS = 150


def replaced(name: str, **dataset: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **dataset)

    return change


def linked(file: h5py.File) -> None:
    del file["action"]
    file["action"] = h5py.ExternalLink(str(GOLDEN), "/action")


def virtual(file: h5py.File) -> None:
    del file["action"]
    layout = h5py.VirtualLayout((STEPS, 1), "f4")
    layout[:] = h5py.VirtualSource(str(GOLDEN), "action", (STEPS, 1))
    file.create_virtual_dataset("action", layout)


def twins(file: h5py.File) -> None:
    layout = json.loads(file["scene"].attrs["layout"])
    layout["entities"] *= 2
    file["scene"].attrs["layout"] = json.dumps(layout)


CHUNKED = {"shape": (STEPS, 1), "maxshape": (None, 1), "chunks": (10**9 - 1, 1), "dtype": "f4", "compression": "gzip"}
IN_ANOTHER_FILE = {"shape": (STEPS, 1), "dtype": "f4", "external": [(str(GOLDEN), 0, STEPS * 4)]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replaced("action", **IN_ANOTHER_FILE), "/action has its numbers in other files"),
        (linked, "/action is a link into another file"),
        (virtual, "/action has its numbers in other files"),
        (replaced("action", **CHUNKED), "/action claims .*3999999996 bytes"),
        (replaced("rewards", data=[b"one"] * STEPS), "/rewards has dtype .*numbers were expected"),
        (replaced("rewards", data=1.0), r"/rewards is float64 \(\); a real number for each step"),
        (replaced("rewards", data=np.zeros((STEPS, 2))), "a real number for each step"),
        (replaced("terminated", data=np.zeros(STEPS, complex)), "a real number for each step"),
        (replaced("observations/qpos", data=1.0), "/observations/qpos is one number"),
        (replaced("scene/values", data=1.0), "/scene/values is one number"),
        (twins, "two entities share a name"),
    ],
)
def test_a_capture_that_does_harm_is_damaged(tmp_path: Path, change: Callable[[h5py.File], None], said: str) -> None:
    path = tmp_path / "episode_000.hdf5"
    shutil.copy(GOLDEN, path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(CaptureError, match=f"episode_000.hdf5 is damaged or is not a capture: .*{said}"):
        read_episode(path)
    with pytest.raises(CaptureError, match=said):
        inspect_capture(path)


def test_images_that_are_no_group_are_told_as_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "episode_000.hdf5"
    shutil.copy(GOLDEN, path)
    with h5py.File(path, "r+") as file:
        file["observations"].create_dataset("images", data=1)
    facts = inspect_capture(path)
    assert facts["images"] == {}
    assert "is damaged or is not a capture" in facts["problem"]


def test_a_text_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_TEXT_BYTES", 1000)
    with pytest.raises(CaptureError, match="/scene/mjcf is a text of more than 1000 bytes"):
        read_episode(GOLDEN)


def test_a_value_that_no_scene_has_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "episode_000.hdf5"
    shutil.copy(GOLDEN, path)
    with h5py.File(path, "r+") as file:
        file["scene/values"][7, 1] = 1e300
    with pytest.raises(CaptureError, match=r"in row 7 is beyond all bounds: the root pose of 'cartpole' is 1e\+300"):
        read_episode(path)
