"""Snapshots of a task: what its objects hold, noted so that the very same objects can be put back to it.

A snapshot notes every object that the environment reaches (wrappers, lists, arrays, generators, MuJoCo's data), and
of each its contents. Going back puts these contents into the same objects and binds the same names to them, so that
what is a view of something stays one, and two names of one thing stay that. Nothing is copied by its meaning, hence
nothing has to be known of a task, except where its state does not lie in Python: then it is `Unsupported`.

The random numbers that Python and NumPy have for everybody go back, too. What a task does outside its own objects
(files, windows, other processes, attributes of classes and modules) is not undone.
"""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from remote_env.errors import Unsupported
from remote_env.server.mujoco_contents import MUJOCO_CONTENTS
from remote_env.server.snapshot import Snapshot
from remote_env.server.snapshot_contents import ITEM_BYTES, KEEPERS, Child, Content, Keeper
from remote_env.server.snapshot_kinds import is_constant, is_elsewhere, is_plain, slot_names

_ENTRY_BYTES = 64  # about what one noted object costs, its contents aside
_SHARED_BYTES = 24 << 10  # random numbers' states of Python and NumPy

Path = tuple[Any, str]  # the path of the owner, and what this one is called there: joined only to be shown


class GraphSnapshot(Snapshot):
    """Contents of all objects that an environment reaches.

    Args:
        env: a `gymnasium.Env`. One whose unwrapped object has `get_snapshot()` and `set_snapshot(snapshot)` is asked
            for its own state instead; its wrappers and its `np_random` are noted as all others.
        limit_bytes: how large the snapshot may become.

    Raises:
        Unsupported: part of the state lies where Python cannot reach it; the message says at which attribute. Or it is
            larger than the limit.
    """

    def __init__(self, env: Any, limit_bytes: int) -> None:
        self.size_bytes = _SHARED_BYTES
        self._limit_bytes = limit_bytes
        self._notes: list[tuple[Callable[[Any, Content], None], Any, Content]] = []
        self._own: tuple[Any, Content] | None = None
        self._global_numbers = np.random.get_state(), random.getstate()
        self._walk(env)

    def restore(self) -> None:
        """See `Snapshot.restore`."""
        numpy_state, python_state = self._global_numbers
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        for restore, value, content in self._notes:
            restore(value, content)
        if self._own is not None:
            self._own[0].set_snapshot(self._own[1])

    def _walk(self, env: Any) -> None:
        seen: dict[int, Any] = {}  # and alive, so that no id is given out twice
        pending: list[tuple[Any, Path]] = [(env, ((), "env"))]
        task = env.unwrapped
        if hasattr(task, "get_snapshot") and hasattr(task, "set_snapshot"):
            seen[id(task)] = task
            pending.append((_find_generator(task), (((), "env"), "np_random")))
            self._own = (task, task.get_snapshot())
            self._count(_size_of(self._own[1]), ((), "get_snapshot()"))
        while pending:
            value, path = pending.pop()
            if id(value) in seen:
                continue
            keeper = keeper_of(type(value))
            if keeper is None:
                continue
            if isinstance(keeper, str):
                raise _unsupported(path, value, keeper)
            seen[id(value)] = value
            self._count(_ENTRY_BYTES + keeper.size(value), path)
            content = keeper.save(value)
            if content is not None:
                self._notes.append((keeper.restore, value, content))
            pending += [(child, (path, name)) for child, name in keeper.children(value)]

    def _count(self, size_bytes: int, path: Path) -> None:
        self.size_bytes += size_bytes
        if self.size_bytes > self._limit_bytes:
            raise Unsupported(
                f"a snapshot of this task needs more than the {self._limit_bytes >> 20} MiB that are left for it (at "
                f"{_show(path)}); forget() others, or give the task get_snapshot() and set_snapshot(snapshot) "
                "that keep only what changes"
            )


