"""What a RemoteEnv tells of its link: measured on a real one, throttled and delayed."""

from __future__ import annotations

import threading

import pytest
from server_process import ServerProcess, serving

from remote_env import RemoteEnv
from remote_env.session.link_estimate import KEPT, LARGE_BYTES, LinkEstimate
from remote_env.testing import FaultProxy

IMAGES = "remote_env.testing.counting:CountingEnv"
RATE = 20e6  # bytes per second
DELAY_S = 0.01


def over(proxy: FaultProxy, server: ServerProcess) -> RemoteEnv:
    return RemoteEnv(f"tcp://127.0.0.1:{proxy.address[1]}", token=server.token, resume="never")


def test_it_starts_the_server_and_knows_the_round_trip_before_the_first_step() -> None:
    with RemoteEnv(env="CartPole-v1") as env:
        info = env.transport_info()
        assert (info["way"], info["bytes_per_s"]) == ("local", None)
        assert 0 < info["round_trip_s"] < 1
        assert info["window"] >= 1
        env.reset(seed=0)
        env.step(0)
        assert env.transport_info()["bytes_per_s"] is None  # too few to tell
        told: list[float] = []
        thread = threading.Thread(target=lambda: told.append(env.transport_info()["round_trip_s"]))
        thread.start()  # any thread may ask while another steps
        for _ in range(5):
            env.step(0)
        thread.join(10)
        assert told
        assert told[0] > 0


@pytest.mark.fault
def test_a_link_that_is_slow_and_far_is_told_as_such_and_a_cut_one_as_cut() -> None:
    with (
        serving(IMAGES, {"image": True}) as server,
        FaultProxy(("127.0.0.1", server.port), seed=1) as proxy,
        over(proxy, server) as env,
    ):
        proxy.throttle(RATE)
        env.reset(seed=0)
        for _ in range(2):
            env.step([0.0, 0.0])
        proxy.delay(DELAY_S)
        info = env.transport_info()
        assert info["way"] == "tcp"
        assert 0 < info["bytes_per_s"] < 2 * RATE
        assert info["round_trip_s"] >= DELAY_S
        proxy.cut()
        assert env.transport_info()["round_trip_s"] == info["round_trip_s"]  # as it was


def test_round_trip_and_rate_come_of_the_last_samples_alone() -> None:
    estimate = LinkEstimate()
    assert (estimate.round_trip_s, estimate.bytes_per_s) == (None, None)
    estimate.note_round_trip(0.001)
    for _ in range(KEPT):
        estimate.note_round_trip(0.02)
    assert estimate.round_trip_s == 0.02
    estimate.note_payload(LARGE_BYTES - 1, 1e-9)
    assert estimate.bytes_per_s is None
    estimate.note_payload(LARGE_BYTES, 0.5)
    assert estimate.bytes_per_s == LARGE_BYTES / 0.5


def test_of_a_whole_reply_the_round_trip_is_taken_off() -> None:
    estimate = LinkEstimate()
    estimate.note_round_trip(0.02)
    estimate.note_reply(1_000_000, 0.02)  # nothing is left to tell
    estimate.note_reply(LARGE_BYTES - 1, 0.5)
    assert estimate.bytes_per_s is None
    estimate.note_reply(1_000_000, 0.12)
    assert estimate.bytes_per_s == pytest.approx(1e7)
