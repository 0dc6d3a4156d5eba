"""A policy with memory sees each observation once, whatever becomes of the connection."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
from cutting_proxy import CuttingProxy
from leak_check import wait_until
from policies_for_tests import CountingPolicy, EchoPolicy, GatedPolicy, describe, observe
from renv_serving import RenvServer, serving

from remote_env.errors import ConnectionLost, DeadlineExceeded, PolicyError
from remote_env.policy.dialects import renv_places


def budgets(seed: int, largest: int) -> Any:
    """Of the first connection, enough to get going; of the others, anything."""
    rng, first = random.Random(seed), iter([largest])
    return lambda: next(first, None) or rng.randint(1, largest)


def count_of(chunk: Any) -> int:
    return int(chunk[0, 0, 0])


@pytest.mark.parametrize("seed", range(4))
def test_a_counting_policy_behind_a_link_that_is_cut_at_random_bytes(seed: int) -> None:
    # Small observations and replies; then large ones, whose arrays travel out of line.
    large = bool(seed % 2)
    policy = CountingPolicy(images=1, chunk_size=200) if large else CountingPolicy()
    largest = 120_000 if large else 6_000
    with serving(policy) as server, CuttingProxy(server.port, budgets(seed, largest)) as proxy:
        with server.connect(port=proxy.port) as client:
            observation = observe(1.0, policy.metadata)
            counts = [count_of(client.infer(observation, episode_ids=["a"])) for _ in range(50)]
            assert counts == list(range(1, 51))
            client.reset(["a"])
            assert count_of(client.infer(observation, episode_ids=["a"])) == 1
        assert proxy.cuts >= 5
        assert sum("connected from" in line for line in server.lines) == 1


def test_two_clients_behind_cut_links_stay_apart() -> None:
    policy = CountingPolicy()
    with serving(policy) as server, CuttingProxy(server.port, budgets(7, 6_000)) as proxy:
        results: dict[int, list[int]] = {}

        def drive(number: int) -> None:
            with server.connect(port=proxy.port) as client:
                results[number] = [count_of(client.infer(observe(), episode_ids=["a"])) for _ in range(25)]

        threads = [threading.Thread(target=drive, args=(number,)) for number in range(2)]
        # One after the other, so that both first connections come through the handshake.
        first_connections = iter([6_000, 6_000])
        proxy._next_budget = lambda: next(first_connections, None) or random.randint(1, 6_000)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert results == {0: list(range(1, 26)), 1: list(range(1, 26))}


def test_a_request_that_runs_while_the_link_breaks_is_waited_for_not_run_again() -> None:
    class Gated(GatedPolicy):
        def __init__(self) -> None:
            super().__init__()
            self.metadata = describe("gated", has_memory=True)

    policy = Gated()
    with serving(policy) as server, server.connect() as client:
        chunks: list[Any] = []
        thread = threading.Thread(target=lambda: chunks.append(client.infer(observe(3.0), episode_ids=["a"])))
        thread.start()
        assert policy.entered.acquire(timeout=10)
        connections = len(server._connections)
        server.cut_all()
        wait_until(lambda: len(server._connections) > connections, "the client has connected again")
        policy.gate.release()
        thread.join(10)
        assert chunks[0][0, 0, 0] == 3.0
        assert policy.sizes == [1]


def test_a_client_without_a_connection_is_kept_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = CountingPolicy()
    with serving(policy) as server, server.connect() as client:
        client.infer(observe(), episode_ids=["a"])
        server.cut_all()
        assert count_of(client.infer(observe(), episode_ids=["a"])) == 2
        monkeypatch.setattr(renv_places, "KEEP_S", 0.0)
        server.cut_all()
        wait_until(lambda: any("2 requests in total" in line for line in server.lines), "the client was given up")
        assert policy.counts == {}
        # The request went into a dead connection, so it counts as under way.
        with pytest.raises(ConnectionLost, match=r"given this client up.*not sent again.*reset\(\)"):
            client.infer(observe(), episode_ids=["a"])
        with pytest.raises(PolicyError, match=r"forgotten the episodes \['a'\]; reset\(\)"):
            client.infer(observe(), episode_ids=["a"])
        assert count_of(client.infer(observe(), episode_ids=["b"])) == 1
        client.reset(["a"])
        assert count_of(client.infer(observe(), episode_ids=["a"])) == 1


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renv_places, "MAX_KEPT", 2)
    with serving(CountingPolicy()) as server:
        clients = [server.connect() for _ in range(4)]
        for client in clients:
            client.infer(observe(), episode_ids=["a"])
        server.cut_all()
        wait_until(lambda: len(server.service.living) == 2, "the oldest two were given up")
        for client in clients:
            client.close()


def test_the_bytes_of_kept_replies_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renv_places, "MAX_KEPT_BYTES", 100_000)
    with serving(CountingPolicy(chunk_size=1000)) as server:  # 56 kB a reply
        clients = [server.connect() for _ in range(3)]
        for client in clients:
            client.infer(observe(), episode_ids=["a"])
        server.cut_all()
        wait_until(lambda: len(server.service.living) == 1, "all but one were given up")
        for client in clients:
            client.close()


def restart(server: RenvServer, policy: Any) -> RenvServer:
    server.close()
    return RenvServer(policy, port=server.port)


def test_a_server_that_restarts_under_a_policy_without_memory_is_asked_again() -> None:
    server = RenvServer(EchoPolicy())
    with server.connect() as client:
        client.infer(observe(1.0), episode_ids=["a"])
        server = restart(server, EchoPolicy())
        assert client.infer(observe(2.0), episode_ids=["a"])[0, 0, 0] == 2.0
    server.close()


def test_a_server_that_restarts_under_a_policy_with_memory_is_told() -> None:
    server = RenvServer(CountingPolicy())
    with server.connect() as client:
        client.infer(observe(), episode_ids=["a"])
        server = restart(server, CountingPolicy())
        with pytest.raises(ConnectionLost, match=r"was restarted.*whether it ran is unknown"):
            client.infer(observe(), episode_ids=["a"])
        client.reset()
        assert count_of(client.infer(observe(), episode_ids=["a"])) == 1
    server.close()


def test_a_server_that_comes_back_with_another_policy_is_refused() -> None:
    from remote_env.errors import ConfigError

    server = RenvServer(EchoPolicy())
    with server.connect() as client:
        server = restart(server, EchoPolicy(chunk_size=9))
        with pytest.raises(ConfigError, match="is not the policy"):
            client.infer(observe(), episode_ids=["a"])
    server.close()


def test_a_server_that_does_not_come_back_is_told_in_time() -> None:
    server = RenvServer(EchoPolicy())
    with server.connect(reconnect_timeout_s=0.3) as client:
        server.close()
        began = time.monotonic()
        with pytest.raises(ConnectionLost, match=r"could not be made again within 0.3 s: nothing answers at 127"):
            client.infer(observe(), episode_ids=["a"])
        assert time.monotonic() - began < 10


def test_a_late_reply_is_not_taken_for_the_next_one() -> None:
    policy = GatedPolicy()
    with serving(policy) as server, server.connect(timeout_s=0.3) as client:
        with pytest.raises(DeadlineExceeded, match=r"no reply to INFER from the policy server at 127.* within 0.3 s"):
            client.infer(observe(1.0), episode_ids=["a"])
        policy.gate.release(2)
        assert policy.entered.acquire(timeout=10)
        client._timeout_s = 20.0
        assert client.infer(observe(2.0), episode_ids=["a"])[0, 0, 0] == 2.0


def test_closing_ends_a_call_of_another_thread() -> None:
    policy = GatedPolicy()
    with serving(policy) as server:
        client = server.connect()
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                client.infer(observe(), episode_ids=["a"])
            except Exception as error:  # noqa: BLE001
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert policy.entered.acquire(timeout=10)
        client.close()
        thread.join(10)
        policy.gate.release()
        assert [type(error) for error in errors] == [ConnectionLost]
