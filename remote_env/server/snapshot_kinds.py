"""Which objects of a task have contents that change, and which of these Python sees wholly."""

from __future__ import annotations

import enum
import functools
import logging
import numbers
import threading
import types
import weakref
from typing import Any

import gymnasium
import numpy as np

_POINTER = object.__basicsize__ // 2
_FUNCTIONS = (types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType, np.ufunc)
# What never changes, or is left as it is: where a log goes, who waits, what an error was.
_CONSTANT = (
    *(str, bytes, numbers.Number, np.generic, np.dtype, type(None), type(...), type(NotImplemented), range, slice),
    *(type, types.ModuleType, types.MappingProxyType, property, enum.Enum, BaseException, types.CodeType),
    *(*_FUNCTIONS, functools._lru_cache_wrapper, weakref.ref, logging.Logger, logging.Handler),
    gymnasium.envs.registration.EnvSpec,
)
_CONSTANT_MODULES = {
    *(
        "datetime",
        "decimal",
        "_decimal",
        "fractions",
        "pathlib",
        "pathlib._local",
        "uuid",
        "re",
        "operator",
        "_operator",
    ),
    *("_thread", "threading", "io", "_io", "zoneinfo", "inspect", "typing"),
}
# What goes on elsewhere, whatever its Python object says.
_ELSEWHERE = ("subprocess", "multiprocessing", "concurrent", "asyncio", "socket", "ssl", "selectors", "ctypes")
# Windows, pictures and sounds: they show a state, and hold none.
_DEVICES = (
    *("pygame", "OpenGL", "glfw", "matplotlib", "remote_env.render", "dm_control._render"),
    "gymnasium.envs.mujoco.mujoco_rendering",
)
_KEPT_OF_MUJOCO = ("MjModel", "MjData")


def is_constant(kind: type) -> bool:
    """Whether objects of this kind are left alone: they do not change, or are no part of a task's state."""
    module = kind.__module__
    if is_elsewhere(kind):
        return False
    if issubclass(kind, _CONSTANT) or module in _CONSTANT_MODULES:
        return True
    if module.partition(".")[0] == "mujoco":
        return kind.__name__ not in _KEPT_OF_MUJOCO
    return any(module == device or module.startswith(device + ".") for device in _DEVICES)


def is_elsewhere(kind: type) -> bool:
    """Whether objects of this kind stand for something that goes on by itself: a process, a thread, a connection."""
    return issubclass(kind, threading.Thread) or any(
        base.__module__.partition(".")[0] in _ELSEWHERE for base in kind.__mro__
    )


def slot_names(kind: type) -> tuple[str, ...]:
    """Attributes that objects of this kind keep in slots."""
    names: list[str] = []
    for base in kind.__mro__:
        slots: Any = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                hidden = name.startswith("__") and not name.endswith("__")
                names.append(f"_{base.__name__.lstrip('_')}{name}" if hidden else name)
    return tuple(names)


def is_plain(kind: type) -> bool:
    """Whether objects of this kind have attributes alone: no memory that only their C code knows."""
    extra = sum(_POINTER for offset in (kind.__dictoffset__, kind.__weakrefoffset__) if offset > 0)
    return kind.__basicsize__ == object.__basicsize__ + _POINTER * len(slot_names(kind)) + extra
