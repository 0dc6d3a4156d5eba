"""PolicyClient and RemotePolicyClient: MetaObs in, actions out, whatever the dialect."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policies_for_tests import CountingPolicy, EchoPolicy, FailingPolicy, describe
from renv_serving import TOKEN, RenvServer, serving

from remote_env.errors import ConfigError, ConnectError, InputError, PolicyError
from remote_env.policy.client import PolicyClient, RemotePolicyClient
from remote_env.policy.meta import MetaAction, MetaObs, stack_observations

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server() -> Iterator[RenvServer]:
    with serving(EchoPolicy(chunk_size=3)) as server:
        yield server


def client_of(server: RenvServer, **options: Any) -> PolicyClient:
    return PolicyClient("127.0.0.1", server.port, **{"token": TOKEN, "timeout_s": 20.0, **options})


def remote(server: RenvServer, chunk_size: int, **options: Any) -> RemotePolicyClient:
    return RemotePolicyClient("127.0.0.1", server.port, chunk_size, token=TOKEN, timeout_s=20.0, **options)


def state(value: float = 0.0) -> MetaObs:
    return MetaObs(state=np.full(14, value, np.float32))


def first(action: Any) -> float:
    return float(action.action[0] if isinstance(action, MetaAction) else action["action"][0])


def test_one_observation_gives_a_list_of_actions(server: RenvServer) -> None:
    with client_of(server) as client:
        actions = client.send_meta_obs(state(5.0))
        assert [type(action) for action in actions] == [MetaAction] * 3
        assert [first(action) for action in actions] == [5, 6, 7]
        assert actions[0].ctrl_space == "joint"
        assert client.metadata.name == "echo"


def test_a_batch_gives_object_arrays_of_dicts(server: RenvServer) -> None:
    with client_of(server) as client:
        actions = client.send_meta_obs(stack_observations([state(1.0), state(10.0)]))
        assert [step.shape for step in actions] == [(2,)] * 3
        assert actions[0].dtype == object
        assert set(actions[0][0]) == {"action", "ctrl_space", "ctrl_type", "gripper_continuous"}
        assert [[first(action) for action in step] for step in actions] == [[1, 10], [2, 11], [3, 12]]


class TheirMetaObs:
    """Another project's class of the same fields."""

    state = np.full(14, 4.0, np.float32)
    raw_lang = ""
    timestep = 0
    image = None


@pytest.mark.parametrize("observation", [TheirMetaObs(), {"state": np.full(14, 4.0, np.float32)}])
def test_observations_of_other_classes_are_taken(server: RenvServer, observation: Any) -> None:
    with client_of(server) as client:
        assert first(client.send_meta_obs(observation)[0]) == 4.0


def test_what_is_no_observation_is_told(server: RenvServer) -> None:
    with client_of(server) as client:
        with pytest.raises(InputError, match=r"a MetaObs is wanted, .*got a int"):
            client.send_meta_obs(7)
        with pytest.raises(InputError, match=r"MetaObs\.state.*missing"):
            client.send_meta_obs(MetaObs(state_ee=np.zeros(14)))


def test_the_policys_kind_of_action_is_told() -> None:
    policy = EchoPolicy()
    policy.metadata = describe("echo", extra={"ctrl_space": "ee", "ctrl_type": "delta", "gripper_continuous": False})
    with serving(policy) as server, client_of(server) as client:
        action = client.send_meta_obs(state())[0]
        assert [action.ctrl_space, action.ctrl_type, action.gripper_continuous] == ["ee", "delta", False]


def test_an_error_of_the_policy_has_its_traceback() -> None:
    with serving(FailingPolicy()) as server, client_of(server) as client:
        with pytest.raises(PolicyError, match="chokes") as raised:
            client.send_meta_obs(state(-1.0))
        assert "ValueError" in raised.value.remote_traceback


def test_connect_and_disconnect_as_often_as_one_likes(server: RenvServer) -> None:
    client = client_of(server)
    client.disconnect()
    for _ in range(2):
        client.connect()
        client.connect()
        assert first(client.send_meta_obs(state(1.0))[0]) == 1.0
        client.disconnect()
    assert sum("connected from" in line for line in server.lines) == 2


@pytest.mark.parametrize(
    ("host", "port", "shown"),
    [
        ("localhost", 5000, "localhost:5000"),
        ("::1", 5001, "[::1]:5001"),
        ("[::1]:5001", 9, "[::1]:5001"),
        ("box:5001", 9, "box:5001"),
        ("openpi://box:8000", 9, "openpi://box:8000"),
        ("openpi://box", 9, "openpi://box:8000"),
        ("a,b:5001, ilstudio://c:2", 9, "a:9,b:5001,ilstudio://c:2"),
    ],
)
def test_addresses(host: str, port: int, shown: str) -> None:
    assert str(PolicyClient(host, port).address) == shown


def test_wrong_addresses() -> None:
    with pytest.raises(ConfigError, match="unknown dialect 'ftp'"):
        PolicyClient("localhost", 5000, dialect="ftp")
    with pytest.raises(ConfigError, match="1 to 65535"):
        PolicyClient("localhost", 0)
    with pytest.raises(ConfigError, match="chunk_size is at least 1; got 0"):
        RemotePolicyClient("localhost", chunk_size=0)


# Step by step


