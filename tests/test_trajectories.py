"""Whole walks over links that are cut, fall silent or lose their login: every call once, every value as it was."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from leak_check import isolated_home, no_leaks
from server_process import ServerProcess, serving
from ssh_client import over_ssh
from ssh_server import SshServer
from trajectories import (
    TASK,
    WINDOW,
    Events,
    Walk,
    here,
    now_and_then,
    random_cuts,
    resident_bytes,
    silent_until_noticed,
    walk,
    walk_ahead,
    walk_batch,
    walk_mixed,
)

from remote_env import RemoteEnv, RemoteVectorEnv
from remote_env.protocol.task import TaskSpec
from remote_env.testing import FaultProxy

__all__ = ["isolated_home", "no_leaks"]
pytestmark = pytest.mark.fault

GROWTH_BYTES = 12 << 20  # of the allocator; forty images are three times as much


@contextmanager
def proxied(num_envs: int | None = None, **kwargs: Any) -> Iterator[tuple[ServerProcess, FaultProxy]]:
    task = TaskSpec(TASK, kwargs, num_envs=num_envs)
    with (
        serving(task=task.to_plain(), digest=task.digest) as server,
        FaultProxy(("127.0.0.1", server.port), seed=1) as proxy,
    ):
        yield server, proxy


@contextmanager
def remote(server: ServerProcess, proxy: FaultProxy, events: Events, **arguments: Any) -> Iterator[Any]:
    kind = arguments.pop("kind", RemoteEnv)
    with kind(f"tcp://127.0.0.1:{proxy.address[1]}", token=server.token, on_link=events, **arguments) as env:
        yield env
        proxy.cut_every(None)


@pytest.mark.parametrize(
    ("take", "steps", "mean_steps", "kwargs", "num_envs"),
    [
        pytest.param(walk, 1500, 40, {"episode_length": 37}, None, id="step by step"),
        pytest.param(walk_ahead, 2000, 150, {"episode_length": 137}, None, id="a window ahead"),
        pytest.param(walk_mixed, 500, 25, {"episode_length": 37, "render_mode": "rgb_array"}, None, id="mixed calls"),
        pytest.param(walk_batch, 400, 25, {"episode_length": 37}, 3, id="a batch"),
    ],
)
def test_a_link_that_is_cut_again_and_again(
    take: Walk, steps: int, mean_steps: float, kwargs: dict[str, Any], num_envs: int | None
) -> None:
    events, kind = Events(), RemoteEnv if num_envs is None else RemoteVectorEnv
    with proxied(num_envs, **kwargs) as (server, proxy), remote(server, proxy, events, kind=kind) as env:
        seen = take(env, steps, random_cuts(proxy, mean_steps, WINDOW if take is walk_ahead else 0))
    assert len(events.resumed_s) >= 3
    assert (seen.doubled, seen.lost) == (0, 0)
    assert seen.is_like(here(walk if take is walk_ahead else take, steps, num_envs, **kwargs))


def test_a_link_that_falls_silent_and_tells_nobody() -> None:
    events, steps = Events(), 100
    with (
        proxied(step_s=0.003) as (server, proxy),
        remote(server, proxy, events, heartbeat_s=0.1, heartbeat_timeout_s=0.5) as env,
        now_and_then(lambda: silent_until_noticed(proxy, events), 150) as tell,
    ):
        seen = walk(env, steps, tell)
    assert any("no heartbeat" in event.why for event in events.all)
    assert (seen.doubled, seen.lost) == (0, 0)
    assert seen.is_like(here(walk, steps))


def test_logins_that_are_killed(ssh_server: SshServer) -> None:
    events, steps = Events(), 200
    with (
        over_ssh(ssh_server, env=TASK, on_link=events) as env,
        now_and_then(lambda: ssh_server.signal_connections(signal.SIGKILL), 50) as tell,
    ):
        seen = walk(env, steps, tell)
    assert len(events.resumed_s) >= 2
    assert (seen.doubled, seen.lost) == (0, 0)
    assert seen.is_like(here(walk, steps))


@pytest.mark.parametrize("take", [walk, walk_ahead])
def test_images_that_are_cut_in_the_middle_pile_up_at_neither_end(take: Walk) -> None:
    events, resident, steps = Events(), [], 80
    with proxied(image=True) as (server, proxy), remote(server, proxy, events) as env:
        cut = random_cuts(proxy, 10, WINDOW if take is walk_ahead else 0)

        def tell(steps: int) -> None:
            cut(steps)
            if steps in (40, 80):
                resident.append((resident_bytes(), resident_bytes(env.status()["pid"])))

        seen = take(env, steps, tell)
    assert len(events.resumed_s) >= 2
    assert (seen.doubled, seen.lost) == (0, 0)
    assert seen.is_like(here(walk, steps, image=True))
    assert resident[1][0] - resident[0][0] < GROWTH_BYTES
    assert resident[1][1] - resident[0][1] < GROWTH_BYTES
