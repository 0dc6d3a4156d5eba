"""The policy service: whose turn it is, what runs together, what a client may see of another (nothing)."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from leak_check import wait_until
from policies_for_tests import (
    CountingPolicy,
    EchoPolicy,
    FailingPolicy,
    GatedPolicy,
    NullPolicy,
    describe,
    observe,
)

from remote_env.errors import ConfigError, InputError, PolicyError
from remote_env.policy.policy import Chunk, ObservationBatch, Policy
from remote_env.policy.server.service import MAX_EPISODES, PolicyService, ServedClient, zero_observation


class Served:
    """A service whose log is kept."""

    def __init__(self, *policies: Policy, **options: Any) -> None:
        self.lines: list[str] = []
        self.service = PolicyService(policies, log=self.lines.append, **options)
        self.worker = self.service.workers[0]

    def client(self, address: str = "somewhere:1", dialect: str = "renv") -> ServedClient:
        return self.service.open_client(address, dialect)


def ask(client: ServedClient, value: float, **options: Any) -> float:
    """The first number of the actions for an observation of `value`."""
    return float(client.infer(observe(value), **options)[0, 0, 0])


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(16) as threads:
        yield threads


# One client


def test_a_client_gets_its_actions_and_a_log() -> None:
    served = Served(EchoPolicy())
    client = served.client("10.0.0.7:4242", "openpi")
    assert [ask(client, value) for value in range(20)] == list(range(20))
    client.close()
    client.close()
    assert served.lines == [
        "Client #1 connected from 10.0.0.7:4242 (openpi)",
        "Client #1: 10 requests processed",
        "Client #1: 20 requests processed",
        "Client #1 closed: 20 requests in total",
    ]


def test_a_wrong_observation_runs_nothing() -> None:
    policy = EchoPolicy()
    client = Served(policy).client()
    with pytest.raises(InputError, match="'state' has shape"):
        client.infer({"state": np.zeros((1, 3), np.float32)})
    with pytest.raises(InputError, match="2 rows came with 1 episode names"):
        client.infer(observe(rows=2))
    with pytest.raises(InputError, match="256 are allowed"):
        client.infer(observe(), [257 * "x"])
    assert policy.sizes == []
    assert (client.count, client.errors) == (0, 3)


def test_several_rows_at_once() -> None:
    client = Served(EchoPolicy()).client()
    batch = observe(rows=3)
    batch["state"][:, 0] = [5, 6, 7]
    chunk = client.infer(batch, ["a", "b", "c"])
    assert chunk.shape == (3, 4, 14)
    assert list(chunk[:, 0, 0]) == [5, 6, 7]


def test_a_policy_of_single_rows_gets_single_rows() -> None:
    policy = EchoPolicy(batches=False)
    batch = observe(rows=3)
    batch["state"][:, 0] = [5, 6, 7]
    chunk = Served(policy, max_batch=8).client().infer(batch, ["a", "b", "c"])
    assert list(chunk[:, 0, 0]) == [5, 6, 7]
    assert policy.sizes == [1, 1, 1]


def test_texts_cross() -> None:
    metadata = describe("x", images=1, text=True)
    assert zero_observation(metadata)["instruction"] == [""]
    assert Served(NullPolicy(images=1, text=True)).client().infer(observe(0, metadata)).shape == (1, 4, 14)


# Memory: of whom


def test_what_is_remembered_is_one_client_s_own() -> None:
    policy = CountingPolicy()
    served = Served(policy)
    one, two = served.client(), served.client()
    assert [ask(one, 0), ask(one, 0), ask(two, 0), ask(one, 0)] == [1, 2, 1, 3]
    assert ask(one, 0, episodes=["other"]) == 1
    one.reset([""])
    assert [ask(one, 0), ask(two, 0), ask(one, 0, episodes=["other"])] == [1, 2, 2]
    one.reset()
    assert [ask(one, 0), ask(one, 0, episodes=["other"]), ask(two, 0)] == [1, 1, 3]


def test_a_client_that_goes_is_forgotten() -> None:
    policy = CountingPolicy()
    served = Served(policy)
    stays, goes = served.client(), served.client()
    ask(stays, 0)
    ask(goes, 0)
    goes.close()
    assert len(policy.counts) == 1
    assert ask(stays, 0) == 2
    stays.close()
    assert policy.counts == {}


def test_clients_of_two_devices_keep_to_theirs() -> None:
    policies = CountingPolicy(), CountingPolicy()
    served = Served(*policies)
    clients = [served.client() for _ in range(4)]
    assert [ask(client, 0) for client in clients * 3] == [1] * 4 + [2] * 4 + [3] * 4
    assert [len(policy.counts) for policy in policies] == [2, 2]
    clients[0].close()
    assert served.client().worker is clients[0].worker


def test_episodes_are_bounded() -> None:
    client = Served(CountingPolicy()).client()
    names = [str(number) for number in range(MAX_EPISODES)]
    client.infer(observe(rows=MAX_EPISODES), names)
    with pytest.raises(InputError, match="more than 4096 episodes"):
        ask(client, 0, episodes=["one more"])
    client.reset(names[:1])
    assert ask(client, 0, episodes=["one more"]) == 1


def test_a_reset_waits_for_its_turn(pool: ThreadPoolExecutor) -> None:
    policy = GatedPolicy(has_memory=True)
    client = Served(policy).client()
    running = pool.submit(ask, client, 1)
    assert policy.entered.acquire(timeout=5)
    resetting = pool.submit(client.reset, [""])
    wait_until(lambda: client.worker.waiting == 1, "the reset waits")
    assert not resetting.done()
    policy.gate.release()
    assert running.result(5) == 1
    assert resetting.result(5) is None


# Batches


@pytest.mark.parametrize("max_batch", [1, 4, 16])
def test_sixteen_threads_get_their_own_answers(pool: ThreadPoolExecutor, max_batch: int) -> None:
    policy = EchoPolicy()
    served = Served(policy, max_batch=max_batch, max_wait_s=0.001)

    def work(number: int) -> int:
        client = served.client()
        for turn in range(60):
            rows = 1 + (number + turn) % 3
            batch = observe(rows=rows)
            batch["state"][:, 0] = values = [1000 * number + turn + row / 4 for row in range(rows)]
            chunk = client.infer(batch, [str(row) for row in range(rows)])
            assert list(chunk[:, 0, 0]) == values
            assert list(chunk[:, -1, 0]) == [value + 3 for value in values]
            assert chunk.flags.owndata
            assert chunk.flags.writeable
        client.close()
        return client.count

    assert list(pool.map(work, range(16))) == [60] * 16
    assert policy.overlaps == 0
    assert sum(policy.sizes) == sum(1 + (n + t) % 3 for n in range(16) for t in range(60))
    assert max(policy.sizes) <= max(max_batch, 3)
    assert max_batch == 1 or max(policy.sizes) > 3
    assert served.service.requests_by_dialect()[0] == {"renv": 960}
    assert sum(served.service.latencies().counts) == 960
    assert served.service.batches().total == sum(policy.sizes)


def together(policy: GatedPolicy, served: Served, values: list[float], pool: ThreadPoolExecutor) -> list[Future[float]]:
    """Requests of clients of their own that come while another is running, and so wait together."""
    first = pool.submit(ask, served.client(), 0)
    assert policy.entered.acquire(timeout=5)
    waiting = []
    for count, value in enumerate(values, 1):
        waiting.append(pool.submit(ask, served.client(), value))
        wait_until(lambda count=count: served.worker.waiting == count, "it waits")  # type: ignore[misc]
    for _ in range(2 + 2 * len(values)):  # as often as it may be called
        policy.gate.release()
    assert first.result(5) == 0
    return waiting


def test_what_waits_runs_together(pool: ThreadPoolExecutor) -> None:
    policy = GatedPolicy()
    served = Served(policy, max_batch=3)
    waiting = together(policy, served, [1, 2, 3, 4, 5], pool)
    assert [future.result(5) for future in waiting] == [1, 2, 3, 4, 5]
    assert policy.sizes == [1, 3, 2]


def test_without_max_batch_each_runs_alone(pool: ThreadPoolExecutor) -> None:
    policy = GatedPolicy()
    waiting = together(policy, Served(policy), [1, 2, 3], pool)
    assert [future.result(5) for future in waiting] == [1, 2, 3]
    assert policy.sizes == [1, 1, 1, 1]


def test_a_batch_waits_for_the_other_clients(pool: ThreadPoolExecutor) -> None:
    policy = EchoPolicy()
    served = Served(policy, max_batch=8, max_wait_s=20.0)
    clients = [served.client() for _ in range(3)]
    answers = list(pool.map(ask, clients, [1, 2, 3]))
    assert answers == [1, 2, 3]
    assert policy.sizes == [3]  # not in 20 s: all that there are had come


def test_one_episode_is_in_a_batch_once(pool: ThreadPoolExecutor) -> None:
    policy = GatedPolicy(has_memory=True)
    served = Served(policy, max_batch=8)
    client, other = served.client(), served.client()
    running = pool.submit(ask, client, 0)
    assert policy.entered.acquire(timeout=5)
    waiting = []
    for count, (who, episode) in enumerate([(client, "a"), (other, "a"), (client, "b"), (client, "a")], 1):
        waiting.append(pool.submit(ask, who, count, episodes=[episode]))
        wait_until(lambda count=count: served.worker.waiting == count, "it waits")  # type: ignore[misc]
    for _ in range(3):
        policy.gate.release()
    assert [future.result(5) for future in (running, *waiting)] == [0, 1, 2, 3, 4]
    assert policy.sizes == [1, 3, 1]


def test_a_client_alone_waits_for_nobody() -> None:
    served = Served(EchoPolicy(), max_batch=8, max_wait_s=60.0)
    assert ask(served.client(), 1) == 1


# Failures


def test_an_exception_reaches_the_client_with_its_traceback() -> None:
    served = Served(FailingPolicy())
    client = served.client()
    for _ in range(2):
        with pytest.raises(PolicyError, match="ValueError: the model chokes on a negative number") as caught:
            ask(client, -1)
        assert 'raise ValueError("the model chokes' in caught.value.remote_traceback
    assert ask(client, 1) == 1
    assert sum("Traceback" in line for line in served.lines) == 1  # the same one is not repeated
    assert sum(line.startswith("the policy failed: ValueError") for line in served.lines) == 2
    assert (client.count, client.errors) == (1, 2)


def test_a_model_that_leaves_and_actions_that_are_none() -> None:
    client = Served(FailingPolicy()).client()
    with pytest.raises(PolicyError, match="SystemExit: the model wants to leave"):
        ask(client, -2)
    with pytest.raises(PolicyError, match="not finite"):
        ask(client, -3)
    assert ask(client, 1) == 1


def test_an_interrupt_while_waiting_leaves_the_queue_in_order(pool: ThreadPoolExecutor) -> None:
    policy, served, client, submit, running = busy(pool)

    def interrupt() -> None:
        wait_until(lambda: served.worker.waiting == 1, "the main thread waits")
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = pool.submit(interrupt)
    with pytest.raises(KeyboardInterrupt):
        ask(served.client(), 1)
    interrupting.result(5)
    assert served.worker.waiting == 0
    waiting = submit(2)
    policy.gate.release()
    policy.gate.release()
    assert [running.result(5), waiting.result(5)] == [0, 2]
    assert client.count == 2


class Unprintable(Exception):
    def __str__(self) -> str:
        raise TypeError("no text")


def test_an_exception_without_text() -> None:
    policy = EchoPolicy()

    def fail(*_: Any, **__: Any) -> Any:
        raise Unprintable

    policy.infer = fail  # type: ignore[method-assign]
    with pytest.raises(PolicyError, match=r"raised Unprintable: \(its text cannot be had: TypeError\)"):
        ask(Served(policy).client(), 0)


def test_out_of_memory_comes_with_advice() -> None:
    policy = EchoPolicy()

    def exhaust(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    policy.infer = exhaust  # type: ignore[method-assign]
    with pytest.raises(PolicyError, match=r"Tried to allocate 2\.00 GiB; free memory \(nvidia-smi"):
        ask(Served(policy).client(), 0)


class SharedArrayPolicy(EchoPolicy):
    """Gives one and the same array each time, against the rules."""

    def __init__(self) -> None:
        super().__init__()
        self._chunk = np.zeros((1, 4, 14), np.float32)

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        self._chunk[:] = super().infer(observation, episode_ids=episode_ids)
        return self._chunk


def test_a_policy_that_gives_one_array_again_and_again_mixes_up_no_clients() -> None:
    served = Served(SharedArrayPolicy())
    first = served.client().infer(observe(1))
    served.client().infer(observe(2))
    assert first[0, 0, 0] == 1


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), GeneratorExit(), KeyboardInterrupt(), BaseException("odd")]
)
def test_whatever_a_model_raises_in_a_connection_s_thread_is_its_error(
    error: BaseException, pool: ThreadPoolExecutor
) -> None:
    policy = EchoPolicy()
    served = Served(policy)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    original, policy.infer = policy.infer, fail  # type: ignore[method-assign]
    with pytest.raises(PolicyError, match=type(error).__name__):
        pool.submit(ask, served.client(), 0).result(5)
    policy.infer = original  # type: ignore[method-assign]
    assert ask(served.client(), 4) == 4


def test_a_model_s_endless_text_is_cut() -> None:
    policy = EchoPolicy()
    served = Served(policy)

    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("x" * 10_000_000)

    policy.infer = fail  # type: ignore[method-assign]
    with pytest.raises(PolicyError, match=r"ValueError: x+ \[…\] x+$") as caught:
        ask(served.client(), 0)
    assert len(str(caught.value)) < 5_000
    assert len(caught.value.remote_traceback) < 21_000
    assert sum(map(len, served.lines)) < 30_000


def test_more_actions_than_the_metadata_say() -> None:
    policy = EchoPolicy()
    served = Served(policy)
    policy.infer = lambda *_, **__: np.zeros((1, 5, 14))  # type: ignore[method-assign]
    with pytest.raises(PolicyError, match="gave 5 actions at once; its metadata says chunk_size=4"):
        ask(served.client(), 0)


def test_actions_of_a_wrong_shape() -> None:
    policy = EchoPolicy()
    policy.infer = lambda observation, episode_ids: np.zeros((1, 14), np.float32)  # type: ignore[method-assign,assignment]
    with pytest.raises(PolicyError, match=r"shape \(1, 14\), not \(1, K, 14\)"):
        ask(Served(policy).client(), 0)


class GatedFailing(GatedPolicy, FailingPolicy):
    """Waits for the test, then fails as it is told."""


def test_one_client_s_poison_does_not_hurt_the_others(pool: ThreadPoolExecutor) -> None:
    policy = GatedFailing()
    served = Served(policy, max_batch=8)
    waiting = together(policy, served, [1, -1, 3], pool)
    assert [waiting[0].result(5), waiting[2].result(5)] == [1, 3]
    with pytest.raises(PolicyError, match="chokes"):
        waiting[1].result(5)
    assert policy.sizes == [1, 3, 1, 1, 1]


def test_with_memory_a_failed_batch_fails_once_for_each(pool: ThreadPoolExecutor) -> None:
    policy = GatedFailing(has_memory=True)
    served = Served(policy, max_batch=8)
    waiting = together(policy, served, [1, -1, 3], pool)
    errors = [future.exception(5) for future in waiting]
    assert all(isinstance(error, PolicyError) and error.remote_traceback for error in errors)
    assert len({id(error) for error in errors}) == 3
    assert policy.sizes == [1, 3]  # nobody's observation was seen twice


def test_an_interrupt_ends_the_caller_alone(pool: ThreadPoolExecutor) -> None:
    policy = GatedPolicy()
    served = Served(policy, max_batch=8)

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    original, policy.infer = policy.infer, interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        ask(served.client(), 0)
    policy.infer = original  # type: ignore[method-assign]
    policy.gate.release()
    assert ask(served.client(), 4) == 4


# Bounds


def busy(
    pool: ThreadPoolExecutor, **options: Any
) -> tuple[GatedPolicy, Served, ServedClient, Callable[[float], Future[float]], Future[float]]:
    """A service whose policy is busy with one request of a client that asks for more."""
    policy = GatedPolicy()
    served = Served(policy, **options)
    client = served.client()

    def submit(value: float) -> Future[float]:
        return pool.submit(ask, client, value)

    running = submit(0)
    assert policy.entered.acquire(timeout=5)
    return policy, served, client, submit, running


def test_latest_drops_the_client_s_own_older_request(pool: ThreadPoolExecutor) -> None:
    policy, served, _, submit, running = busy(pool, max_queue=1)
    older = submit(1)
    wait_until(lambda: served.worker.waiting == 1, "it waits")
    newer = submit(2)
    with pytest.raises(PolicyError, match="a newer request of the same client took this one's place"):
        older.result(5)
    with pytest.raises(PolicyError, match="the server is busy: 1 requests wait already"):
        ask(served.client(), 3)  # another client's place is not taken
    policy.gate.release()
    policy.gate.release()
    assert [running.result(5), newer.result(5)] == [0, 2]


def test_a_client_that_goes_is_forgotten_by_a_full_server(pool: ThreadPoolExecutor) -> None:
    policy = GatedPolicy(has_memory=True)
    resets: list[Any] = []
    policy.reset = resets.append  # type: ignore[method-assign,assignment]
    served = Served(policy, max_queue=1)
    client, other = served.client(), served.client()
    policy.gate.release()
    assert ask(client, 9, episodes=["x"]) == 9
    assert policy.entered.acquire(timeout=5)
    running = pool.submit(ask, other, 0)
    assert policy.entered.acquire(timeout=5)
    waiting = pool.submit(ask, other, 1)
    wait_until(lambda: served.worker.waiting == 1, "it waits")
    closing = pool.submit(client.close)
    wait_until(lambda: served.worker.waiting == 2, "its reset waits, too")
    policy.gate.release()
    policy.gate.release()
    closing.result(5)
    assert [running.result(5), waiting.result(5)] == [0, 1]
    assert resets == [["1/x"]]


def test_refuse_refuses_the_new(pool: ThreadPoolExecutor) -> None:
    policy, served, client, submit, running = busy(pool, max_queue=1, queue_policy="refuse")
    older = submit(1)
    wait_until(lambda: served.worker.waiting == 1, "it waits")
    with pytest.raises(PolicyError, match=r"the server is busy.*--max_queue 1"):
        ask(client, 2)
    policy.gate.release()
    policy.gate.release()
    assert [running.result(5), older.result(5)] == [0, 1]


def test_a_turn_that_never_comes(pool: ThreadPoolExecutor) -> None:
    policy, served, client, _, running = busy(pool, wait_timeout_s=0.05)
    with pytest.raises(PolicyError, match=r"busy with other requests for 0\.05 s"):
        ask(client, 1)
    assert served.worker.waiting == 0
    policy.gate.release()
    assert running.result(5) == 0


def test_close_answers_what_waits_and_refuses_what_comes(pool: ThreadPoolExecutor) -> None:
    policy, served, client, submit, running = busy(pool)
    waiting = submit(1)
    wait_until(lambda: served.worker.waiting == 1, "it waits")
    assert served.service.close(timeout_s=0.05) is False
    with pytest.raises(PolicyError, match="stopping"):
        waiting.result(5)
    with pytest.raises(PolicyError, match="stopping"):
        ask(client, 2)
    policy.gate.release()
    assert running.result(5) == 0
    assert policy.closed == 0
    assert served.service.close(timeout_s=5) is True
    assert policy.closed == 1
    client.close()
    assert served.lines[-1] == "Client #1 closed: 1 requests in total"


def test_a_policy_that_fails_to_close_does_not_keep_the_server(pool: ThreadPoolExecutor) -> None:
    policy, release = EchoPolicy(), threading.Event()

    def fail() -> None:
        raise OSError("the device is gone")

    policy.close = fail  # type: ignore[method-assign]
    served = Served(policy)
    assert served.service.close(5)
    assert any("the policy failed: OSError: the device is gone" in line for line in served.lines)
    policy.close = lambda: release.wait(20)  # type: ignore[method-assign,assignment,return-value]
    try:
        assert not Served(policy).service.close(0.1)
    finally:
        release.set()


def test_warm_up_is_no_request_and_its_failure_no_end() -> None:
    policy = CountingPolicy()
    served = Served(policy)
    served.service.warm_up()
    assert policy.counts == {}
    assert served.service.latencies().total == 0
    assert "warmed up with zeros in " in served.lines[0]
    failing = EchoPolicy()
    failing.infer = lambda observation, episode_ids: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    served = Served(failing)
    served.service.warm_up()
    assert len(served.lines) == 1
    assert "not warmed up, the policy failed on zeros: the policy raised ZeroDivisionError" in served.lines[0]


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="unknown queue policy 'newest'; there are latest and refuse"):
        Served(NullPolicy(), queue_policy="newest")
    with pytest.raises(ConfigError, match="max_batch"):
        Served(NullPolicy(), max_batch=0)


def test_no_thread_is_made() -> None:
    before = threading.active_count()
    served = Served(EchoPolicy(), max_batch=4, max_wait_s=0.001)
    ask(served.client(), 1)
    assert threading.active_count() == before
