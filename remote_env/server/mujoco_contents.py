"""The contents of MuJoCo's data and models, for snapshots: all of them, so that not even a last bit is computed anew.

Of a model these are all its numbers but those that its compiler derives from shapes (meshes, skins, their bounding
volumes), which no task changes while it runs: they are most of its bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

_DERIVED = ("mesh_", "skin_", "bvh_", "oct_", "names", "paths", "text_", "flex_vert", "flex_elem", "flex_face")
_STRUCT_BYTES = 256 << 10  # statistics of solvers and timers, which each MjData has
_MAX_SPARE = 32
_PARTS = ("opt", "vis", "stat")

Content = tuple[bytes, tuple[Any, ...]]


class _KeptData:
    """A copy of data. Its memory goes to the next one when it is let go: making some takes as long as a step."""

    _spare: ClassVar[list[Any]] = []

    def __init__(self, data: Any) -> None:
        import mujoco

        model, spare = data.model, self._spare
        while spare and spare[-1].model is not model:
            spare.pop()  # of a task that is gone
        if spare:
            self.data = spare.pop()
            mujoco.mj_copyData(self.data, model, data)
        else:
            self.data = copy.copy(data)

    def __del__(self) -> None:
        if hasattr(self, "data") and len(self._spare) < _MAX_SPARE:
            self._spare.append(self.data)


def _restore_data(data: Any, content: _KeptData) -> None:
    import mujoco

    mujoco.mj_copyData(data, data.model, content.data)


def _data_size(data: Any) -> int:
    return int(_STRUCT_BYTES + getattr(data, "nbuffer", 0) + 2 * getattr(data, "maxuse_arena", 0))


def _data_children(data: Any) -> list[tuple[Any, str]]:
    return [(data.model, ".model")]


class _Model:
    """The numbers of one model, found once: its arrays are views of MuJoCo's own memory."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._arrays = list(_arrays(model))
        numbers = list(_numbers([getattr(model, part) for part in _PARTS]))
        self._small = [place for place in numbers if not isinstance(getattr(*place), np.ndarray)]
        self._arrays += [getattr(*place) for place in numbers if isinstance(getattr(*place), np.ndarray)]
        self.last: Content = (b"", ())

    def read(self) -> Content:
        """What they are now; the very object of the last time while that is the same, so that snapshots share it."""
        now = b"".join(self._arrays), tuple(getattr(*place) for place in self._small)
        if now != self.last:
            self.last = now
        return self.last

    def write(self, content: Content) -> None:
        """Put all numbers back where one has changed, which of hardly any task it has."""
        if self.read() is content or self.last == content:
            return
        start = 0
        for array in self._arrays:
            array[...] = np.frombuffer(content[0], array.dtype, array.size, start).reshape(array.shape)
            start += array.nbytes
        for (owner, name), value in zip(self._small, content[1], strict=True):
            if getattr(owner, name) != value:
                setattr(owner, name, value)


def _arrays(model: Any) -> Iterator[Any]:
    for name in dir(model):
        if not name.startswith(("_", *_DERIVED)):
            value = getattr(model, name)
            if isinstance(value, np.ndarray) and value.flags.writeable and value.size:
                yield value


def _numbers(owners: list[Any]) -> Iterator[tuple[Any, str]]:
    """Where the options of a model lie: (owner, name)."""
    for owner in owners:
        for name in dir(owner):
            value = None if name.startswith("_") else getattr(owner, name)
            if isinstance(value, (int, float, np.ndarray)):
                yield owner, name
            elif type(value).__module__.partition(".")[0] == "mujoco":
                yield from _numbers([value])


class _Models:
    """Models of tasks; the places of the last one's numbers are remembered."""

    def __init__(self) -> None:
        self._known: _Model | None = None

    def count(self, model: Any) -> int:
        """How much more memory keeping the model takes [bytes]: none while it is as it was when it was kept last."""
        known = self._find(model)
        last = known.last
        now = known.read()
        return 0 if now is last else len(now[0])

    def save(self, model: Any) -> Content:
        """Its numbers, as they were counted."""
        return self._find(model).last

    def restore(self, model: Any, content: Content) -> None:
        """Put the numbers back."""
        self._find(model).write(content)

    def _find(self, model: Any) -> _Model:
        if self._known is None or self._known.model is not model:
            self._known = _Model(model)
        return self._known


_MODELS = _Models()


def _no_children(_model: Any) -> list[tuple[Any, str]]:
    return []


# By full name, so that MuJoCo is not imported where no task has it.
MUJOCO_CONTENTS: dict[str, tuple[Any, Any, Any, Any]] = {
    "mujoco._structs.MjData": (_KeptData, _restore_data, _data_children, _data_size),
    "mujoco._structs.MjModel": (_MODELS.save, _MODELS.restore, _no_children, _MODELS.count),
}
