"""info["timing"]: where the time of a step went, on real servers, and what of it feeds the estimate of the link."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from server_process import serving

from remote_env import RemoteEnv, RemoteVectorEnv
from remote_env.replay import Replayer
from remote_env.tasks.aloha_model import aloha_model_path
from remote_env.testing import FaultProxy

PARTS = {"encode_s", "network_s", "queue_s", "simulate_s", "render_s", "decode_s"}
COUNTING = "remote_env.testing.counting:CountingEnv"
STEP_S = 0.02
ACTION = np.zeros(2)


def check_parts(info: dict[str, Any]) -> dict[str, float]:
    """Its times, each there and none below nothing."""
    times: dict[str, float] = info["timing"]
    assert set(times) == PARTS
    assert all(isinstance(each, float) and each >= 0 for each in times.values())
    return times


def test_a_step_says_where_its_time_went() -> None:
    with RemoteEnv(env=COUNTING, env_kwargs={"step_s": STEP_S}, timing=True) as env:
        _, info = env.reset(seed=0)
        check_parts(info)
        began = time.perf_counter()
        info = env.step(ACTION)[4]
        took_s = time.perf_counter() - began
        times = check_parts(info)
        assert times["simulate_s"] >= STEP_S
        assert sum(times.values()) <= took_s
        chunk = env.step_many([ACTION] * 3)
        assert check_parts(chunk.infos[-1])["simulate_s"] >= 3 * STEP_S
        assert "timing" not in chunk.infos[0]
        for _ in range(3):
            env.step_async(ACTION)
        waited = [check_parts(env.step_wait()[4]) for _ in range(3)]
        assert waited[2]["network_s"] + waited[2]["queue_s"] >= STEP_S  # it stood behind the others


def test_a_batch_says_it_too() -> None:
    with RemoteVectorEnv(env="CartPole-v1", num_envs=2, timing=True) as env:
        check_parts(env.reset(seed=0)[1])
        check_parts(env.step(np.array([0, 1]))[4])


@pytest.mark.fault
def test_a_far_link_is_in_the_network_s_part_also_with_coded_images() -> None:
    delay_s, rate = 0.02, 10e6
    with (
        serving(COUNTING, {"image": True}) as server,
        FaultProxy(("127.0.0.1", server.port), seed=1) as proxy,
        RemoteEnv(f"tcp://127.0.0.1:{proxy.address[1]}", token=server.token, timing=True, image_every=2) as env,
    ):
        proxy.delay(delay_s)
        proxy.throttle(rate)
        env.reset(seed=0)
        for _ in range(4):
            times = check_parts(env.step(ACTION)[4])
            assert times["network_s"] >= delay_s
        assert 0 < env.transport_info()["bytes_per_s"] < 2 * rate


def test_what_is_drawn_here_counts_as_rendered() -> None:
    task = {"obs_type": "pixels_agent_pos", "cameras": ("top",), "width": 32, "height": 24, "quality": "fast"}
    with Replayer(aloha_model_path("transfer_cube"), width=8, height=8) as replayer:
        replayer.render()  # what the first context of a process leaves open for good is no leak
    aloha = "remote_env/AlohaTransferCube-v0"
    with RemoteEnv(env=aloha, env_kwargs=task, local_pixels=True, timing=True) as env:
        env.reset(seed=0)
        assert check_parts(env.step(np.zeros(14, np.float32))[4])["render_s"] > 0
        assert check_parts(env.step_many(np.zeros((2, 14), np.float32)).infos[-1])["render_s"] > 0