def keeper_of(kind: type) -> Keeper | str | None:
    """How objects of this kind are kept; None when they have no contents of ours, a text when they cannot be kept."""
    if kind not in _FOUND:
        _FOUND[kind] = _find_keeper(kind)
    return _FOUND[kind]


_FOUND: dict[type, Keeper | str | None] = {}


def _find_keeper(kind: type) -> Keeper | str | None:
    if is_constant(kind):
        return None
    if is_elsewhere(kind):
        return "stands for what goes on outside of the task's objects"
    for base in kind.__mro__:
        known = KEEPERS.get(base) or MUJOCO_CONTENTS.get(f"{base.__module__}.{base.__name__}")
        if known is not None:
            return _with_attributes(kind, Keeper(*known))
    return _Attributes(kind).keeper() if is_plain(kind) else "keeps its state outside of Python"


def _with_attributes(kind: type, keeper: Keeper) -> Keeper:
    """Also the attributes of a class that adds some to a list, a dict, an array."""
    if not kind.__dictoffset__ or issubclass(kind, (gymnasium.Space, types.FunctionType, functools.partial)):
        return keeper
    own = _Attributes(kind).keeper()

    def restore(value: Any, content: Content) -> None:
        if content[0] is not None:
            keeper.restore(value, content[0])
        own.restore(value, content[1])

    return Keeper(
        lambda value: (keeper.save(value), own.save(value)),
        restore,
        lambda value: [*keeper.children(value), *own.children(value)],
        lambda value: keeper.size(value) + own.size(value),
    )


class _Attributes:
    """Attributes of objects of one class, those in slots among them.

    What its class computes at the first use (`functools.cached_property`) is no state, and stays as it is.
    """

    def __init__(self, kind: type) -> None:
        self._slots = slot_names(kind)
        classes = [vars(base) for base in kind.__mro__]
        self._computed = tuple(
            name for names in classes for name, value in names.items() if isinstance(value, functools.cached_property)
        )

    def keeper(self) -> Keeper:
        """How these are kept."""
        return Keeper(self._save, self._restore, self._children, lambda value: ITEM_BYTES * len(_dict_of(value)))

    def _save(self, value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        kept = dict(_dict_of(value))
        for name in self._computed:
            kept.pop(name, None)
        return kept, {name: getattr(value, name) for name in self._slots if hasattr(value, name)}

    def _restore(self, value: Any, content: tuple[dict[str, Any], dict[str, Any]]) -> None:
        kept, slots = content
        attributes = _dict_of(value)
        computed = {name: attributes[name] for name in self._computed if name in attributes}
        attributes.clear()
        attributes.update(kept)
        attributes.update(computed)
        for name in self._slots:
            if name in slots:
                object.__setattr__(value, name, slots[name])
            elif hasattr(value, name):
                object.__delattr__(value, name)

    def _children(self, value: Any) -> list[Child]:
        return [(part, f".{name}") for parts in self._save(value) for name, part in parts.items()]


def _dict_of(value: Any) -> dict[str, Any]:
    return getattr(value, "__dict__", {})


def _find_generator(task: Any) -> Any:
    return vars(task).get("_np_random") if hasattr(task, "__dict__") else None


def _size_of(value: Any) -> int:
    """About how much memory a task's own snapshot takes."""
    if isinstance(value, Mapping):
        return sum(_size_of(part) + ITEM_BYTES for part in value.values())
    if isinstance(value, (list, tuple)):
        return sum(map(_size_of, value))
    if isinstance(value, (bytes, bytearray)):
        return len(value)
    return int(getattr(value, "nbytes", _ENTRY_BYTES))


def _show(path: Any) -> str:
    return f"{_show(path[0])}{path[1]}" if path else ""


def _unsupported(path: Path, value: Any, why: str) -> Unsupported:
    kind = type(value)
    return Unsupported(
        f"this task has no snapshots: {_show(path)}, a {kind.__module__}.{kind.__qualname__}, {why}; give the task "
        "get_snapshot() and set_snapshot(snapshot), or do without snapshot(), fork() and try_chunks()"
    )
