"""What a MuJoCo model tells of its looks, and a model made again from that."""

from __future__ import annotations

import mujoco
import numpy as np

from remote_env.render import FrameRenderer
from remote_env.replay import Replayer, load_model
from remote_env.server.gymnasium_backend import GymnasiumBackend
from remote_env.state import SceneDescription
from remote_env.tasks.mujoco_scene import MujocoScene

SCENE = """
<mujoco>
  <asset><material name="red" rgba="1 0 0 1"/></asset>
  <worldbody>
    <geom type="plane" size="1 1 1"/>
    <body name="thing"><freejoint/>
      <geom type="box" size="0.1 0.2 0.3" pos="0.1 0 0" euler="0 0 90" material="red"/>
      <geom type="capsule" size="0.05 0.2" rgba="0 1 0 0.5" contype="0" conaffinity="0"/>
      <geom type="cylinder" size="0.05 0.1" group="3"/>
      <geom type="sphere" size="0.05" rgba="0 0 0 0"/>
      <body name="hidden"><geom type="ellipsoid" size="0.1 0.2 0.3" group="4"/></body>
    </body>
  </worldbody>
</mujoco>
"""
CAMERA = "free:azimuth=30,elevation=-20,distance=3,lookat=0/0/0.5"


def test_what_is_drawn_is_told_and_where_nothing_is_what_collides():
    description = MujocoScene(mujoco.MjModel.from_xml_string(SCENE)).describe()
    kinds = [(shape.entity, shape.link, shape.kind, shape.size) for shape in description.shapes]
    assert kinds == [
        ("thing", "thing", "box", (0.1, 0.2, 0.3)),
        ("thing", "thing", "capsule", (0.05, 0.2)),
        ("thing", "hidden", "box", (0.1, 0.2, 0.3)),  # the box around the ellipsoid
    ]
    box, capsule, _ = description.shapes
    assert (box.rgba, box.is_solid) == ((1, 0, 0, 1), True)
    assert (capsule.rgba, capsule.is_solid) == ((0, 1, 0, 0.5), False)
    np.testing.assert_allclose(box.pose, [0.1, 0, 0, np.sqrt(0.5), 0, 0, np.sqrt(0.5)])
    assert description.notes == (
        "1 meshes or ellipsoids are told as the boxes around them",
        "what belongs to the world itself, such as the floor, is left out",
    )
    assert SceneDescription.from_plain(description.to_plain()) == description


def test_primitives_made_again_look_as_they_did():
    """Same camera, same pixels, but for what the surroundings differ in."""
    text = SCENE.replace('<geom type="plane" size="1 1 1"/>', "")
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    data.qpos[:] = [0, 0, 0.5, 0.5, 0.5, 0.5, 0.5]
    state = MujocoScene(model).read(data)
    description = SceneDescription(MujocoScene(model).describe().shapes[:1])
    red = []
    with Replayer("capture", description=description, width=96, height=72, camera=CAMERA) as replayer:
        replayer.set_state(state)
        red.append(_reddish(replayer.render()))
    spec = mujoco.MjSpec.from_string(text)
    for geom in [geom for geom in spec.geoms if geom.type != mujoco.mjtGeom.mjGEOM_BOX]:
        spec.delete(geom)
    with Replayer(spec, width=96, height=72, camera=CAMERA) as replayer:
        replayer.set_state(state)
        red.append(_reddish(replayer.render()))
    assert red[0].sum() > 50
    assert (red[0] != red[1]).mean() < 0.01


def _reddish(image: np.ndarray) -> np.ndarray:
    values = image.astype(int)
    return values[..., 0] - values[..., 1] > 60


def test_a_served_mujoco_task_tells_what_it_looks_like():
    for num_envs in (None, 2):
        backend = GymnasiumBackend()
        backend.num_envs = num_envs
        backend.make("remote_env/AlohaTransferCube-v0", {})
        try:
            description = backend.describe_scene()
        finally:
            backend.close()
        assert {shape.entity for shape in description.shapes} >= {"vx300s_left", "vx300s_right", "box"}
        assert any("meshes" in note for note in description.notes)
        model = load_model("capture", description=description)
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        with FrameRenderer(model, width=32, height=24, quality="fast") as renderer:
            assert renderer.render(data, 0).std() > 5
