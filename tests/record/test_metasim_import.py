"""MetaSim's recordings, in every form that they come in, of real MuJoCo physics: read, stored, replayed."""

from __future__ import annotations

import copy
import gzip
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import mujoco
import numpy as np
import pytest
import yaml
from tasks_for_tests.metasim_stand_in import ARM, make_handler

from remote_env.errors import CaptureError, InputError
from remote_env.record import read_episode
from remote_env.record.hdf5 import write_episode
from remote_env.record.metasim import read_metasim, to_metasim
from remote_env.record.metasim_files import read_file
from remote_env.replay import replay_episode
from remote_env.state import SceneState
from remote_env.tasks.mujoco_scene import MujocoScene

STEPS = 12
RATE_HZ = 50.0


def record(num_envs: int = 1) -> tuple[Any, list[Any], list[Any]]:
    """A handler, T + 1 batches of nested states, T batches of targets in alphabetical order."""
    handler = make_handler(num_envs)
    for index, data in enumerate(handler.datas):
        data.qvel[5:] = [1.0, 2.0, 3.0 + index]
        data.ctrl[:] = 0.0
    states, actions = [handler.get_states(mode="dict")], []
    for step in range(STEPS):
        action = np.array([[0.1 * step, -0.1 * index] for index in range(num_envs)])
        handler.set_dof_targets(action)
        handler.simulate()
        states.append(handler.get_states(mode="dict"))
        actions.append(action)
    return handler, states, actions


@pytest.fixture(scope="module")
def recorded() -> tuple[Any, list[Any], list[Any]]:
    return record()


def plain(value: Any) -> Any:
    """As `default=lambda value: value.tolist()` writes it, which the message about pickles gives."""
    return json.loads(json.dumps(value, default=lambda value: value.tolist()))


def targets(actions: list[Any]) -> list[Any]:
    return [{"arm": {"dof_pos_target": {"elbow": a[0, 0], "shoulder": a[0, 1]}}} for a in actions]


def flat(states: list[Any]) -> list[Any]:
    """The states of v2: robots and objects beside each other, without velocities."""
    keys = ("pos", "rot", "dof_pos")
    whole = [{**batch[0]["robots"], **batch[0]["objects"]} for batch in states]
    return [{name: {k: part[k] for k in keys if k in part} for name, part in state.items()} for state in whole]


def arrays(states: list[Any], actions: list[Any]) -> dict[str, Any]:
    """One array per leaf, by path."""
    found: dict[str, Any] = {"actions": np.concatenate(actions)}

    def walk(parts: list[Any], path: str) -> None:
        for key, value in parts[0].items():
            inner = [part[key] for part in parts]
            if isinstance(value, dict):
                walk(inner, f"{path}/{key}")
            elif value is not None:
                found[f"{path}/{key}"] = np.stack(inner)

    for kind in ("robots", "objects"):
        walk([batch[0][kind] for batch in states], kind)
    return found


def write_roboverse(path: Path, handler: Any, batches: list[Any], actions: list[Any], **header: Any) -> None:
    """As MetaSim's `save_episode` writes it."""
    found: dict[str, Any] = {"actions": np.stack(actions)}
    for kind, name in (("robots", "arm"), ("objects", "cube")):
        root = [[[*s[kind][name]["pos"], *s[kind][name]["rot"], *s[kind][name]["vel"], *s[kind][name]["ang_vel"]]
                 for s in batch] for batch in batches]  # fmt: skip
        found[f"{kind}/{name}/root_state"] = np.array(root, np.float64)
    for ours, theirs in (("dof_pos", "joint_pos"), ("dof_vel", "joint_vel")):
        joints = [[list(s["robots"]["arm"][ours].values()) for s in batch] for batch in batches]
        found[f"robots/arm/{theirs}"] = np.array(joints, np.float64)
    bodies = [
        [[[*link["pos"], *link["rot"], *np.zeros(6)] for link in s["robots"]["arm"]["body"].values()] for s in batch]
        for batch in batches
    ]
    found["robots/arm/body_state"] = np.array(bodies, np.float64)
    head = {
        "format": "roboverse.episode",
        "format_version": 1,
        "quaternion": "wxyz",
        "num_steps": len(actions),
        "entities": {"robots": ["arm"], "objects": ["cube"]},
        "joint_names": {"arm": handler.get_joint_names("arm")},
        "body_names": {"arm": handler.get_body_names("arm")},
        "provenance": {
            "simulator": "mujoco",
            "metasim_version": "1.0.0b0",
            "num_envs": len(batches[0]),
            "env_step_s": handler.env_step_s,
            "seed": 5,
        },
        "info": {"success": True},
    } | header
    np.savez_compressed(path, header=np.array(json.dumps(head)), **found)


