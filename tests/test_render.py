"""FrameRenderer on real OpenGL, in this process and in fresh ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from ctypes.util import find_library

import mujoco
import numpy as np
import pytest

from remote_env.errors import ConfigError
from remote_env.render import FrameRenderer, camera_names, gl_backend

XML = """
<mujoco>
  <visual><quality shadowsize="1024" offsamples="4"/></visual>
  <worldbody>
    <light pos="1 1 3" dir="-1 -1 -3" castshadow="true"/>
    <camera name="above" pos="0 0 2"/>
    <camera name="side" pos="0 -2 0.5" euler="80 0 0"/>
    <geom type="plane" size="2 2 0.1" rgba="0.2 0.2 0.2 1"/>
    <body pos="0 0.4 0.3"><freejoint/><geom type="box" size="0.2 0.2 0.2" rgba="1 0 0 1"/></body>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def scene() -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_string(XML)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def test_frames_are_upright_rgb_and_new(scene: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    model, data = scene
    with FrameRenderer(model, width=60, height=40) as renderer:
        frame, again = renderer.render(data, "above"), renderer.render(data, "above")
    assert frame.shape == (40, 60, 3)
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    np.testing.assert_array_equal(frame, again)
    assert not np.shares_memory(frame, again)
    red = frame[..., 0].astype(int) - frame[..., 1]
    assert red[:20].sum() > red[20:].sum()  # the box lies at +y, which is up in this camera's view


def test_cameras_by_name_by_index_and_free(scene: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    model, data = scene
    assert camera_names(model) == ("above", "side")
    with FrameRenderer(model, width=60, height=40, quality="fast") as renderer:
        np.testing.assert_array_equal(renderer.render(data, "side"), renderer.render(data, 1))
        assert not np.array_equal(renderer.render(data, "side"), renderer.render(data))
        for wrong in ("front", 2, -2):
            with pytest.raises(ConfigError, match="above, side"):
                renderer.render(data, wrong)


def test_fast_drops_shadows_and_leaves_the_model_as_shipped(scene: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    model, data = scene
    frames = {}
    for quality in ("full", "fast"):
        with FrameRenderer(model, width=60, height=40, quality=quality) as renderer:
            frames[quality] = renderer.render(data, "above").astype(int)
    assert not np.array_equal(frames["full"], frames["fast"])
    assert frames["fast"].sum() > frames["full"].sum()  # shadows are dark
    assert (model.vis.quality.shadowsize, model.vis.quality.offsamples) == (1024, 4)
    assert (model.vis.global_.offwidth, model.vis.global_.offheight) == (640, 480)


def test_frames_may_be_larger_than_the_models_buffer(scene: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    model, data = scene
    with FrameRenderer(model, width=1000, height=700, quality="fast") as renderer:
        assert renderer.render(data, "above").shape == (700, 1000, 3)


def test_two_renderers_take_turns(scene: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    model, data = scene
    with FrameRenderer(model, width=60, height=40) as one, FrameRenderer(model, width=30, height=20) as two:
        first = one.render(data, "above")
        assert two.render(data, "side").shape == (20, 30, 3)
        two.close()
        np.testing.assert_array_equal(one.render(data, "above"), first)


def test_a_closed_renderer_says_so(scene: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    renderer = FrameRenderer(scene[0], width=60, height=40)
    renderer.close()
    renderer.close()
    with pytest.raises(ConfigError, match="closed"):
        renderer.render(scene[1], "above")


@pytest.mark.parametrize("size", [(0, 10), (10, 8193), (True, 10), (10.0, 10)])
def test_impossible_sizes_are_config_errors(scene: tuple[mujoco.MjModel, mujoco.MjData], size: tuple) -> None:
    with pytest.raises(ConfigError, match="1 to 8192"):
        FrameRenderer(scene[0], width=size[0], height=size[1])


BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not find_library(library), reason=f"lib{library} is not installed"))
    for name, library in (("egl", "EGL"), ("osmesa", "OSMesa"))
]

FRESH = """
import mujoco, sys  # mujoco first: the renderer does not depend on the order of imports
from remote_env.render import FrameRenderer, gl_backend
model = mujoco.MjModel.from_xml_string({xml!r})
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = FrameRenderer(model, width=60, height=40)
print(gl_backend(), renderer.render(data, "above").sum())
"""


def in_fresh_process(more: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY")
    }
    command = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c"]
    command.append(FRESH.format(xml=XML) + more)
    return subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("wanted", BACKENDS)
def test_each_backend_renders_and_leaves_quietly_without_close(wanted: str) -> None:
    done = in_fresh_process(MUJOCO_GL=wanted)
    assert done.returncode == 0, done.stderr
    backend, total = done.stdout.split()
    assert backend == wanted
    assert int(total) > 0
    assert done.stderr == ""


def test_without_a_display_some_backend_is_found() -> None:
    done = in_fresh_process()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in ("egl", "osmesa")


def test_a_display_that_is_gone_is_as_none() -> None:
    done = in_fresh_process(DISPLAY=":4077")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in ("egl", "osmesa")
    assert done.stderr == ""


@pytest.mark.parametrize("display", [{}, {"DISPLAY": ":4077"}])
def test_glfw_without_a_display_says_what_to_do(display: dict[str, str]) -> None:
    done = in_fresh_process(MUJOCO_GL="glfw", **display)
    said = done.stderr.splitlines()[-1]
    assert said.startswith("remote_env.errors.ConfigError: MUJOCO_GL=glfw needs a display, and GLFW opens none here")
    assert f"DISPLAY='{display.get('DISPLAY', '')}'" in said
    assert "apt-get install libegl1 libopengl0 libgl1-mesa-dri" in said
    assert "apt-get install libosmesa6" in said


@pytest.mark.skipif(not shutil.which("Xvfb"), reason="needs the Debian package xvfb")
@pytest.mark.parametrize("asked", [{}, {"MUJOCO_GL": "glfw"}])
def test_glfw_renders_where_there_is_a_display(asked: dict[str, str]) -> None:
    ours, theirs = os.pipe()
    command = ["Xvfb", "-displayfd", str(theirs), "-screen", "0", "320x200x24", "-nolisten", "tcp"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, pass_fds=[theirs], **quiet) as server:
        os.close(theirs)
        try:
            with os.fdopen(ours) as told:
                done = in_fresh_process(DISPLAY=f":{told.readline().strip()}", **asked)
        finally:
            server.terminate()
    assert done.returncode == 0, done.stderr
    backend, total = done.stdout.split()
    assert backend == "default"
    assert int(total) > 0


@pytest.mark.parametrize(
    ("backend", "packages"), [("egl", "libegl1 libopengl0 libgl1-mesa-dri"), ("osmesa", "libosmesa6")]
)
def test_a_backend_that_is_asked_for_and_not_there_names_its_packages(
    scene: tuple[mujoco.MjModel, mujoco.MjData], monkeypatch: pytest.MonkeyPatch, backend: str, packages: str
) -> None:
    def missing(name: str) -> None:  # as PyOpenGL fails where the library is not there
        raise AttributeError(f"'NoneType' object has no attribute {name!r}")

    monkeypatch.setenv("MUJOCO_GL", backend)
    monkeypatch.setattr("remote_env.render.importlib.import_module", missing)
    with pytest.raises(ConfigError, match=f"{backend}.*AttributeError.*`sudo apt-get install {packages}`"):
        FrameRenderer(scene[0], width=60, height=40)


FORKED = """
import multiprocessing
renderer.render(data, "above")

def work():
    renderer.close()
    try:
        FrameRenderer(model, width=60, height=40)
    except ValueError as error:
        print("refused:", error, flush=True)

worker = multiprocessing.get_context("fork").Process(target=work)
worker.start()
worker.join(20)
print("exit code", worker.exitcode, renderer.render(data, "above").shape)
worker.kill()
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_forked_child_closes_quietly_and_is_told_to_spawn_instead(backend: str) -> None:
    done = in_fresh_process(FORKED, MUJOCO_GL=backend)
    assert "refused: OpenGL was already used when this process was forked" in done.stdout, done.stderr
    assert "exit code 0 (40, 60, 3)" in done.stdout


def test_switched_off_rendering_is_a_config_error() -> None:
    done = in_fresh_process(MUJOCO_GL="disable")
    assert "ConfigError: MUJOCO_GL=disable switches rendering off" in done.stderr


def test_what_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("remote_env.render.sys.platform", "linux")
    monkeypatch.setattr("remote_env.render._library", lambda *names: None)
    with pytest.raises(ConfigError, match=r"apt-get install libosmesa6.*apt-get install libegl1 libopengl0"):
        gl_backend()
