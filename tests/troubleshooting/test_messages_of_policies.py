"""What is told when a policy is asked and gives no actions, here, at its server, or beside a simulator."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import socket
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import renv_serving
from dialect_server import answering, receive_exactly
from gymnasium import spaces
from leak_check import wait_until
from policies_for_tests import EchoPolicy, FailingPolicy, GatedPolicy, describe, observe
from policy_server_process import policy_server
from quotes import produces
from renv_serving import TOKEN, RenvServer, serving

from remote_env import RemoteEnv
from remote_env.errors import PolicyError
from remote_env.policy import open_policy
from remote_env.policy.client import PolicyClient
from remote_env.policy.dialects import renv
from remote_env.policy.meta import MetaObs
from remote_env.policy.observation import ObservationMapping
from remote_env.policy.policy import Chunk, ObservationBatch
from remote_env.policy.server.service import PolicyService
from remote_env.policy.token_file import token_path

RENV = ("--listen", "renv://127.0.0.1:0")


class RaisingPolicy(EchoPolicy):
    """Raises what it is told to; what it stands for cannot run here."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        raise self._error


def ask(server: RenvServer, value: float = 0.0) -> Chunk:
    with server.connect() as policy:
        return policy.infer(observe(value), episode_ids=[""])


def ask_one_that_raises(error: Exception) -> None:
    with serving(RaisingPolicy(error)) as server:
        ask(server)


# The model


@produces("PolicyError: the policy raised …: …")
def test_a_model_that_raises() -> None:
    with serving(FailingPolicy()) as server:
        with pytest.raises(PolicyError) as raised:
            ask(server, -1)
        assert 'raise ValueError("the model chokes on a negative number")' in raised.value.remote_traceback
        raise raised.value