def test_a_list_of_nested_states_is_the_scene(recorded: Any) -> None:
    handler, states, _ = recorded
    episode = read_metasim([batch[0] for batch in states], rate_hz=RATE_HZ)
    assert len(episode) == STEPS
    assert episode.actions.shape == (STEPS, 0)
    assert [(e.name, e.joint_names, e.link_names) for e in episode.layout.entities] == [
        ("arm", ("elbow", "shoulder"), ("arm", "forearm")),
        ("cube", (), ("cube",)),
    ]
    truth = MujocoScene(handler.model).read(handler.datas[0])
    last = episode.states[-1]
    assert last.time_s == pytest.approx(truth.time_s)
    np.testing.assert_allclose(last["cube"].root_pose, truth["cube"].root_pose, atol=1e-6)
    np.testing.assert_allclose(last["cube"].root_velocity, truth["cube"].root_velocity, atol=1e-5)
    np.testing.assert_allclose(last["arm"].link_poses, truth["arm"].link_poses, atol=1e-6)
    assert episode.observations["qpos"].shape == (STEPS, 2)
    notes = episode.info.extra["metasim"]
    assert notes["robots"] == ["arm"]
    assert notes["assumed_zero"] == {}
    assert "actions" in notes["not_recorded"]


def test_every_form_gives_the_same_episode(recorded: Any, tmp_path: Path) -> None:
    handler, states, actions = recorded
    expected = read_metasim([batch[0] for batch in states], rate_hz=RATE_HZ).scene_values
    trajectory = {"arm": [{}, {"states": plain([batch[0] for batch in states]), "actions": plain(targets(actions))}]}
    by_path = arrays(states, actions)
    (tmp_path / "a.json").write_text(json.dumps(trajectory))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(trajectory).encode()))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(trajectory))
    np.savez(tmp_path / "d.npz", **by_path)
    with h5py.File(tmp_path / "e.hdf5", "w") as file:
        for name, value in by_path.items():
            file[name] = value
    write_roboverse(tmp_path / "f.npz", handler, states, actions)
    for path in sorted(tmp_path.iterdir()):
        options = {} if path.name == "f.npz" else {"rate_hz": RATE_HZ, "episode": 1}
        episode = read_metasim(path, **options)
        np.testing.assert_allclose(episode.scene_values, expected, atol=1e-12, err_msg=path.name)
        np.testing.assert_allclose(episode.actions, np.concatenate(actions), err_msg=path.name)
        assert episode.info.rate_hz == pytest.approx(RATE_HZ)
        assert episode.info.task == path.name[0]
    own = read_metasim(tmp_path / "f.npz")
    assert (own.info.seed, own.infos[-1]) == (5, {"is_success": True})
    assert own.layout.source == "metasim 1.0.0b0 on mujoco"
    assert own.info.extra["metasim"]["action_names"] == ["arm/elbow", "arm/shoulder"]


