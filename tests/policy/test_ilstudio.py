from __future__ import annotations

import contextlib
import pickle
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dialect_server import answering, receive_exactly, serving
from hostile_payloads import RUNNING
from policies_for_tests import CountingPolicy, EchoPolicy, FailingPolicy, observe

from remote_env.errors import ConnectError, ConnectionLost, DeadlineExceeded, InputError, PolicyError, ProtocolError
from remote_env.policy.client import PolicyClient
from remote_env.policy.dialects import ilstudio
from remote_env.policy.dialects.ilstudio_messages import read_request, to_meta, write_request
from remote_env.policy.meta import MetaAction, MetaObs
from remote_env.policy.observation import from_meta

# What users write: classes of their own by IL-Studio's names, in IL-Studio's package.
BENCHMARK = """
    from dataclasses import dataclass
    import numpy as np

    @dataclass
    class MetaAction:
        ctrl_space: str = "ee"
        ctrl_type: str = "delta"
        action: np.ndarray = None
        gripper_continuous: bool = False

    @dataclass
    class MetaObs:
        state: np.ndarray = None
        state_ee: np.ndarray = None
        state_joint: np.ndarray = None
        state_obj: np.ndarray = None
        image: np.ndarray = None
        depth: np.ndarray = None
        pc: np.ndarray = None
        raw_lang: str = ""
        timestep: int = -1
"""
WIRE = """
    import pickle, socket, struct, sys
    import numpy as np
    from {module} import MetaAction, MetaObs

    def receive(sock, size):
        data = b""
        while len(data) < size:
            piece = sock.recv(size - len(data))
            if not piece:
                raise SystemExit("the server closed the connection")
            data += piece
        return data

    def ask(sock, observation):
        data = pickle.dumps(observation)
        sock.sendall(struct.pack(">I", len(data)) + data)
        return pickle.loads(receive(sock, struct.unpack(">I", receive(sock, 4))[0]))
"""
CLIENT = """
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20) as sock:
        state = np.arange(14, dtype=np.float64)
        image = np.zeros((2, 3, 48, 64), np.uint8)
        actions = ask(sock, MetaObs(state=state, image=image, raw_lang="lift", timestep=0))
        assert type(actions) is list and len(actions) == 4, actions
        for step, action in enumerate(actions):
            assert type(action) is MetaAction, type(action)
            assert (action.ctrl_space, action.ctrl_type) == ("joint", "abs")
            np.testing.assert_array_equal(action.action, state + step)
        batch = MetaObs(state=np.stack([state, state + 100]), image=np.stack([image, image]),
                        raw_lang=["lift", "drop"], timestep=np.array([[7], [7]]))
        steps = ask(sock, batch)
        assert type(steps) is list and len(steps) == 4, steps
        for step, row in enumerate(steps):
            assert row.shape == (2,) and row.dtype == object
            assert set(row[1]) == {{"ctrl_space", "ctrl_type", "action", "gripper_continuous"}}
            np.testing.assert_array_equal(row[1]["action"], state + 100 + step)
        assert ask(sock, MetaObs(state=np.zeros(3))) == []
        print("all is well")
"""


def send(sock: socket.socket, payload: bytes) -> None:
    sock.sendall(struct.pack(">I", len(payload)) + payload)


def receive(sock: socket.socket) -> bytes:
    return receive_exactly(sock, struct.unpack(">I", receive_exactly(sock, 4))[0])


