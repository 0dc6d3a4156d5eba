"""A policy beside the simulator: how it is opened, what keeps it from being, and a policy server that it may be at."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from rollout_loops import Meanwhile, assert_same, local_rollout
from server_process import ROOT, HandServer

from remote_env import LocalFolder, RemoteEnv
from remote_env.errors import ConfigError, InputError, PolicyError, StartError, Unsupported
from remote_env.policy import load_policy
from remote_env.protocol import frames
from remote_env.server.folder import record_path
from remote_env.tasks import TRANSFER_CUBE_ID, register_tasks

POLICIES = "tasks_for_tests.policies"
ON_DEMAND = "tasks_for_tests.misbehaving:OnDemand"
CHECKPOINT = ROOT / "ckpt" / "act_sim_transfer_cube_scripted_zscore_example"
STATE = {"obs_type": "state"}


def policy_server(policy: str, *more: str) -> HandServer:
    return HandServer("-m", policy, *more, program="start_policy_server.py").wait_listening()


# Opened


@pytest.mark.parametrize("sends_along", [False, True])
def test_a_checkpoint_s_rollout_is_bit_for_bit_a_loop_here(sends_along: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    register_tasks()
    monkeypatch.chdir(ROOT)
    given: Any = LocalFolder(CHECKPOINT) if sends_along else str(CHECKPOINT.relative_to(ROOT))
    arguments = {"env": TRANSFER_CUBE_ID, "env_kwargs": STATE, "cwd": "/", "policy_kwargs": {"chunk_size": 40}}
    with RemoteEnv(policy=given, **arguments) as env:
        assert env.policy_metadata["source"] == str(CHECKPOINT)
        [there] = env.rollout(120, seed=900)
    with gymnasium.make(TRANSFER_CUBE_ID, **STATE) as env, load_policy(CHECKPOINT, chunk_size=40) as policy:
        assert_same(there, local_rollout(env, policy, 900, max_steps=120))
    assert there.inferences == 3


def test_features_go_where_the_mapping_says() -> None:
    mapping = {
        "observation": {"state": {"from": "observation", "order": [1, 0]}},
        "action": {"order": ["row", "asked"]},
    }
    kwargs = {"mapping": mapping}
    with RemoteEnv(env=ON_DEMAND, policy=f"{POLICIES}:Counting", policy_kwargs=kwargs) as env:
        env.reset()
        action = env.step_policy()[0]
        assert action.tolist() == [np.float32(-0.01), 1.0]  # it saw the first number as its second


def test_by_hand_with_a_policy_and_its_mapping(tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("action:\n  order: [row, asked]\n")
    flags = ("--policy", f"{POLICIES}:Counting", "--policy-mapping", str(mapping), "--policy-instruction", "lift it")
    with HandServer("--env", ON_DEMAND, *flags) as server:
        server.wait_listening()
        assert json.loads(record_path(server.port).read_text())["task_label"].endswith(
            "with tasks_for_tests.policies:Counting"
        )
        with RemoteEnv(port=server.port) as env:
            assert env.policy_metadata["name"] == "counting"
            assert env.rollout(4)[0].actions[:, 1].tolist() == [1, 1, 1, 2]
        with pytest.raises(ConfigError, match="another policy"):
            RemoteEnv(port=server.port, env=ON_DEMAND).start()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--policy-chunk-size", "3"], "--policy-chunk-size is for a policy, so name one with --policy"),
        (["--policy", "x", "--policy-mapping", "nowhere.json"], "nowhere.json: .*No such file"),
        (["--policy", "x", "--policy-mapping", "{bad}"], "it is no YAML"),
        (["--policy", "x", "--policy-mapping", "{list}"], "--policy-mapping"),
        (["--policy", "x", "--policy-mapping", "{keys}"], '"observation"'),
        (["--policy", "/no/such/checkpoint"], "could not be opened: no policy '/no/such/checkpoint'"),
    ],
)
def test_by_hand_what_keeps_it_from_starting_is_said(flags: list[str], text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [b")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "keys.json").write_text(json.dumps({"state": {}}))
    names = {name: tmp_path / f"{name}.{'yaml' if name == 'bad' else 'json'}" for name in ("bad", "list", "keys")}
    with HandServer("--env", "Pendulum-v1", *(flag.format(**names) for flag in flags)) as server:
        assert server.process.wait(20) == 1
    assert re.search(text, server.output), server.output


# What keeps it from being opened


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ("/no/such/checkpoint", r"(?s)'/no/such/checkpoint' could not be opened: no policy.*policy=LocalFolder\('/no"),
        ("scripted:nothing", r"could not be opened: no scripted policy"),
        (f"{POLICIES}:make_nothing", r"made a str; it must return a"),
        (f"{POLICIES}:make_broken", r"the weights cannot be read"),
        (f"{POLICIES}:Counting", r"(?s)does not fit the task: .*state \(2,\).*\(3,\)"),
        ("127.0.0.1:1", r"could not be opened: ConnectError: nothing answers at 127.0.0.1:1"),
        ("ilstudio://127.0.0.1:1", r"could not be opened: ConnectError: "),
        ("nodialect://box:1", r"unknown dialect 'nodialect'"),
    ],
)
def test_a_start_that_fails_by_its_policy_says_so(policy: str, text: str) -> None:
    with pytest.raises(StartError, match=text) as caught:
        RemoteEnv(env="Pendulum-v1", policy=policy).start()
    assert caught.value.phase == "building"
    assert "rollout.py" in caught.value.remote_traceback


def test_a_checkpoint_to_send_along_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="no /no/such/checkpoint on this machine"):
        RemoteEnv(env="Pendulum-v1", policy=LocalFolder("/no/such/checkpoint")).start()


# At a policy server


def test_a_policy_server_is_reached_from_beside_the_simulator() -> None:
    register_tasks()
    with policy_server("scripted:aloha-transfer-cube") as server:
        arguments = {"env": TRANSFER_CUBE_ID, "env_kwargs": STATE, "policy": f"127.0.0.1:{server.port}"}
        with RemoteEnv(**arguments) as env:
            there = env.rollout(n_episodes=2, seed=31)
    with (
        gymnasium.make(TRANSFER_CUBE_ID, **STATE) as env,
        load_policy("scripted:aloha-transfer-cube") as policy,
    ):
        for rollout, seed in zip(there, (31, 32), strict=True):
            assert_same(rollout, local_rollout(env, policy, seed))


@pytest.mark.fault
def test_a_policy_server_that_dies_in_mid_slice_is_a_policy_error_and_the_simulator_goes_on(
    isolated_home: Path, tmp_path: Path
) -> None:
    files = {"POLICY_GATE": str(tmp_path / "gate"), "POLICY_MARK": str(tmp_path / "mark")}
    waiting = HandServer("-m", f"{POLICIES}:make_waiting", program="start_policy_server.py", **files)
    with waiting as server:
        address = f"127.0.0.1:{server.wait_listening().port}"
        with RemoteEnv(env=ON_DEMAND, policy=address, policy_kwargs={"reconnect_timeout_s": 0.2}) as env:
            env.start()
            with (
                Meanwhile(tmp_path / "mark", server.process.kill),
                pytest.raises(PolicyError, match="'counting'") as caught,
            ):
                env.rollout(4)
            assert "rollout.py" in caught.value.remote_traceback
            assert env.step(np.zeros(2, np.float32))[0][1] == 4  # three ran before
            with pytest.raises(PolicyError):
                env.step_policy()
        (isolated_home / "cache" / "remote-env" / "policies" / f"{server.port}.token").unlink()  # which it left


def test_a_token_for_the_policy_server_goes_along_unseen(isolated_home: Path) -> None:
    token = "f" * 64
    with HandServer("-m", f"{POLICIES}:Counting", program="start_policy_server.py", REMOTE_ENV_TOKEN=token) as server:
        server.wait_listening()
        for path in (isolated_home / "cache").rglob("*.token"):
            path.unlink()  # as on another machine
        arguments: dict[str, Any] = {"env": ON_DEMAND, "policy": f"127.0.0.1:{server.port}"}
        with RemoteEnv(**arguments, policy_kwargs={"token": token}) as env:
            assert env.rollout(1)[0].steps == 1
            assert token not in env.logs()


# On the wire


def test_requests_that_are_none_leave_the_session_open() -> None:
    with RemoteEnv(env=ON_DEMAND, policy=f"{POLICIES}:Counting") as env:
        session = env._running()
        good = {
            "begin": (None, None),
            "steps": 2,
            "time_s": 9.0,
            "size_bytes": 10**6,
            "want": [],
            "chunk_size": None,
            "stacked": True,
        }
        for change in ({"steps": 0}, {"want": ["nothing"]}, {"begin": (1,)}, {"time_s": "x"}, {"chunk_size": -1}):
            with pytest.raises(InputError, match="rollout"):
                session._value(frames.ROLLOUT, {**good, **change}, 5.0)
        for request in (None, [1], {"begin": None}):
            with pytest.raises(InputError, match="not a rollout's request"):
                session._value(frames.ROLLOUT, request, 5.0)
        small = session.rollout({**good, "steps": 50, "size_bytes": 10 * 64}, 5.0)
        assert small["steps"] == 10  # every value counts 64 bytes
        assert session.rollout({**good, "begin": None, "steps": 3}, 5.0)["steps"] == 3


def test_a_server_without_a_policy_answers_all_the_same() -> None:
    with RemoteEnv(env="CartPole-v1") as env:
        with pytest.raises(Unsupported, match="this server has no policy"):
            env._running()._value(frames.ROLLOUT, {}, 5.0)
        env.reset(seed=0)


def test_its_steps_are_counted() -> None:
    with RemoteEnv(env=ON_DEMAND, policy=f"{POLICIES}:Counting") as env:
        env.rollout(7)
        status = env.status()
        assert (status["steps"], status["resets"]) == (7, 1)
