"""Say which part of a value cannot cross, and what to do. Pure; runs only after an encoding failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from remote_env.errors import InputError

# By the name of the type, or of its top module: the libraries themselves are never imported here.
_ADVICE = {
    "torch": "convert it with .detach().cpu().numpy()",
    "jax": "convert it with np.asarray(...)",
    "jaxlib": "convert it with np.asarray(...)",
    "warp": "convert it with .numpy()",
    "tensorflow": "convert it with .numpy()",
    "datetime": "send .isoformat() or .timestamp()",
    "pathlib": "send str(...)",
    "set": "send a sorted list",
    "frozenset": "send a sorted list",
    "range": "send a list",
    "memoryview": "send bytes(...)",
}


def explain(value: Any, where: str, error: Exception, *, max_depth: int, try_leaf: Callable[[Any], Any]) -> InputError:
    """The error that names the first part of `value` that cannot cross.

    Args:
        value: what could not be encoded.
        where: what it is ("info").
        error: why it could not, if the parts do not tell.
        max_depth: how deep containers may be inside each other.
        try_leaf: raises when its argument, which is no container, cannot be encoded.
    """
    for path, part, depth in _parts(value, where, 1, max_depth):
        if depth > max_depth:
            return InputError(
                f"{where} is nested deeper than {max_depth} levels, from {_short(path)} on: make it flatter "
                "(does it contain itself?)"
            )
        try:
            try_leaf(part)
        except Exception as leaf_error:  # noqa: BLE001  whatever it is, the part cannot cross
            return InputError(
                f"{_short(path)} is {describe(part)}, which cannot cross to the other end: {_advice(part, leaf_error)}"
            )
    return InputError(f"{where} cannot be sent: {error}; send less, or simpler values")


def _parts(value: Any, path: str, depth: int, max_depth: int) -> Iterator[tuple[str, Any, int]]:
    """The leaves of `value`, depth first, each with its path; what is too deep counts as a leaf."""
    if not isinstance(value, (dict, list, tuple)) or depth > max_depth:
        yield path, value, depth if isinstance(value, (dict, list, tuple)) else 0
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _parts(key, f"the key {_shown(key)} of {path}", depth + 1, max_depth)
            yield from _parts(item, f"{path}[{_shown(key)}]", depth + 1, max_depth)
    else:
        for index, item in enumerate(value):
            yield from _parts(item, f"{path}[{index}]", depth + 1, max_depth)


def describe(value: Any) -> str:
    """`value`'s type, and its dtype and shape when it is an array."""
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, (np.ndarray, np.generic)):
        return f"a {name} of dtype {value.dtype} and shape {value.shape}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _advice(value: Any, error: Exception) -> str:
    if isinstance(value, np.ndarray):
        return _array_advice(value)
    if isinstance(value, np.generic):
        return "convert it to a Python number or str, or to a float64 or int64"
    if isinstance(value, str):
        return f"it has lone surrogates ({error}): encode it to bytes with errors='surrogateescape'"
    if isinstance(value, int):
        return f"{error}: send it as bytes or text"
    kind = type(value)
    advice = _ADVICE.get(kind.__name__) or _ADVICE.get(kind.__module__.partition(".")[0])
    return advice or "convert it to a numpy array, a number, a str, or lists and dicts of these"


def _array_advice(value: np.ndarray[Any, Any]) -> str:
    if isinstance(value, np.ma.MaskedArray):
        return "send its .filled(...) values and its mask as two arrays"
    if value.dtype.kind in "OUSTV":
        return "send a list (.tolist()), or one array per field"
    if value.dtype.kind in "mM":
        return "send .astype(np.int64) and say the unit in the key"
    if value.dtype.char in "gG":
        return "convert it with .astype(np.float64), or np.complex128"
    return "convert it with np.asarray(...) to at most 32 dimensions, each below 2**32"


def _shown(key: Any) -> str:
    try:
        return _short(repr(key))
    except Exception:  # noqa: BLE001  a foreign __repr__ may raise anything
        return f"<{type(key).__name__}>"


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:100]}…{text[-100:]}"