@pytest.fixture(params=["benchmark.base", "own.deeper.classes"])
def module(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the users' classes lie; their package is made in tmp_path."""
    folder, *deeper = request.param.split(".")
    path = tmp_path.joinpath(folder, *deeper).with_suffix(".py")
    path.parent.mkdir(parents=True)
    path.write_text(textwrap.dedent(BENCHMARK))
    return request.param


def run_script(folder: Path, script: str, *arguments: str) -> str:
    path = folder / "script.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path), *arguments],
        cwd=folder,
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_client_that_users_have_written_works(tmp_path, module):
    script = textwrap.dedent(WIRE).format(module=module) + textwrap.dedent(CLIENT).format()
    with serving(ilstudio.serve, EchoPolicy(images=2)) as server:
        assert "all is well" in run_script(tmp_path, script, str(server.port))
    assert any("no actions, an empty list was sent" in line and "takes 2 images" in line for line in server.lines)
    assert "Client #1 closed: 2 requests in total" in server.lines


SERVER = """
    import pickle, socket, struct, sys
    import numpy as np
    from benchmark.base import MetaAction, MetaObs

    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    sock, _ = listener.accept()
    with listener, sock:
        while len(head := sock.recv(4, socket.MSG_WAITALL)) == 4:
            observation = pickle.loads(sock.recv(struct.unpack(">I", head)[0], socket.MSG_WAITALL))
            assert type(observation) is MetaObs, type(observation)
            assert observation.image.shape[-4:] == (2, 3, 48, 64) and observation.image.dtype == np.uint8
            state, known = observation.state, {"ctrl_space": "joint", "ctrl_type": "abs", "gripper_continuous": False}
            if "fail" in observation.raw_lang:
                reply = []
            elif state.ndim == 1:
                reply = [MetaAction(action=state + step + observation.timestep) for step in range(3)]
            else:
                times = observation.timestep
                reply = [np.array([dict(known, action=row + step + t[0]) for row, t in zip(state, times)], dtype=object)
                         for step in range(3)]
            data = pickle.dumps(reply)
            sock.sendall(struct.pack(">I", len(data)) + data)
"""


@contextlib.contextmanager
def hand_written_server(folder: Path) -> Iterator[int]:
    path = folder / "benchmark" / "base.py"
    path.parent.mkdir(parents=True)
    path.write_text(textwrap.dedent(BENCHMARK))
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SERVER))
    command = [sys.executable, "-W", "error", str(script)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        assert process.wait(20) == 0


def images_and_state(rows: int, value: float, text: str = "") -> dict[str, Any]:
    state = np.full((rows, 14), value, np.float32) + np.arange(rows, dtype=np.float32)[:, None]
    images = {f"cameras/{name}": np.zeros((rows, 48, 64, 3), np.uint8) for name in ("left", "right")}
    return {"state": state, **images, "instruction": [text] * rows}


@pytest.mark.parametrize("batched", [True, False])
def test_our_client_works_with_a_server_that_users_have_written(tmp_path, batched):
    with hand_written_server(tmp_path) as port:
        policy = ilstudio.connect("127.0.0.1", port, batched=batched)
        try:
            assert policy.metadata.extra["unknown"]
            chunk = policy.infer(images_and_state(1, 5.0), episode_ids=["a"])
            assert chunk.shape == (1, 3, 14)
            assert chunk.dtype == np.float32
            assert chunk[0, :, 0].tolist() == [5, 6, 7]
            assert (policy.metadata.chunk_size, policy.metadata.action_size) == (3, 14)  # learned
            assert policy.metadata.extra["ctrl_type"] == ("abs" if batched else "delta")
            # As timestep goes how many actions the episode has been given.
            assert policy.infer(images_and_state(1, 5.0), episode_ids=["a"])[0, 0, 0] == 8
            rows = policy.infer(images_and_state(2, 5.0), episode_ids=["a", "b"])
            assert rows[:, 0, 0].tolist() == [5 + 6, 6 + 0]
            policy.reset(["a"])
            assert policy.infer(images_and_state(1, 5.0), episode_ids=["a"])[0, 0, 0] == 5
            with pytest.raises(PolicyError, match="answered with an empty list: its inference failed"):
                policy.infer(images_and_state(2, 5.0, "fail"), episode_ids=["a", "b"])
            assert policy.infer(images_and_state(1, 5.0), episode_ids=["c"])[0, 0, 0] == 5
        finally:
            policy.close()


def test_a_chunk_may_be_cut_short():
    with serving(ilstudio.serve, EchoPolicy()) as server:
        policy = ilstudio.connect("127.0.0.1", server.port, chunk_size=2)
        assert policy.infer(observe(), episode_ids=["a"]).shape == (1, 2, 14)
        policy.close()


def test_the_users_client_class_speaks_to_it():
    with serving(ilstudio.serve, EchoPolicy()) as server:
        with PolicyClient("127.0.0.1", server.port, dialect="ilstudio") as client:
            actions = client.send_meta_obs(MetaObs(state=np.arange(14.0)))
        assert [type(action) for action in actions] == [MetaAction] * 4
        np.testing.assert_array_equal(actions[1].action, np.arange(14.0) + 1)


def test_a_timestep_of_0_begins_an_episode_in_its_row():
    def count(*timesteps: int) -> list[float]:
        states = np.zeros((len(timesteps), 14))
        send(sock, write_request(MetaObs(state=states, timestep=np.array([[t] for t in timesteps]))))
        return [each["action"][0] for each in pickle.loads(receive(sock))[0]]

    with (
        serving(ilstudio.serve, CountingPolicy()) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock,
    ):
        assert count(0, 0) == [1, 1]
        assert count(4, 4) == [2, 2]
        assert count(8, 0) == [3, 1]
        assert count(0, 4) == [1, 2]


def test_episodes_of_one_client_are_not_those_of_another():
    with serving(ilstudio.serve, CountingPolicy()) as server:
        policies = [ilstudio.connect("127.0.0.1", server.port) for _ in range(2)]
        counts = [[policy.infer(observe(), episode_ids=["a"])[0, 0, 0] for policy in policies] for _ in range(3)]
        assert counts == [[1, 1], [2, 2], [3, 3]]
        for policy in policies:
            policy.close()


def test_a_failing_model_is_an_empty_list_and_its_cause_stands_in_the_log():
    with serving(ilstudio.serve, FailingPolicy()) as server:
        policy = ilstudio.connect("127.0.0.1", server.port)
        with pytest.raises(PolicyError, match="look into the server's log"):
            policy.infer(observe(-1), episode_ids=["a"])
        assert policy.infer(observe(3), episode_ids=["a"])[0, 0, 0] == 3  # on the same connection
        policy.close()
    log = "\n".join(server.lines)
    assert "the model chokes on a negative number" in log
    assert "Traceback" in log
    assert log.count("connected from") == 1


def test_an_unknown_timestep_begins_nothing():
    request = read_request(write_request(_with_timestep(-1)))
    assert request.beginning == ()
    assert read_request(write_request(_with_timestep(0))).beginning == (0,)


def _with_timestep(value: int) -> MetaObs:
    observation = MetaObs(state=np.zeros(3))
    observation.timestep = value
    return observation


def test_fields_that_are_wrong_or_unknown_are_named():
    observation = MetaObs(state=np.zeros(3))
    vars(observation)["wrench"] = None
    read_request(write_request(observation))  # a newer peer's, and empty
    vars(observation)["wrench"] = np.zeros(6)
    with pytest.raises(InputError, match="no field 'wrench'"):
        read_request(write_request(observation))
    observation = MetaObs(state=np.zeros(3))
    observation.image = np.zeros((2, 48, 64, 3))
    with pytest.raises(InputError, match=r"MetaObs\.image is uint8"):
        read_request(write_request(observation))


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("raw_lang", np.array(False), "raw_lang is a text, or a list of them"),
        ("timestep", [1, [2, 3]], "timestep is no array of numbers"),
        ("timestep", 1 << 63, "timestep counts from 0"),
    ],
)
def test_an_odd_field_is_an_empty_list_and_is_counted(field, value, why):
    with serving(ilstudio.serve, EchoPolicy()) as server, _connected(server.port) as sock:
        observation = MetaObs(state=np.zeros((2, 14)), raw_lang=["", ""])
        vars(observation)[field] = value
        send(sock, write_request(observation))
        assert pickle.loads(receive(sock)) == []
        requests, errors = server.service.requests_by_dialect()
        assert (requests["ilstudio"], errors["ilstudio"]) == (0, 1)
        assert any(why in line for line in server.lines), server.lines


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def test_an_observation_that_does_not_fit_begins_no_episode_and_many_begin_at_once():
    policy = CountingPolicy()
    resets: list[Any] = []
    reset, policy.reset = policy.reset, lambda episodes=None: resets.append(episodes) or reset(episodes)  # type: ignore[method-assign,func-returns-value]
    with serving(ilstudio.serve, policy) as server, _connected(server.port) as sock:
        for size, count in ((14, 1), (3, 0), (14, 1)):
            send(sock, write_request(MetaObs(state=np.zeros((5, size)), timestep=np.zeros((5, 1), np.int64))))
            reply = pickle.loads(receive(sock))
            assert [row["action"][0] for step in reply for row in step] == [count] * 20 * count
        assert [len(names) for names in resets] == [5, 5]


