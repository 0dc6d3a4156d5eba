"""Factories of the user's own: "module:function" or "file.py:function", imported and called."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from remote_env.errors import ConfigError

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_FILE = re.compile(r".+\.py:[A-Za-z_]\w*")


def is_factory(text: str) -> bool:
    """Whether `text` is written as a factory: "module:function" or "file.py:function"."""
    return bool(_MODULE.fullmatch(text) or _FILE.fullmatch(text))


def load_factory(text: str, folder: Path | None = None) -> Callable[..., Any]:
    """The function that `text` names.

    Args:
        text: "package.module:function", which must be importable, or "file.py:function".
        folder: what a file's path is relative to; None takes the working directory.

    Raises:
        ConfigError: there is no such module, file or function, or importing it failed.
    """
    place, _, name = text.rpartition(":")
    module = _load_file(place, folder or Path()) if place.endswith(".py") else _load_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        own = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise ConfigError(f"{place} has no function {name!r}; it has {', '.join(own) or 'none'}")
    result: Callable[..., Any] = function
    return result


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether the function has a keyword argument of this name, or takes any."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def call_factory(text: str, function: Callable[..., Any], options: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """What the factory makes.

    Args:
        text: its name, for messages.
        function: the factory.
        options: keyword arguments that it gets if it takes them.
        given: keyword arguments that it must take.

    Raises:
        ConfigError: it does not take what is given, or it raised.
    """
    if unknown := [name for name in given if not takes(function, name)]:
        taken = ", ".join(inspect.signature(function).parameters) or "nothing"
        raise ConfigError(f"{text} takes no {', '.join(map(repr, unknown))}; it takes {taken}")
    kept = {name: value for name, value in options.items() if takes(function, name)}
    try:
        return function(**{**kept, **given})
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{text} raised {type(error).__name__}: {error}\n{traceback.format_exc()}") from error


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"no module {name!r} can be imported here; install it, put its folder on PYTHONPATH, or name its file: "
                f"./{name.rpartition('.')[2]}.py:function"
            ) from error
        raise ConfigError(_import_failure(name, error)) from error
    except Exception as error:
        raise ConfigError(_import_failure(name, error)) from error


def _load_file(text: str, folder: Path) -> ModuleType:
    path = (folder / Path(text).expanduser()).resolve()
    if not path.is_file():
        raise ConfigError(f"no file {path}")
    # Of the path, so that two files of one name do not meet; kept, so that what it defines can be pickled.
    name = f"remote_env_factory_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(_import_failure(str(path), error)) from error
    return module


def _import_failure(name: str, error: Exception) -> str:
    return f"importing {name} raised {type(error).__name__}: {error}\n{traceback.format_exc()}"