def test_one_environment_out_of_a_batch(tmp_path: Path) -> None:
    handler, states, actions = record(3)
    write_roboverse(tmp_path / "a.npz", handler, states, actions)
    for source in (states, tmp_path / "a.npz"):
        episode = read_metasim(source, rate_hz=RATE_HZ, env_id=2)
        alone = read_metasim([batch[2] for batch in states], rate_hz=RATE_HZ)
        np.testing.assert_allclose(episode.scene_values, alone.scene_values, atol=1e-12)
        with pytest.raises(CaptureError, match="env_id=3; it holds 3 environments"):
            read_metasim(source, rate_hz=RATE_HZ, env_id=3)
    np.testing.assert_array_equal(episode.actions, np.stack(actions)[:, 2])


def test_a_v2_trajectory_has_no_velocities_and_says_so(recorded: Any, tmp_path: Path) -> None:
    _, states, actions = recorded
    before, after = flat(states)[:-1], flat(states)[1:]
    full = read_metasim([batch[0] for batch in states], rate_hz=RATE_HZ)
    kept = {"init_state": before[0], "states": before, "actions": [t["arm"] for t in targets(actions)]}
    late = {"init_state": before[0], "states": after, "actions": targets(actions)}
    for trajectory, rows in ((kept, STEPS), (late, STEPS + 1)):
        path = tmp_path / "franka_v2.json"
        path.write_text(json.dumps(plain({"arm": [trajectory]})))
        episode = read_metasim(path, rate_hz=RATE_HZ)
        assert len(episode.scene_values) == rows  # the scenes before each action; or the first one, and those after
        state = episode.states[-1]
        np.testing.assert_allclose(state["cube"].root_pose, full.states[rows - 1]["cube"].root_pose, atol=1e-6)
        assert np.abs(state["cube"].root_velocity).max() == 0.0
        zero = episode.info.extra["metasim"]["assumed_zero"]
        assert zero == {"robots/arm": ["vel", "ang_vel", "dof_vel"], "objects/cube": ["vel", "ang_vel"]}
        assert episode.info.extra["metasim"]["robots"] == ["arm"]


def test_stored_read_back_and_replayed(recorded: Any, tmp_path: Path) -> None:
    _, states, actions = recorded
    episode = read_metasim({"states": [b[0] for b in states], "actions": targets(actions)}, rate_hz=RATE_HZ, task="arm")
    write_episode(episode, tmp_path / "episode_000.hdf5")
    back = read_episode(tmp_path / "episode_000.hdf5")
    assert back.scene_values.tobytes() == episode.scene_values.tobytes()
    assert back.info.extra == episode.info.extra
    report = replay_episode(back, mujoco.MjModel.from_xml_string(ARM))
    assert report.fidelity.max_position_error_m < 1e-6  # what float32 leaves
    assert report.fidelity.max_rotation_error_rad < 1e-5


def test_a_state_goes_back_to_the_handler(recorded: Any) -> None:
    _, states, _ = recorded
    episode = read_metasim([batch[0] for batch in states], rate_hz=RATE_HZ)
    nested = to_metasim(episode.states[4], robots=["arm"])
    assert list(nested["robots"]) == ["arm"]
    assert nested["robots"]["arm"]["dof_pos"] == pytest.approx(states[4][0]["robots"]["arm"]["dof_pos"])
    other = make_handler(1)
    other.set_states([nested])
    again = read_metasim(other.get_states(mode="dict") * 2, rate_hz=RATE_HZ)
    np.testing.assert_allclose(again.scene_values[0, 1:], episode.scene_values[4, 1:], atol=1e-6)
    with pytest.raises(InputError, match=r"robots=\['panda'\] are not in this state; it has \['arm', 'cube'\]"):
        to_metasim(episode.states[4], robots=["panda"])