def test_rows_without_anything_in_them_are_counted():
    rows = np.zeros((1 << 20) + 1, np.uint8)
    with pytest.raises(InputError, match=r"MetaObs\.state has 1048577 rows; at most 1048576"):
        read_request(write_request(_with_state(rows[:, None])))
    with pytest.raises(ProtocolError, match="an array of shape"):
        read_request(write_request(_with_state(np.zeros((1 << 24, 0)))))


def _with_state(state: Any) -> MetaObs:
    observation = MetaObs(state=np.zeros(3))
    observation.state = state
    return observation


def test_a_batch_becomes_a_meta_obs_and_back():
    metadata = EchoPolicy(images=2, text=True).metadata
    batch = observe(3.0, metadata, rows=2)
    batch["image1"][...] = np.random.default_rng(0).integers(0, 256, batch["image1"].shape, np.uint8)
    batch["instruction"] = ["lift", "drop"]
    back = from_meta(to_meta(batch, [0, 8]), metadata)
    assert back.keys() == batch.keys()
    for name, value in batch.items():
        np.testing.assert_array_equal(back[name], value)


def test_an_observation_that_a_meta_obs_cannot_hold_is_refused():
    with pytest.raises(InputError, match=r"would both be MetaObs\.state"):
        to_meta({"left": np.zeros((1, 3)), "right": np.zeros((1, 3))}, [0])
    with pytest.raises(InputError, match="cameras of one size"):
        to_meta({"a": np.zeros((1, 8, 8, 3), np.uint8), "b": np.zeros((1, 4, 8, 3), np.uint8)}, [0])
    with pytest.raises(InputError, match="no place in a MetaObs"):
        to_meta({"a": np.zeros((1, 2, 2))}, [0])


