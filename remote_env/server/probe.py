"""What a machine has, told to `remote-env doctor`: run by the interpreter that is to serve, with the standard library.

It is sent as text, since a machine with a full disk takes no file. It tells one JSON object per part on a line that
starts with `@remote-env probe`, as each is known; whatever it starts, it ends. It reads nothing but what it is asked
for and writes nothing but test files that it removes at once.

Its syntax is that of Python 3.6, so that an interpreter that is too old gets to say so.
"""

import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

OLDEST = (3, 10)
LIFETIME_S = 120  # then the kernel ends it, whatever it waits for
GPU_TIMEOUT_S = 20.0
RENDER_TIMEOUT_S = 30.0
TRIAL_BYTES = 256 * 1024
GPU_FACTS = ("name", "driver_version", "memory.total", "memory.free", "utilization.gpu")

# argv: what gives the context ("egl", "osmesa"). MuJoCo's own way to a context, and ours where there is no MuJoCo.
MUJOCO_TRIAL = """
import signal, sys; signal.alarm(25)
import mujoco
context = mujoco.GLContext(64, 64); context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
from OpenGL import GL
print("renderer:" + GL.glGetString(GL.GL_RENDERER).decode())
context.free()
"""
BARE_TRIAL = """
import ctypes, signal, sys; signal.alarm(25)
def need(value, what):
    if not value: raise SystemExit(what + " failed")
    return value
def library(*names):
    for name in names:
        try: return ctypes.CDLL(name)
        except OSError as error: last = error
    raise SystemExit(str(last))
pointer, attributes = ctypes.c_void_p, ctypes.c_int * 16
if sys.argv[1] == "osmesa":
    gl = library("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")
    gl.OSMesaCreateContext.restype = pointer
    context = need(gl.OSMesaCreateContext(0x1908, None), "OSMesaCreateContext")  # RGBA
    image = (ctypes.c_ubyte * (64 * 64 * 4))()
    need(gl.OSMesaMakeCurrent(pointer(context), image, 0x1401, 64, 64), "OSMesaMakeCurrent")  # unsigned bytes
else:
    egl = library("libEGL.so.1", "libEGL.so")
    egl.eglGetProcAddress.restype = pointer
    def extension(name, *types):
        return ctypes.CFUNCTYPE(*types)(need(egl.eglGetProcAddress(name), name.decode()))
    number, some = ctypes.c_int, ctypes.POINTER
    query = extension(b"eglQueryDevicesEXT", number, number, some(pointer), some(number))
    of_device = extension(b"eglGetPlatformDisplayEXT", pointer, number, pointer, pointer)
    devices, count = (pointer * 16)(), number()
    need(query(16, devices, ctypes.byref(count)), "eglQueryDevicesEXT")
    displays = (of_device(0x313F, devices[index], None) for index in range(count.value))  # EGL_PLATFORM_DEVICE_EXT
    display = next((pointer(one) for one in displays if one and egl.eglInitialize(pointer(one), None, None)), None)
    need(display, "eglInitialize on any of %d devices" % count.value)
    config, found = pointer(), number()
    wanted = attributes(0x3033, 1, 0x3040, 8, 0x3024, 8, 0x3025, 16, 0x3038)  # a pbuffer, OpenGL, red, depth, none
    chosen = egl.eglChooseConfig(display, wanted, ctypes.byref(config), 1, ctypes.byref(found))
    need(chosen and found.value, "eglChooseConfig")
    egl.eglCreatePbufferSurface.restype = egl.eglCreateContext.restype = pointer
    size = attributes(0x3057, 64, 0x3056, 64, 0x3038)  # width, height, none
    surface = pointer(need(egl.eglCreatePbufferSurface(display, config, size), "eglCreatePbufferSurface"))
    need(egl.eglBindAPI(0x30A2), "eglBindAPI(OpenGL)")
    context = pointer(need(egl.eglCreateContext(display, config, None, attributes(0x3038)), "eglCreateContext"))
    need(egl.eglMakeCurrent(display, surface, surface, context), "eglMakeCurrent")
    gl = library("libOpenGL.so.0", "libGL.so.1")
gl.glGetString.restype = ctypes.c_char_p
print("renderer:" + need(gl.glGetString(0x1F01), "glGetString").decode())
"""

_children: Any = []