def test_quaternions_in_the_other_order_are_turned_when_told_and_refused_when_seen(
    recorded: Any, tmp_path: Path
) -> None:
    handler, states, actions = recorded
    expected = read_metasim([batch[0] for batch in states], rate_hz=RATE_HZ).scene_values
    turned = copy.deepcopy([batch[0] for batch in states])
    for state in turned:
        parts = [*state["robots"].values(), *state["objects"].values(), *state["robots"]["arm"]["body"].values()]
        for part in parts:
            part["rot"] = np.roll(part["rot"], -1)
    np.testing.assert_allclose(
        read_metasim(turned, rate_hz=RATE_HZ, quaternions="xyzw").scene_values, expected, atol=1e-12
    )
    write_roboverse(tmp_path / "a.npz", handler, [[state] for state in turned], actions, quaternion="xyzw")
    with pytest.raises(CaptureError, match=r"a\.npz: its header says that quaternions are 'xyzw'; say quaternions="):
        read_metasim(tmp_path / "a.npz")
    assert read_metasim(tmp_path / "a.npz", quaternions="xyzw").states[3]["cube"].root_pose[3] != 0.0
    still = {"objects": {name: {"pos": np.zeros(3), "rot": np.array([0.0, 0, 0, 1])} for name in ("cup", "pen")}}
    with pytest.raises(
        CaptureError, match=r"every rotation in state 0 is \(0, 0, 0, 1\), of \['objects/cup', 'objects/p"
    ):
        read_metasim([still, still], rate_hz=RATE_HZ)
    assert read_metasim([still, still], rate_hz=RATE_HZ, quaternions="xyzw").states[0]["cup"].root_pose[3] == 1.0
    assert read_metasim([still, still], rate_hz=RATE_HZ, quaternions="wxyz").states[0]["cup"].root_pose[6] == 1.0
    with pytest.raises(InputError, match="quaternions='zyx'; it must be one of"):
        read_metasim([still], rate_hz=RATE_HZ, quaternions="zyx")


def spoil(states: list[Any], path: str, value: Any, row: int = 3) -> list[Any]:
    spoilt = copy.deepcopy([batch[0] for batch in states])
    *parents, key = path.split("/")
    place = spoilt[row]
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[key]
    else:
        place[key] = value
    return spoilt


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("objects/cube/rot", np.zeros(4), r"objects/cube/rot in state 3 is \[0.0, 0.0, 0.0, 0.0\], of norm 0;"),
        (
            "objects/cube/rot",
            np.array([1.0, 1, 0, 0]),
            r"of norm 1\.414; a rotation is a quaternion \(wxyz\) of norm 1",
        ),
        ("objects/cube/pos", np.array([0.0, np.nan, 0]), r"objects/cube/pos in state 3 is \[0.0, nan, 0.0\]"),
        ("robots/arm/dof_pos/elbow", np.nan, "robots/arm/dof_pos/elbow in state 3 is nan; it must be finite"),
        ("robots/arm/dof_pos/elbow", "bent", "state 3: robots/arm/dof_pos/elbow is 'bent'; it must be numbers"),
        ("robots/arm/body/forearm/rot", np.zeros(4), "robots/arm/body/forearm/rot in state 3"),
        ("robots/arm/dof_pos/elbow", None, r"state 3: robots/arm/dof_pos lacks \['elbow'\] of state 0"),
        (
            "robots/arm/dof_pos/wrist",
            0.0,
            r"state 3: robots/arm/dof_pos lacks \[\] of state 0 and has \['wrist'\] more",
        ),
        ("objects/cube", None, "state 3 lacks objects/cube, which state 0 has"),
        ("objects/ball", {"pos": np.zeros(3)}, r"state 3 has \['objects/ball'\], which state 0 lacks"),
        ("objects/cube/pos", np.zeros(2), r"state 3: objects/cube/pos has shape \(2,\), state 0 \(3,\)"),
        ("objects/cube", np.zeros(7), "state 3: objects/cube is ndarray; it must be a dictionary"),
    ],
)
def test_a_bad_value_is_named_with_its_place(recorded: Any, path: str, value: Any, text: str) -> None:
    with pytest.raises(CaptureError, match="this list: .*" + text):
        read_metasim(spoil(recorded[1], path, value), rate_hz=RATE_HZ)


