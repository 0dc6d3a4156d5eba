"""Frames of a MuJoCo model, off screen: tasks, replay and mirrors share this one renderer.

Without a display, MuJoCo's own default (GLFW) fails. `FrameRenderer` makes its OpenGL context itself, so that
it works whenever `mujoco` was imported and without setting `MUJOCO_GL`:

1. `MUJOCO_GL` = `egl`, `osmesa`, `glfw` … is obeyed;
2. Linux without a display that GLFW can open: EGL when a device can be initialised, else OSMesa (software);
3. otherwise MuJoCo's default for the platform, which is GLFW.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import os
import sys
import warnings
import weakref
from collections.abc import Iterator
from typing import Any, Literal

import mujoco
import numpy as np
from numpy.typing import NDArray

from remote_env.errors import ConfigError

Frame = NDArray[np.uint8]  # (H, W, 3) RGB
Quality = Literal["full", "fast"]
QUALITIES: tuple[Quality, ...] = ("full", "fast")

_MAX_GEOMS = 10_000
_FONT_SCALE = 150
_EGL_PLATFORM_DEVICE = 0x313F  # EGL_EXT_platform_device
_PACKAGES = {"egl": "libegl1 libopengl0 libgl1-mesa-dri", "osmesa": "libosmesa6"}

_process_ids: set[int] = set()  # this process, once it used OpenGL; a forked child finds its parent here
_inherited: list[tuple[Any, Any]] = []
_open_renderers: weakref.WeakSet[FrameRenderer] = weakref.WeakSet()


class FrameRenderer:
    """Turns states of one MuJoCo model into images. Use it from one thread at a time.

    Args:
        model: the mujoco.MjModel whose data will be rendered.
        width: image width [pixels].
        height: image height [pixels].
        quality: "full" renders the model as shipped; "fast" drops multisampling and shadows, which in
            software OpenGL is about ten times faster (ALOHA, 640×480: some 12 ms instead of 100).

    Raises:
        ConfigError: the size or quality is not possible, or no OpenGL can be used here; the message names the
            Debian package to install.
    """

    def __init__(self, model: Any, *, width: int, height: int, quality: Quality = "full") -> None:
        check_image_settings(width, height, quality)
        self.model = model
        self.width, self.height = int(width), int(height)
        self.quality = quality
        self._process_id = os.getpid()
        self._gl: Any = _make_gl_context(self.width, self.height)
        self._gl.make_current()
        with _visual_settings(model, self.width, self.height, quality):
            self._context: Any = _make_mujoco_context(model, self.width, self.height)
        self._scene = mujoco.MjvScene(model, _MAX_GEOMS)
        if quality == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._option = mujoco.MjvOption()
        self._viewport = mujoco.MjrRect(0, 0, self.width, self.height)
        self._pixels = np.empty((self.height, self.width, 3), np.uint8)
        self._cameras: dict[str | int, Any] = {}
        _close_before_exit(self)

    def render(self, data: Any, camera: str | int | mujoco.MjvCamera = -1) -> NDArray[np.uint8]:
        """The image that `camera` sees in `data`.

        Args:
            data: mujoco.MjData of this renderer's model, its poses up to date (after `mj_forward` or a step).
            camera: a camera's name or index in the model, -1 for MuJoCo's free camera, or a camera that the caller
                placed.

        Returns:
            (height, width, 3) uint8 RGB, row 0 at the top; a new array.

        Raises:
            ConfigError: the model has no such camera, or this renderer is closed.
        """
        if self._context is None:
            raise ConfigError("this FrameRenderer is closed; make a new one to render again")
        self._gl.make_current()
        categories = mujoco.mjtCatBit.mjCAT_ALL.value
        view = camera if isinstance(camera, mujoco.MjvCamera) else self._camera(camera)
        mujoco.mjv_updateScene(self.model, data, self._option, None, view, categories, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._viewport, self._context)
        return np.ascontiguousarray(self._pixels[::-1])  # OpenGL's row 0 is at the bottom

    def close(self) -> None:
        """Free the OpenGL context; calling it again does nothing."""
        context, self._context = self._context, None
        gl, self._gl = self._gl, None
        _open_renderers.discard(self)
        if context is None:
            return
        if self._process_id != os.getpid():
            # A forked child has its parent's context without the driver's threads: freeing it, even when it is
            # garbage-collected, waits for them for ever.
            _inherited.append((gl, context))
            return
        gl.make_current()
        context.free()
        gl.free()

    def __enter__(self) -> FrameRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _camera(self, camera: str | int) -> Any:
        if camera not in self._cameras:
            self._cameras[camera] = _make_camera(self.model, camera_index(self.model, camera))
        return self._cameras[camera]


def camera_names(model: Any) -> tuple[str, ...]:
    """The names of `model`'s cameras, in the model's order."""
    return tuple(model.camera(index).name for index in range(model.ncam))


def camera_index(model: Any, camera: str | int) -> int:
    """The index of `camera` (a name or an index, -1 for the free camera); ConfigError lists the names."""
    names = camera_names(model)
    if isinstance(camera, str) and camera in names:
        return names.index(camera)
    if not isinstance(camera, str) and -1 <= camera < len(names):
        return int(camera)
    raise ConfigError(f"the model has no camera {camera!r}; its cameras are {', '.join(names) or 'none'}")


def check_image_settings(width: int, height: int, quality: str) -> None:
    """Raise ConfigError unless an image of this size and quality can be asked for."""
    for name, pixels in (("width", width), ("height", height)):
        if not isinstance(pixels, (int, np.integer)) or isinstance(pixels, bool) or not 1 <= pixels <= 8192:
            raise ConfigError(f"{name}={pixels!r} is not an image size; give a whole number from 1 to 8192")
    if quality not in QUALITIES:
        raise ConfigError(f"quality={quality!r} is unknown; choose 'full' (as shipped) or 'fast' (no shadows)")


def _make_camera(model: Any, index: int) -> Any:
    camera = mujoco.MjvCamera()
    if index < 0:
        mujoco.mjv_defaultFreeCamera(model, camera)
    else:
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = index
    return camera


@contextlib.contextmanager
def _visual_settings(model: Any, width: int, height: int, quality: Quality) -> Iterator[None]:
    """Give the model this frame buffer while its OpenGL context is made; afterwards it is as shipped."""
    size, wanted = model.vis.global_, model.vis.quality
    saved = (size.offwidth, size.offheight, wanted.offsamples, wanted.shadowsize)
    size.offwidth, size.offheight = width, height
    if quality == "fast":
        wanted.offsamples = wanted.shadowsize = 0
    try:
        yield
    finally:
        size.offwidth, size.offheight, wanted.offsamples, wanted.shadowsize = saved


def _make_mujoco_context(model: Any, width: int, height: int) -> Any:
    try:
        context = mujoco.MjrContext(model, _FONT_SCALE)
    except mujoco.FatalError as error:
        raise ConfigError(f"OpenGL cannot make a {width}×{height} frame buffer here: {error}") from error
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)
    return context


def gl_backend() -> str:
    """Which OpenGL a new renderer will use: "egl", "osmesa" or "default" (what MuJoCo chose at its import).

    Raises:
        ConfigError: rendering is switched off by `MUJOCO_GL`, it asks for GLFW without a display, or neither EGL nor
            OSMesa is installed.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    if asked in ("disable", "disabled", "off", "false", "0"):
        raise ConfigError(f"MUJOCO_GL={asked} switches rendering off; unset it, or set it to egl or osmesa")
    if asked in ("egl", "osmesa"):
        return asked
    if not sys.platform.startswith("linux") or _display_opens():
        return "default"
    if asked:
        raise ConfigError(
            f"MUJOCO_GL={asked} needs a display, and GLFW opens none here (DISPLAY="
            f"{os.environ.get('DISPLAY', '')!r}); unset MUJOCO_GL, or set it to egl (on Debian and Ubuntu: "
            f"`sudo apt-get install {_PACKAGES['egl']}`) or osmesa (`sudo apt-get install {_PACKAGES['osmesa']}`)"
        )
    return _headless_backend()