def tell(part: str, facts: Any) -> None:
    """Send one part's facts on a line of its own."""
    text = "\n@remote-env probe " + json.dumps({"part": part, "facts": facts}) + "\n"
    sys.stdout.flush()
    sys.stdout.write(text)
    sys.stdout.flush()


def end_with_reader() -> None:
    """From now on end, with what we started, when nobody reads us any more."""
    poll = select.poll()
    poll.register(1, 0)  # only that the other end has gone

    def watch() -> None:
        while not poll.poll():
            continue
        for child in list(_children):
            child.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run(command: "list[str]", timeout_s: float, **environment: str) -> "dict[str, Any]":
    """What a program said: its status, None when it could not be run or took too long, and its output."""
    try:
        child = subprocess.Popen(  # noqa: S603  programs of ours and nvidia-smi
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, **environment),
        )
    except OSError as error:
        return {"status": None, "output": str(error)}
    _children.append(child)
    try:
        output = child.communicate(timeout=timeout_s)[0]
        return {"status": child.returncode, "output": output.decode(errors="replace").strip()}
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return {"status": None, "output": f"no answer in {timeout_s:g} s"}
    finally:
        _children.remove(child)


def interpreter() -> "dict[str, Any]":
    """Which Python this is, with what the markers of requirements ask for (PEP 508)."""
    return {
        "version": platform.python_version(),
        "executable": sys.executable,
        "prefix": sys.prefix,
        "is_new_enough": sys.version_info >= OLDEST,
        "markers": {
            "implementation_name": sys.implementation.name,
            "implementation_version": platform.python_version(),
            "os_name": os.name,
            "platform_machine": platform.machine(),
            "platform_python_implementation": platform.python_implementation(),
            "platform_release": platform.release(),
            "platform_system": platform.system(),
            "platform_version": platform.version(),
            "python_full_version": platform.python_version(),
            "python_version": "{}.{}".format(*sys.version_info[:2]),
            "sys_platform": sys.platform,
        },
    }


def machine() -> "dict[str, Any]":
    """Processors, load and memory [bytes] of this machine, or of the container that we are in."""
    memory = {}
    for line in read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        memory[name] = int(rest.split()[0]) * 1024
    limit = read("/sys/fs/cgroup/memory.max").strip()
    used = read("/sys/fs/cgroup/memory.current").strip()
    total, free = memory.get("MemTotal", 0), memory.get("MemAvailable", 0)
    if limit.isdigit() and used.isdigit() and 0 < int(limit) < total:
        total, free = int(limit), min(free, int(limit) - int(used))
    return {
        "node": platform.node(),
        "kernel": platform.system() + " " + platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "processors": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "memory_total": total,
        "memory_free": free,
    }


def read(path: str) -> str:
    """The content of a small file, "" when it cannot be read."""
    try:
        return Path(path).read_text()
    except (OSError, ValueError):
        return ""


def cache_home() -> Path:
    """Where programs of this user keep what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def folders() -> "list[dict[str, Any]]":
    """Whether the folders that a server needs take files, and how much is free [bytes]."""
    temporary = Path(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108  where tempfile looks first
    named = [("cache", cache_home() / "remote-env"), ("temp", temporary), ("home", Path.home())]
    return [dict(try_folder(path), use=use) for use, path in named]


def try_folder(wanted: Path) -> "dict[str, Any]":
    """Write a file into a folder, or where it would be made, and remove it."""
    path = next(folder for folder in (wanted, *wanted.parents) if folder.is_dir())
    facts = {"path": str(wanted), "exists": str(path), "free": shutil.disk_usage(str(path)).free, "error": ""}
    try:
        with tempfile.TemporaryFile(dir=str(path)) as file:
            file.write(b"\0" * TRIAL_BYTES)
            file.flush()
    except OSError as error:
        facts["error"] = error.strerror or str(error)
    return facts


def gpus() -> "dict[str, Any]":
    """The graphics processors that nvidia-smi lists; memory in MiB."""
    if shutil.which("nvidia-smi") is None:
        return {"found": [], "error": "there is no nvidia-smi"}
    answer = run(["nvidia-smi", "--query-gpu=" + ",".join(GPU_FACTS), "--format=csv,noheader,nounits"], GPU_TIMEOUT_S)
    if answer["status"] != 0:
        return {"found": [], "error": answer["output"] or "nvidia-smi: exit status {}".format(answer["status"])}
    rows = [[cell.strip() for cell in line.split(",")] for line in answer["output"].splitlines()]
    return {
        "found": [dict(zip(GPU_FACTS, row, strict=True)) for row in rows if len(row) == len(GPU_FACTS)],
        "error": "",
    }


def packages(names: "list[str]") -> "dict[str, Any]":
    """The versions of installed packages, None for one that is not; and what keeps numpy or gymnasium from loading."""
    from importlib import metadata

    versions: dict[str, Any] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    broken = {}
    for name in ("numpy", "gymnasium"):
        if versions.get(name) is not None:
            try:
                __import__(name)
            except Exception as error:  # noqa: BLE001  whatever a broken package raises is what we look for
                broken[name] = f"{type(error).__name__}: {error}"
    return {"versions": versions, "broken": broken, "has_pip": has_module("pip")}


def has_module(name: str) -> bool:
    """Whether a module could be imported; it is not."""
    from importlib import util

    try:
        return util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def rendering() -> "dict[str, Any]":
    """What each way to off-screen OpenGL gives: its renderer's name, or why it fails; by MuJoCo where that is."""
    uses_mujoco = has_module("mujoco") and has_module("OpenGL")
    program = MUJOCO_TRIAL if uses_mujoco else BARE_TRIAL
    ways: dict[str, Any] = {"egl": None, "osmesa": None}
    threads = [threading.Thread(target=lambda way=way: ways.update({way: try_rendering(program, way)})) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"ways": ways, "by_mujoco": uses_mujoco}