def test_a_message_that_is_too_long_is_not_read():
    with serving(ilstudio.serve, EchoPolicy(), max_message_bytes=1000) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(struct.pack(">I", 1001))
            assert sock.recv(1) == b""
        server.join()
    assert any("a message of 1001 bytes is announced; at most 1000 are taken" in line for line in server.lines)


def test_a_client_that_says_nothing_is_let_go():
    with serving(ilstudio.serve, EchoPolicy(), idle_timeout_s=0.2) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            assert sock.recv(1) == b""
        server.join()
    assert any("its connection is closed: nothing was received" in line for line in server.lines)


def test_a_broken_connection_is_made_again():
    with serving(ilstudio.serve, EchoPolicy()) as server:
        policy = ilstudio.connect("127.0.0.1", server.port)
        assert policy.infer(observe(1.0), episode_ids=["a"])[0, 0, 0] == 1
        server.cut()
        server.join()
        assert policy.infer(observe(2.0), episode_ids=["a"])[0, 0, 0] == 2
        policy.close()
    assert sum("connected from" in line for line in server.lines) == 2


def test_a_policy_with_memory_is_not_asked_twice():
    with serving(ilstudio.serve, CountingPolicy()) as server:
        policy = ilstudio.connect("127.0.0.1", server.port, metadata=CountingPolicy().metadata)
        policy.infer(observe(), episode_ids=["a"])
        server.cut()
        server.join()
        with pytest.raises(ConnectionLost, match="with it went what the policy remembered"):
            policy.infer(observe(), episode_ids=["a"])
        policy.reset(["a"])
        assert policy.infer(observe(), episode_ids=["a"])[0, 0, 0] == 1
        policy.close()