@produces("PolicyError: the policy raised …: CUDA out of memory…; free memory (nvidia-smi shows who holds a GPU's), …")
def test_a_gpu_without_memory() -> None:
    ask_one_that_raises(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."))


@produces("PolicyError: the policy raised MemoryError: …; free memory (…")
def test_a_server_without_memory() -> None:
    ask_one_that_raises(MemoryError("Unable to allocate 40.0 GiB for an array"))


@produces("not warmed up, the policy failed on zeros: …")
def test_the_first_inference_fails() -> str:
    with serving(RaisingPolicy(RuntimeError("CUDA out of memory."))) as server:
        server.service.warm_up()
        return server.lines[0]


@produces("PolicyError: the policy gave actions that are not finite (NaN or infinity), and none of them is sent: …")
def test_actions_that_are_no_numbers() -> None:
    with serving(FailingPolicy()) as server:
        ask(server, -3)


# Its server


@produces(
    "ConnectionLost: the connection to the policy server at … broke (…) and could not be made again within … s: …"
)
def test_a_server_that_is_killed() -> None:
    with policy_server("stuck", *RENV) as server, ThreadPoolExecutor(1) as threads:
        policy = renv.connect("127.0.0.1", server.port, reconnect_timeout_s=0.1)
        with contextlib.closing(policy):
            asking = threads.submit(policy.infer, observe(), episode_ids=[""])
            server.wait_for("the model is stuck")
            server.process.kill()  # as the kernel does when memory runs out
            server.wait_exit()
            token_path(server.port).unlink()  # which nobody else could remove
            asking.result(20)


@produces("DeadlineExceeded: no reply to INFER from the policy server at … within … s; …")
def test_a_model_that_takes_too_long() -> None:
    policy = GatedPolicy()
    with serving(policy) as server, server.connect(timeout_s=0.3) as client:
        try:
            client.infer(observe(), episode_ids=[""])
        finally:
            policy.gate.release(9)


@produces("PolicyError: the server is busy: … requests wait already (--max_queue …); …")
def test_a_server_with_a_full_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = GatedPolicy()
    monkeypatch.setattr(renv_serving, "PolicyService", functools.partial(PolicyService, max_queue=1))
    with serving(policy) as server, ThreadPoolExecutor(2) as threads:
        for _ in range(2):
            threads.submit(ask, server)
        wait_until(lambda: server.service.workers[0].waiting, "one waits")
        try:
            ask(server)
        finally:
            policy.gate.release(9)


@produces("PolicyError: a newer request of the same client took this one's place in the full queue …")
def test_a_client_that_asks_before_it_was_answered() -> None:
    policy, lines = GatedPolicy(), list[str]()
    service = PolicyService([policy], log=lines.append, max_queue=1)
    client = service.open_client("here", "renv")
    with ThreadPoolExecutor(3) as threads:
        running = threads.submit(client.infer, observe())
        assert policy.entered.acquire(timeout=10)
        older = threads.submit(client.infer, observe())
        wait_until(lambda: service.workers[0].waiting, "it waits")
        newer = threads.submit(client.infer, observe())
        try:
            older.result(10)
        finally:
            policy.gate.release(9)
            newer.result(10)
            running.result(10)
            client.close()
            service.close()


# IL-Studio's protocol, and pickles


@pytest.fixture
def ilstudio() -> Iterator[RenvServer]:
    with serving(FailingPolicy(), dialect="ilstudio") as server:
        yield server


def ask_ilstudio(port: int, value: float = 0.0) -> None:
    with open_policy(f"ilstudio://127.0.0.1:{port}", timeout_s=10.0) as policy:
        policy.infer(observe(value), episode_ids=[""])


def line_of(server: RenvServer, words: str) -> str:
    return wait_until(lambda: next((line for line in server.lines if words in line), ""), words)


@produces("PolicyError: the server answered with an empty list: its inference failed; …")
def test_an_empty_list(ilstudio: RenvServer) -> None:
    ask_ilstudio(ilstudio.port, -1)


@produces("Client #…: no actions, an empty list was sent: …")
def test_why_the_list_was_empty(ilstudio: RenvServer) -> str:
    with contextlib.suppress(PolicyError):
        ask_ilstudio(ilstudio.port, -1)
    return line_of(ilstudio, "no actions")


@produces("Client #…: refused a pickle: it names '…' '…', which is not admitted; …")
def test_a_pickle_that_a_server_refuses(ilstudio: RenvServer) -> str:
    request = pickle.dumps({"observation": os.system})
    with socket.create_connection(("127.0.0.1", ilstudio.port), timeout=10) as sock:
        sock.sendall(struct.pack(">I", len(request)) + request)
        assert pickle.loads(receive_exactly(sock, struct.unpack(">I", receive_exactly(sock, 4))[0])) == []
    return line_of(ilstudio, "refused a pickle")


@produces("ProtocolError: refused a pickle: it names '…' '…', which is not admitted; …")
def test_a_pickle_that_a_client_refuses() -> None:
    reply = pickle.dumps([os.system])

    def answer(sock: socket.socket) -> None:
        receive_exactly(sock, struct.unpack(">I", receive_exactly(sock, 4))[0])
        sock.sendall(struct.pack(">I", len(reply)) + reply)

    with answering(answer) as port:
        ask_ilstudio(port)


# Observations that do not fit


@produces("InputError: '…' has shape (B, …) …; got (…)…")
def test_an_image_of_another_size() -> None:
    with serving(EchoPolicy(images=1)) as server, server.connect() as policy:
        image = np.zeros((1, 480, 640, 3), np.uint8)
        policy.infer({**observe(metadata=policy.metadata), "image0": image}, episode_ids=[""])


@produces("InputError: '…' takes images …; camera … of MetaObs.image gives …: resize it before it is sent")
def test_an_image_of_another_size_in_a_meta_obs() -> None:
    observation = MetaObs(state=np.zeros(14, np.float32), image=np.zeros((1, 3, 480, 640), np.uint8))
    with serving(EchoPolicy(images=1)) as server, PolicyClient("127.0.0.1", server.port, token=TOKEN) as client:
        client.send_meta_obs(observation)


@produces("ConfigError: the policy '…' does not fit the task's observations:…the policy takes…the task offers…")
def test_a_task_that_offers_something_else() -> None:
    offered = spaces.Dict({"agent_pos": spaces.Box(-1, 1, (7,), np.float32)})
    ObservationMapping.between(offered, describe("mine", images=1))


# Beside the simulator


@produces("Unsupported: this server has no policy beside its task: …")
def test_a_rollout_without_a_policy() -> None:
    with RemoteEnv(env="CartPole-v1") as env:
        env.reset()
        env.rollout(n_episodes=1)


@produces("StartError: …the policy '…' could not be opened: no policy …policy=LocalFolder('…')…")
def test_a_checkpoint_that_is_here_and_not_there(tmp_path: Path) -> None:
    RemoteEnv(env="CartPole-v1", policy="/no/such/checkpoint").start()