def _display_opens() -> bool:
    """Whether GLFW can open a display; one that is named may be gone, as after a cut `ssh -X`."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    import glfw  # type: ignore[import-untyped,unused-ignore]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of what it also returns
        return bool(glfw.init())


def _headless_backend() -> str:
    # PyOpenGL serves one platform per process, so whichever was loaded first stays.
    loaded = os.environ.get("PYOPENGL_PLATFORM", "").lower()
    if loaded in _PACKAGES:
        return loaded
    if _egl_works():
        return "egl"
    if _library("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so") is not None:
        return "osmesa"
    raise ConfigError(
        "no display opens, and neither EGL nor OSMesa can be used to render here; install one of them, such as "
        f"`sudo apt-get install {_PACKAGES['osmesa']}` (software) or "
        f"`sudo apt-get install {_PACKAGES['egl']}`"
    )


def _make_gl_context(width: int, height: int) -> Any:
    if _process_ids and os.getpid() not in _process_ids:
        raise ConfigError(
            "OpenGL was already used when this process was forked, and would wait here for ever for threads that "
            "a fork does not copy; start such workers with the 'spawn' method, or before anything is rendered"
        )
    _process_ids.add(os.getpid())
    backend = gl_backend()
    try:
        # PyOpenGL fails in many ways when a library is missing: ImportError, AttributeError, its own errors.
        make = importlib.import_module(f"mujoco.{backend}").GLContext if backend in _PACKAGES else None
        return (make or mujoco.GLContext)(width, height)
    except Exception as error:
        raise ConfigError(_gl_advice(backend, error)) from error


def _gl_advice(backend: str, error: Exception) -> str:
    advice = "set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
    if backend in _PACKAGES:
        advice = f"`sudo apt-get install {_PACKAGES[backend]}` brings what it needs on Debian and Ubuntu"
    return f"the OpenGL backend {backend!r} does not work here ({type(error).__name__}: {error}); {advice}"


def _library(*names: str) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _egl_works() -> bool:
    """Whether some EGL device can be initialised; asked before PyOpenGL commits this process to EGL."""
    egl = _library("libEGL.so.1")
    if egl is None or _library("libOpenGL.so.0", "libGL.so.1") is None:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    addresses = [egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")]
    if not all(addresses):
        return False
    pointer = ctypes.c_void_p
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, pointer, pointer)(addresses[0])
    display_of = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(addresses[1])
    devices, count = (pointer * 16)(), ctypes.c_int(0)
    if not query(16, ctypes.byref(devices), ctypes.byref(count)):
        return False
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    displays = (display_of(_EGL_PLATFORM_DEVICE, device, None) for device in devices[: count.value])
    return any(display and egl.eglInitialize(display, None, None) for display in displays)


def _close_before_exit(renderer: FrameRenderer) -> None:
    # Registered after mujoco.egl's own exit hook and so run before it: a context ends before its display.
    atexit.unregister(_close_open_renderers)
    atexit.register(_close_open_renderers)
    _open_renderers.add(renderer)


def _close_open_renderers() -> None:
    for renderer in list(_open_renderers):
        renderer.close()