@pytest.mark.parametrize(
    ("held", "text"),
    [
        ({"a": 1}, r"it holds \['a'\]; neither states nor trajectories by robot"),
        ([], "it has no states"),
        ({"arm": [{"actions": []}]}, "it has no states .its actions alone cannot be replayed"),
        ({"arm": [{}], "panda": [{}]}, r"trajectories of \['arm', 'panda'\]; say which: robot='arm'"),
        (3.0, "it holds float; a recording is a list"),
        ([3.0], "state 0 is float; it must be a nested dictionary"),
        ([{"robots": {"a": {"pos": [0, 0, 0]}}}] * 2, r"robots/a has no 'rot' in state 0; it has \['pos'\]"),
        ([{"robots": {"a": {}}, "objects": {"a": {}}}] * 2, "a robot and an object share a name"),
        ({"robots": {"a": {"pos": [0, 0, 0]}}}, r"'robots/a': \(3,\).*a recording has \(steps, 3\)"),
        ([{"robots": {}, "objects": {}}] * 2, "it holds no robot and no object"),
        ([{"objects": {"a": {"pos": [0, 0, 0], "rot": [1, 0, 0, 0]}}}], "it holds one state alone"),
    ],
)
def test_what_is_no_recording_is_refused(held: Any, text: str) -> None:
    with pytest.raises(CaptureError, match=text):
        read_metasim(held, rate_hz=RATE_HZ)


def test_joints_without_names_are_asked_for(recorded: Any) -> None:
    _, states, _ = recorded
    bare = copy.deepcopy([batch[0] for batch in states])
    for state in bare:
        for key in ("dof_pos", "dof_vel"):
            state["robots"]["arm"][key] = list(state["robots"]["arm"][key].values())
    with pytest.raises(CaptureError, match=r"robots/arm/dof_pos is 2 numbers without joint names.*joint_names=\{'arm'"):
        read_metasim(bare, rate_hz=RATE_HZ)
    with pytest.raises(CaptureError, match=r"is 2 numbers; joint_names gives 1: \['elbow'\]"):
        read_metasim(bare, rate_hz=RATE_HZ, joint_names={"arm": ["elbow"]})
    named = read_metasim(bare, rate_hz=RATE_HZ, joint_names={"arm": ["elbow", "shoulder"]})
    expected = read_metasim([batch[0] for batch in states], rate_hz=RATE_HZ)
    assert SceneState(named.layout, named.scene_values[5]) == expected.states[5]