def test_a_server_that_has_gone_is_told_in_time():
    with serving(ilstudio.serve, EchoPolicy()) as server:
        policy = ilstudio.connect("127.0.0.1", server.port, reconnect_timeout_s=0.2)
    with pytest.raises(ConnectionLost, match=r"is lost .* tried again for 0\.2 s"):
        policy.infer(observe(), episode_ids=["a"])
    policy.close()
    with pytest.raises(ConnectError, match="nothing answers at"):
        ilstudio.connect("127.0.0.1", server.port)


def test_a_server_that_never_answers_is_given_up():
    with answering(lambda sock: [receive(sock), sock.recv(1)]) as port:
        policy = ilstudio.connect("127.0.0.1", port, timeout_s=0.3)
        with pytest.raises(DeadlineExceeded):
            policy.infer(observe(), episode_ids=["a"])
        policy.close()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"actions": []}, "a reply is a list of actions; got a dict"),
        ([np.zeros(3)], "an action is a MetaAction or a dict with 'action'"),
        ([{"action": np.zeros(3), "ctrl_space": "moon"}], "in the space 'moon'"),
        ([{"action": np.zeros(3)}, {"action": np.zeros(4)}], "different shapes"),
        ([{"action": np.zeros((2, 3))}], r"actions of shape \(2, 3\); \(1, D\) was asked for"),
        ([{"action": np.array([np.nan])}], "not finite"),
    ],
)
def test_replies_that_are_none_are_refused(reply, message):
    def answer(sock: socket.socket) -> None:
        receive(sock)
        send(sock, pickle.dumps(reply))
        sock.recv(1)

    with answering(answer) as port:
        policy = ilstudio.connect("127.0.0.1", port)
        with pytest.raises((ProtocolError, PolicyError), match=message):
            policy.infer(observe(), episode_ids=["a"])
        policy.close()


@pytest.mark.parametrize("name", ["os.system", "a field of MetaObs", "__setstate__ of a partial"])
def test_a_server_refuses_hostile_requests_and_serves_on(tmp_path, name):
    mark = tmp_path / "mark"
    with serving(ilstudio.serve, EchoPolicy()) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            send(sock, RUNNING[name](mark))
            assert pickle.loads(receive(sock)) == []
            assert sock.recv(1) == b""
        policy = ilstudio.connect("127.0.0.1", server.port)
        assert policy.infer(observe(2.0), episode_ids=["a"])[0, 0, 0] == 2
        policy.close()
        server.join()
    assert any("refused a pickle" in line for line in server.lines)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["os.system", "a field of MetaAction", "nested arrays of objects"])
def test_a_client_refuses_hostile_replies(tmp_path, name):
    mark = tmp_path / "mark"

    def reply(sock: socket.socket) -> None:
        receive(sock)
        send(sock, RUNNING[name](mark))
        sock.recv(1)

    with answering(reply) as port:
        policy = ilstudio.connect("127.0.0.1", port)
        with pytest.raises(ProtocolError, match="refused a pickle"):
            policy.infer(observe(), episode_ids=["a"])
        policy.close()
    assert not mark.exists()