def try_rendering(program: str, way: str) -> "dict[str, str]":
    """The name of the renderer that a trial was given, or why there is none."""
    answer = run([sys.executable, "-c", program, way], RENDER_TIMEOUT_S, MUJOCO_GL=way, PYOPENGL_PLATFORM=way)
    lines = [line for line in answer["output"].splitlines() if line.strip()] or ["(no message)"]
    named = [line for line in lines if line.startswith("renderer:")]
    if answer["status"] == 0 and named:
        return {"renderer": named[0][len("renderer:") :], "error": ""}
    return {"renderer": "", "error": lines[-1][:300]}


def isaac() -> "dict[str, Any]":
    """What Isaac Sim and Isaac Lab need before a first run; neither is imported."""
    import ctypes

    icd_folders = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", Path.home() / ".local/share/vulkan/icd.d")
    icds = [str(path) for folder in icd_folders for path in sorted(Path(folder).glob("*.json"))]
    named = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES") or ""
    libraries = {}
    for name in ("libGLU.so.1", "libvulkan.so.1", "libXt.so.6"):
        try:
            ctypes.CDLL(name)
            libraries[name] = True
        except OSError:
            libraries[name] = False
    caches = [("sim", cache_home() / "ov"), ("sim", Path.home() / ".nv"), ("sim", Path.home() / ".local/share/ov")]
    caches.append(("warp", Path(os.environ.get("WARP_CACHE_PATH") or cache_home() / "warp")))
    return {
        "modules": {name: has_module(name) for name in ("isaaclab", "isaaclab_newton", "isaacsim", "omni")},
        "icds": [path for path in named.split(":") if path] or icds,
        "missing_icds": [path for path in named.split(":") if path and not Path(path).exists()],
        "libraries": libraries,
        "environment": {
            name: os.environ.get(name) for name in ("OMNI_KIT_ACCEPT_EULA", "ACCEPT_EULA", "PRIVACY_CONSENT")
        },
        "caches": [dict(try_folder(path), use=use) for use, path in caches],
        "python": "{}.{}".format(*sys.version_info[:2]),
        "libc": platform.libc_ver()[1],
    }


def main(asked: "dict[str, Any]") -> None:
    """Tell about each part asked for: packages (names), and Isaac's needs."""
    signal.alarm(LIFETIME_S)
    end_with_reader()
    tell("interpreter", interpreter())
    if sys.version_info < OLDEST:
        return
    parts: Any = [
        ("machine", machine),
        ("folders", folders),
        ("gpu", gpus),
        ("packages", lambda: packages(asked["packages"])),
        ("rendering", rendering),
    ]
    if asked["isaac"]:
        parts.append(("isaac", isaac))
    for part, find in parts:
        began = time.monotonic()
        facts = find()
        tell(part, {"seconds": time.monotonic() - began, "told": facts})
    tell("end", {})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