def test_a_pickle_is_refused_with_the_way_to_convert_it(recorded: Any, tmp_path: Path) -> None:
    _, states, _ = recorded
    path = tmp_path / "arm_v2.pkl.gz"
    path.write_bytes(gzip.compress(pickle.dumps({"arm": [{"states": [b[0] for b in states]}]})))
    with pytest.raises(CaptureError, match="is a pickle, and reading one runs whatever its author") as caught:
        read_metasim(path, rate_hz=RATE_HZ)
    recipe = "\n".join(line.strip() for line in str(caught.value).splitlines()[1:])
    exec(recipe, {})  # the two lines do what they say
    converted = read_metasim(tmp_path / "arm_v2.json", rate_hz=RATE_HZ)
    assert len(converted) == STEPS


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    for name, data, text in (
        ("a.json", b'{"a": ', "cannot be read as .json"),
        ("deep.json", b"[" * 100_000, "cannot be read as .json"),
        ("b.json.gz", b"not gzip", "cannot be read as .gz"),
        ("c.npz", b"PK\x03\x04 and no more", "cannot be read as .npz"),
        ("d.hdf5", b"no", "cannot be read as .hdf5"),
        ("e.yaml", b"!!python/object/apply:os.system ['true']", "is no plain YAML"),
        ("f.csv", b"1,2", "is of no format that is read here; these are: .npz, .json"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CaptureError, match=text):
            read_metasim(tmp_path / name, rate_hz=RATE_HZ)
    with pytest.raises(CaptureError, match="there is no "):
        read_metasim(tmp_path / "missing.json", rate_hz=RATE_HZ)
    np.savez(tmp_path / "g.npz", header=np.array(json.dumps({"format": "other", "format_version": 1})))
    with pytest.raises(CaptureError, match=r"its header says 'other' 1; 'roboverse.episode' up to 1 is read"):
        read_metasim(tmp_path / "g.npz")
    np.savez(tmp_path / "h.npz", actions=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CaptureError, match=r"cannot be read as .npz.*allow_pickle"):
        read_metasim(tmp_path / "h.npz")


def test_the_rate_is_asked_for_and_actions_must_fit(recorded: Any) -> None:
    _, states, actions = recorded
    rows = [batch[0] for batch in states]
    for rate_hz in (None, 0.0, float("nan")):
        with pytest.raises(InputError, match=r"rate_hz is .*; say how many steps"):
            read_metasim(rows, rate_hz=rate_hz)
    with pytest.raises(CaptureError, match=r"it has 13 states and 5 actions; T actions have T or T . 1 states"):
        read_metasim({"states": rows, "actions": targets(actions)[:5]}, rate_hz=RATE_HZ)
    spoilt = targets(actions)
    spoilt[2]["arm"]["dof_pos_target"]["elbow"] = np.inf
    with pytest.raises(CaptureError, match=r"action 2 is .*inf.*; it must be finite"):
        read_metasim({"states": rows, "actions": spoilt}, rate_hz=RATE_HZ)
    with pytest.raises(CaptureError, match="action 0 of 'arm' has no dof_pos_target"):
        read_metasim({"states": rows, "actions": [{"arm": {"dof_vel_target": {}}}]}, rate_hz=RATE_HZ)


JUNK = (None, 1, 0.5, "x", [], {}, [1, 2], {"a": 1}, True, float("nan"), np.zeros((2, 2)), np.zeros(0), 10**400)


def places(held: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key in held if isinstance(held, dict) else range(min(1, len(held))) if isinstance(held, list) else ():
        yield from places(held[key], (*path, key))


@pytest.mark.parametrize("form", ["states", "trajectory", "v2", "episode", "arrays"])
def test_whatever_is_wrong_with_a_recording_it_is_refused_as_one(form: str, recorded: Any, tmp_path: Path) -> None:
    """Each value in turn is taken away, or replaced by something of another kind."""
    handler, states, actions = recorded
    rows = [batch[0] for batch in states][:3]
    if form == "episode":
        write_roboverse(tmp_path / "a.npz", handler, states[:3], actions[:2])
    held = {
        "states": lambda: rows,
        "trajectory": lambda: {"states": rows, "actions": targets(actions[:2])},
        "v2": lambda: {"arm": [{"init_state": flat(states)[0], "states": flat(states)[1:3], "actions": []}]},
        "episode": lambda: read_file(tmp_path / "a.npz"),
        "arrays": lambda: read_file_of(arrays(states[:3], actions[:2]), tmp_path),
    }[form]()
    tried = refused = 0
    for place in list(places(held)):
        for value in JUNK:
            spoilt = copy.deepcopy(held)
            parent = spoilt
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = copy.deepcopy(value)
            tried += 1
            try:
                read_metasim(spoilt, rate_hz=RATE_HZ)
            except (CaptureError, InputError):
                refused += 1
    assert refused > tried / 3


def read_file_of(by_path: dict[str, Any], folder: Path) -> Any:
    np.savez(folder / "b.npz", **by_path)
    return read_file(folder / "b.npz")


@pytest.mark.parametrize("how", ["link", "storage"])
def test_numbers_that_lie_in_another_file_are_not_read(tmp_path: Path, how: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    with h5py.File(tmp_path / "e.hdf5", "w") as file:
        if how == "link":
            file["objects"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/")
        else:
            file.create_dataset("objects/cube/pos", (2, 3), "f8", external=[(str(tmp_path / "secret"), 0, 48)])
    with pytest.raises(CaptureError, match="stands alone"):
        read_metasim(tmp_path / "e.hdf5", rate_hz=50.0)