def test_the_server_is_asked_when_a_chunk_ends(server: RenvServer) -> None:
    with remote(server, 2) as client:
        got = [first(client.select_action(state(10.0 * t), t)) for t in range(5)]
        assert got == [0, 1, 20, 21, 40]
        assert server.service.living[0].count == 3


def test_a_chunk_that_is_shorter_than_asked_for_is_followed_by_another(server: RenvServer) -> None:
    with remote(server, 64) as client:
        got = [first(client.select_action(state(10.0 * t), timestep=t)) for t in range(5)]
        assert got == [0, 1, 2, 30, 31]


def test_steps_are_counted_when_they_are_not_given(server: RenvServer) -> None:
    with remote(server, 2) as client:
        assert [first(client.select_action(state(10.0 * t))) for t in range(3)] == [0, 1, 20]
        client.reset()
        assert first(client.select_action(state(7.0))) == 7


def test_one_number_has_one_value(server: RenvServer) -> None:
    with remote(server, 2) as client:
        assert first(client.select_action(state(3.0), 0, timestep=0)) == 3
        with pytest.raises(InputError, match="t=1 and timestep=2"):
            client.select_action(state(), 1, timestep=2)
        with pytest.raises(InputError, match="counts from 0; got -1"):
            client.select_action(state(), -1)


def test_a_batch_of_another_size_asks_anew(server: RenvServer) -> None:
    with remote(server, 3) as client:
        client.select_action(stack_observations([state(1.0), state(2.0)]), 0)
        assert first(client.select_action(state(5.0), 1)) == 5
        two = client.select_action(stack_observations([state(7.0), state(8.0)]), 2)
        assert [first(action) for action in two] == [7, 8]


def test_reset_reaches_the_server() -> None:
    with serving(CountingPolicy(chunk_size=1)) as server, remote(server, 1) as client:
        assert [first(client.select_action(state(), t)) for t in range(3)] == [1, 2, 3]
        client.reset()
        assert first(client.select_action(state(), 0)) == 1


# Several servers


def test_clients_spread_over_servers_and_pass_over_dead_ones(server: RenvServer) -> None:
    with serving(EchoPolicy(chunk_size=3)) as other:
        both = f"127.0.0.1:{server.port},127.0.0.1:{other.port}"
        clients = [PolicyClient(both, token=TOKEN, log=lambda line: None) for _ in range(4)]
        for client in clients:
            client.connect()
        assert [len(one.service.living) for one in (server, other)] == [2, 2]
        for client in clients:
            client.disconnect()
    lines: list[str] = []
    for _ in range(2):
        with PolicyClient(both, token=TOKEN, timeout_s=5.0, log=lines.append) as client:
            assert first(client.send_meta_obs(state(1.0))[0]) == 1
    assert any(f"no policy at 127.0.0.1:{other.port}" in line for line in lines)


def test_servers_of_different_policies_are_refused(server: RenvServer) -> None:
    with serving(EchoPolicy(chunk_size=9)) as other:
        both = f"127.0.0.1:{server.port},127.0.0.1:{other.port}"
        for _ in range(2):  # whichever comes first
            with pytest.raises(ConfigError, match="different policies: they differ in chunk_size"):
                PolicyClient(both, token=TOKEN).connect()


# Other dialects


@pytest.mark.parametrize("dialect", ["renv", "ilstudio", "openpi"])
def test_every_dialect_is_used_alike(dialect: str) -> None:
    with serving(EchoPolicy(chunk_size=3), dialect=dialect) as server:
        for options in ({"dialect": dialect}, {"dialect": "renv", "host": f"{dialect}://127.0.0.1:{server.port}"}):
            client = RemotePolicyClient(**{"host": "127.0.0.1", "port": server.port, "token": TOKEN, **options})
            with client:
                got = [first(client.select_action(state(10.0 * t), t)) for t in range(5)]
                assert got == [0, 1, 2, 30, 31]
                client.reset()
                two = client.select_action(stack_observations([state(7.0), state(8.0)]), 0)
                assert [first(action) for action in two] == [7, 8]


def test_a_server_that_is_not_there_says_so() -> None:
    with serving(EchoPolicy()) as server:
        pass
    with pytest.raises(ConnectError, match="nothing answers at 127"):
        client_of(server, timeout_s=5.0).connect()


# What a client needs

BLOCKED = ("torch", "onnxruntime", "lerobot", "websockets", "grpc", "zstandard", "simplejpeg", "mujoco", "matplotlib")


def test_a_client_runs_where_nothing_heavy_is_installed(server: RenvServer) -> None:
    program = f"""
        import sys
        for name in {BLOCKED!r}:
            sys.modules[name] = None  # importing it fails
        import numpy as np
        from remote_env.policy import MetaObs
        from remote_env.policy.client import PolicyClient, RemotePolicyClient
        with RemotePolicyClient("127.0.0.1", {server.port}, 2) as client:
            for t in range(3):
                action = client.select_action(MetaObs(state=np.full(14, t)), t)
            client.reset()
        loaded = [name for name in sys.modules if sys.modules[name] and name.split(".")[0] in {BLOCKED!r}]
        print(action.action[0], loaded)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    environment = {"PYTHONPATH": str(ROOT), "REMOTE_ENV_TOKEN": TOKEN, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.split("\n")[0] == "2.0 []", done.stderr
