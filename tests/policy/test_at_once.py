"""The short way of a request that is alone: it does what the long way does, and leaves to it whatever is not plain."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from leak_check import wait_until
from policies_for_tests import CountingPolicy, EchoPolicy, FailingPolicy, GatedPolicy, describe, observe
from renv_serving import TOKEN, RenvServer, serving

from remote_env.errors import InputError, PolicyError
from remote_env.policy.dialects import renv_places
from remote_env.policy.dialects.renv_link import open_link
from remote_env.policy.policy import ObservationBatch, Policy
from remote_env.policy.server.runner import Room
from remote_env.policy.server.service import PolicyService, ServedClient
from remote_env.protocol import codec, frames

ROOM = (1, 4, 14)


class Giving(Policy):
    """Gives what it was made with, the same object each time."""

    def __init__(self, given: Any) -> None:
        self.metadata, self.given = describe("giving"), given

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Any:
        del observation, episode_ids
        return self.given


def client_of(policy: Policy, **options: Any) -> ServedClient:
    return PolicyService([policy], log=lambda line: None, **options).open_client("here", "renv")


def ask(client: ServedClient, value: float = 0.0, episode: str = "") -> Any:
    """The actions, and whether they lie where they were to."""
    room = Room.of(np.empty(ROOM, np.float32))
    answer = client.infer_at_once(observe(value), (episode,), room, time.monotonic())
    if answer is None:
        return None
    assert answer[1] >= 0
    return answer[0], answer[0] is room.actions


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def test_it_gives_and_counts_what_the_long_way_does() -> None:
    policies = EchoPolicy(), EchoPolicy()
    short, long = client_of(policies[0]), client_of(policies[1])
    for value in range(12):
        actions, in_place = ask(short, value)
        assert in_place
        np.testing.assert_array_equal(actions, long.infer(observe(value)))
    assert policies[0].sizes == policies[1].sizes
    for client in (short, long):
        assert (client.count, client.errors) == (12, 0)
        assert (client.service.batches().counts, client.service.batches().total) == ([12, *8 * [0]], 12)
        assert sum(client.service.latencies().counts) == 12


def test_episodes_are_each_client_s_own_and_remembered() -> None:
    policy = CountingPolicy()
    one = client_of(policy)
    two = one.service.open_client("there", "renv")
    assert [ask(client)[0][0, 0, 0] for client in (one, one, two)] == [1, 2, 1]
    one.reset()
    assert [ask(client)[0][0, 0, 0] for client in (one, two)] == [1, 2]
    one.close()
    two.close()
    assert policy.counts == {}


@pytest.mark.parametrize(
    ("given", "in_place"),
    [
        (np.ones(ROOM, np.float32), True),
        (np.asfortranarray(np.ones(ROOM, np.float32)), True),
        (np.full(ROOM, 3e38, np.float32), True),  # its squares are not finite, and it is
        (np.ones(ROOM), False),
        (np.ones(ROOM).tolist(), False),
        (np.ones((1, 3, 14), np.float32), False),
    ],
    ids=["plain", "Fortran order", "large", "float64", "lists", "fewer"],
)
def test_actions_of_any_kind(given: Any, in_place: bool) -> None:
    actions, was_in_place = ask(client_of(Giving(given)))
    assert was_in_place == in_place
    assert actions is not given
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(actions, np.asarray(given, np.float32))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.full(ROOM, np.nan, np.float32), "not finite"),
        (np.full(ROOM, -np.inf, np.float32), "not finite"),
        (np.ones((1, 5, 14), np.float32), "gave 5 actions at once"),
        (np.ones((2, 4, 14), np.float32), "of shape"),
        (None, "the policy"),
    ],
    ids=["nan", "inf", "more", "rows", "None"],
)
def test_actions_that_are_none(given: Any, message: str) -> None:
    client = client_of(Giving(given))
    with pytest.raises(PolicyError, match=message):
        ask(client)
    assert (client.count, client.errors) == (0, 1)
    assert sum(client.service.latencies().counts) == client.service.batches().total == 1
    with pytest.raises(PolicyError, match=message):  # the turn was given back
        ask(client)


def test_what_a_policy_raises_has_its_traceback() -> None:
    client = client_of(FailingPolicy())
    with pytest.raises(PolicyError) as short:
        ask(client, -1)
    with pytest.raises(PolicyError) as long:
        client.infer(observe(-1))
    assert str(short.value) == str(long.value)
    assert "policies_for_tests" in short.value.remote_traceback
    assert ask(client, 1) is not None


def test_it_steps_back_where_it_is_not_alone(pool: ThreadPoolExecutor) -> None:
    policy = GatedPolicy()
    client = client_of(policy)
    running = pool.submit(client.infer, observe(1))
    assert policy.entered.acquire(timeout=10)
    assert ask(client) is None
    waiting = pool.submit(client.infer, observe(2))
    wait_until(lambda: client.worker.waiting == 1, "the second waits")
    policy.gate.release(3)
    assert [running.result(10)[0, 0, 0], waiting.result(10)[0, 0, 0]] == [1, 2]
    assert ask(client, 3)[0][0, 0, 0] == 3
    assert ask(client_of(EchoPolicy(), max_batch=2)) is None


def test_who_waits_is_woken_by_it(pool: ThreadPoolExecutor) -> None:
    policy = GatedPolicy()
    client = client_of(policy)
    running = pool.submit(ask, client, 1)
    assert policy.entered.acquire(timeout=10)
    waiting = pool.submit(client.infer, observe(2))
    wait_until(lambda: client.worker.waiting == 1, "the second waits")
    policy.gate.release(3)
    assert running.result(10)[0][0, 0, 0] == 1
    assert waiting.result(10)[0, 0, 0] == 2


def test_nothing_runs_once_the_policy_is_closed() -> None:
    policy = EchoPolicy()
    client = client_of(policy)
    assert client.service.close()
    assert ask(client) is None
    with pytest.raises(PolicyError, match="stopping"):
        client.infer(observe())
    assert policy.sizes == []


# Over the wire


def test_requests_that_change_their_kind_all_the_time() -> None:
    policy = EchoPolicy()
    with serving(policy) as server, server.connect() as client:
        for turn in range(4):
            for value in range(2):
                assert client.infer(observe(value), episode_ids=["a"])[0, 0, 0] == value
            with pytest.raises(InputError, match="finite"):
                client.infer(observe(np.nan), episode_ids=["a"])
            with pytest.raises(InputError, match="finite"):
                client.infer(observe(np.inf), episode_ids=["a"])
            assert client.infer(observe(3e38), episode_ids=["a"])[0, 0, 0] == np.float32(3e38)
            assert client.infer(observe(7, rows=2), episode_ids=["a", "b"]).shape == (2, 4, 14)
            assert client.info()["requests"] == 4 * (turn + 1)
    assert len(policy.sizes) == 16


def test_one_row_that_names_two_episodes_is_refused_each_time(
    server: RenvServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renv_places, "KEEP_S", 0.0)
    tail, _ = codec.encode({"episodes": ["a", "b"]}, where="test")
    body = (1).to_bytes(4, "little") + bytes(14 * 4) + tail
    link = open_link("127.0.0.1", server.port, TOKEN, secrets.token_hex(16), time.monotonic() + 10)
    for number in range(1, 5):
        frame = frames.pack_frame(frames.INFER, body, flags=frames.FIXED | frames.TAIL, sequence=number)
        link.stream.send(frame, time.monotonic() + 10)
        assert link.stream.recv(time.monotonic() + 10).type == frames.ERROR
        assert b"1 rows came with 2 episode names" in link.stream.body_bytes()
    link.transport.close()


@pytest.fixture
def server() -> Iterator[RenvServer]:
    with serving(EchoPolicy()) as server:
        yield server
