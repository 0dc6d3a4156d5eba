"""A window of MuJoCo's own viewer, which draws in a thread of its own."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import queue
import sys
import threading
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import mujoco

from remote_env.errors import ConfigError

OPEN_TIMEOUT_S = 60.0  # large meshes on a slow OpenGL
CLOSE_TIMEOUT_S = 10.0
_GL_RENDERER = 0x1F01
_INSTEAD = (
    "make a video instead (`remote-env replay CAPTURE` without --view), or give it a display: `xvfb-run` (Debian "
    "package xvfb) makes one that nobody sees, `ssh -X` brings yours"
)

Rows = Sequence[tuple[str, str]]


class Window:
    """MuJoCo's viewer of one model, open until the user or `close` ends it. Use it from one thread.

    Args:
        model: the mujoco.MjModel.
        data: its mujoco.MjData; the window shows what it holds at each `update`.

    Raises:
        ConfigError: no window can be opened here; the message says what to do.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        viewer = _import_viewer()
        self._model, self._shadow_size = model, model.vis.quality.shadowsize
        if "llvmpipe" in _check_display():
            model.vis.quality.shadowsize = 0  # in software they take ten times as long as all the rest
        self._keys: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._texts: list[Any] = []
        before = _viewer_threads()
        self._handle = _launch(viewer, model, data, self._keys.put)
        self._threads = _viewer_threads() - before

    @property
    def is_open(self) -> bool:
        """Whether the user has not closed it yet."""
        return bool(self._handle.is_running())

    @property
    def has_texts(self) -> bool:
        """Whether this MuJoCo's viewer can show texts."""
        return hasattr(self._handle, "set_texts")

    def lock(self) -> contextlib.AbstractContextManager[Any]:
        """Held while `data` is changed."""
        return self._handle.lock()  # type: ignore[no-any-return]

    def pressed(self) -> list[int]:
        """The keys that were pressed since the last call, as GLFW codes."""
        keys = []
        with contextlib.suppress(queue.Empty):
            while True:
                keys.append(self._keys.get_nowait())
        return keys

    def update(self, top: Rows = (), bottom: Rows = ()) -> None:
        """Show what `data` holds now, and rows of text at the top left and at the bottom left."""
        places = (mujoco.mjtGridPos.mjGRID_TOPLEFT, top), (mujoco.mjtGridPos.mjGRID_BOTTOMLEFT, bottom)
        texts = [(None, place, *map("\n".join, zip(*rows, strict=True))) for place, rows in places if rows]
        if self.has_texts and texts != self._texts:
            self._handle.set_texts(texts) if texts else self._handle.clear_texts()
            self._texts = texts
        self._handle.sync()

    def close(self) -> None:
        """Close it, and wait until its thread has ended; calling it again does nothing."""
        self._handle.close()
        for thread in self._threads:
            thread.join(CLOSE_TIMEOUT_S)
        self._model.vis.quality.shadowsize = self._shadow_size

    def __enter__(self) -> Window:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _viewer_threads() -> set[threading.Thread]:
    # MuJoCo keeps its thread to itself; Python names it after what it runs.
    return {thread for thread in threading.enumerate() if "_launch_internal" in thread.name}


def _import_viewer() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GLFW's own, of a library that it does not find
            return importlib.import_module("mujoco.viewer")
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"MuJoCo's viewer cannot be used here ({error}); {_INSTEAD}") from error


def _check_display() -> str:
    """Open and close a hidden window: MuJoCo's viewer would wait for ever where it cannot open one.

    Returns:
        The name of what renders there, where that is known.
    """
    if sys.platform == "darwin":
        return ""  # GLFW belongs to the main thread there, which mjpython keeps for itself
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ConfigError(f"there is no display to open a window on (DISPLAY is not set); {_INSTEAD}")
    glfw = importlib.import_module("glfw")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        window = _hidden_window(glfw)
    if window:
        return _renderer_name(glfw, window)
    why = "; ".join(str(warning.message).strip() for warning in told) or "GLFW does not say why"
    raise ConfigError(
        f"no window with OpenGL can be opened on display {os.environ.get('DISPLAY')!r} ({why}); {_INSTEAD}. "
        "OpenGL on a display needs the Debian packages libgl1 libgl1-mesa-dri"
    )


def _hidden_window(glfw: Any) -> Any:
    if not glfw.init():
        return None
    glfw.window_hint(glfw.VISIBLE, False)
    try:
        return glfw.create_window(64, 64, "remote-env", None, None)
    finally:
        glfw.default_window_hints()


def _renderer_name(glfw: Any, window: Any) -> str:
    glfw.make_context_current(window)
    address = glfw.get_proc_address("glGetString")
    name = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_uint)(address)(_GL_RENDERER) if address else None
    glfw.make_context_current(None)
    glfw.destroy_window(window)
    return (name or b"").decode(errors="replace")


def _launch(viewer: Any, model: mujoco.MjModel, data: mujoco.MjData, on_key: Any) -> Any:
    """The viewer's handle; it is waited for in a thread, since MuJoCo itself waits without a deadline."""
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def launch() -> None:
        try:
            panels = {"show_left_ui": False, "show_right_ui": False}
            results.put(viewer.launch_passive(model, data, key_callback=on_key, **panels))
        except BaseException as error:  # noqa: BLE001  # raised below
            results.put(error)

    thread = threading.Thread(target=launch, name="remote-env-viewer-start", daemon=True)
    thread.start()
    try:
        result = results.get(timeout=OPEN_TIMEOUT_S)
    except queue.Empty:
        raise ConfigError(f"MuJoCo's viewer has not opened within {OPEN_TIMEOUT_S:g} s; {_INSTEAD}") from None
    thread.join()
    if isinstance(result, RuntimeError) and "mjpython" in str(result):
        raise ConfigError(
            "on macOS a window needs MuJoCo's own interpreter: run the same command with `mjpython` instead of "
            "`python`; it comes with the mujoco package"
        ) from result
    if isinstance(result, BaseException):
        raise ConfigError(f"MuJoCo's viewer does not open ({type(result).__name__}: {result}); {_INSTEAD}") from result
    return result
