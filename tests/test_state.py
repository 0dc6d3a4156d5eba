"""SceneState: names travel with values, and values are one vector."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_env.errors import InputError
from remote_env.state import EntityLayout, SceneLayout, SceneState

names = st.text(min_size=1, max_size=6)
entities = st.builds(
    EntityLayout, names, st.lists(names, max_size=4).map(tuple), st.lists(names, max_size=3).map(tuple)
)
layouts = st.lists(entities, max_size=4, unique_by=lambda entity: entity.name).map(
    lambda items: SceneLayout(tuple(items), source="test 1")
)


@given(layouts)
def test_layouts_survive_plain_values(layout: SceneLayout) -> None:
    again = SceneLayout.from_plain(json.loads(json.dumps(layout.to_plain())))
    assert again == layout
    assert (again.digest, again.size, again.offsets) == (layout.digest, layout.size, layout.offsets)


@given(layouts)
def test_blocks_follow_each_other(layout: SceneLayout) -> None:
    at = 1
    for entity in layout.entities:
        assert layout.offsets[entity.name] == at
        at += 13 + 2 * len(entity.joint_names) + 7 * len(entity.link_names)
    assert layout.size == at


def test_unknown_and_double_names_are_refused() -> None:
    layout = SceneLayout((EntityLayout("cube"), EntityLayout("arm", ("elbow",))))
    assert layout.entity("arm").joint_names == ("elbow",)
    with pytest.raises(InputError, match=r"no entity 'leg' in this state; it has \['cube', 'arm'\]"):
        layout.entity("leg")
    with pytest.raises(InputError, match="two entities share a name"):
        _ = SceneLayout((EntityLayout("cube"), EntityLayout("cube"))).offsets


@pytest.mark.parametrize(
    "plain", [{}, {"source": "x"}, {"source": "x", "entities": [{}]}, {"source": "x", "entities": 3}]
)
def test_what_is_no_layout(plain: dict[str, object]) -> None:
    with pytest.raises(InputError, match="not a scene layout"):
        SceneLayout.from_plain(plain)


def test_digests_name_layouts() -> None:
    base = SceneLayout((EntityLayout("arm", ("a", "b"), ("hand",)),), "mujoco 1")
    others = [
        SceneLayout((EntityLayout("arm", ("b", "a"), ("hand",)),), "mujoco 1"),
        SceneLayout((EntityLayout("arm", ("a", "b")),), "mujoco 1"),
        SceneLayout((EntityLayout("arm", ("a", "b"), ("hand",)),), "mujoco 2"),
    ]
    assert len({layout.digest for layout in [base, *others]}) == 4


def example() -> SceneState:
    layout = SceneLayout((EntityLayout("cube"), EntityLayout("arm", ("a", "b"), ("hand",))))
    values = np.arange(layout.size, dtype=np.float64)
    for at in (4, 17, 34):
        values[at : at + 4] = (1, 0, 0, 0)
    return SceneState(layout, values)


def test_values_are_views_by_name() -> None:
    state = example()
    arm = state["arm"]
    assert state.time_s == 0.0
    assert arm.root_pose.tolist() == [14, 15, 16, 1, 0, 0, 0]
    assert arm.joint_positions.tolist() == [27, 28]
    assert arm.joint_velocities.tolist() == [29, 30]
    assert arm.link_poses.shape == (1, 7)
    arm.joint_positions[0] = 99
    assert state.values[27] == 99
    assert [entity.layout.name for entity in state] == ["cube", "arm"]
    with pytest.raises(InputError, match="no entity"):
        _ = state["leg"]


def test_equality_is_to_the_bit() -> None:
    state, other = example(), example()
    assert state == other
    other.values[0] = -0.0
    assert state != other
    assert state != SceneState(state.layout, state.values, b"native")
    assert state != 3


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros(38, np.float32), np.zeros((1, 38))])
def test_a_vector_of_another_kind_is_refused(values: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"needs float64 \(38,\)"):
        SceneState(example().layout, values)


def test_check_names_the_entity() -> None:
    state = example()
    state.check()
    state["arm"].joint_velocities[1] = np.nan
    with pytest.raises(InputError, match=r"'arm' at 0\.0 s is not finite"):
        state.check()
    state = example()
    state["cube"].root_pose[3] = 2.0
    with pytest.raises(InputError, match=r"'cube'.*norm 2;"):
        state.check()
