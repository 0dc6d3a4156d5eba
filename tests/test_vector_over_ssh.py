"""A batch over a real SSH login, served by an interpreter that is not the client's."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from exact_values import assert_same
from ssh_client import free_port, nothing_is_left, ssh_arguments
from ssh_server import SshServer

from remote_env import RemoteVectorEnv

__all__ = ["nothing_is_left"]


def test_a_batch_is_bit_equal_through_another_interpreter(ssh_server: SshServer) -> None:
    local = gymnasium.make_vec(
        "CartPole-v1", 5, vectorization_mode="sync", vector_kwargs={"autoreset_mode": "SameStep"}
    )
    arguments = ssh_arguments(ssh_server)
    with RemoteVectorEnv(
        ssh_server.target, env="CartPole-v1", num_envs=5, autoreset_mode="SameStep", **arguments
    ) as env:
        assert_same(env.reset(seed=3), local.reset(seed=3))
        ended = 0
        for actions in np.random.default_rng(0).integers(0, 2, (60, 5)):
            result = env.step(actions)
            assert_same(result, local.step(actions))
            ended += int(result[2].sum())
    assert ended > 5
    local.close()


def test_hosts_of_every_kind_together(ssh_server: SshServer) -> None:
    local = gymnasium.make_vec("CartPole-v1", 4, vectorization_mode="sync")
    port = free_port()
    with RemoteVectorEnv(port=port, env="CartPole-v1", num_envs=1, max_sessions=2) as served:
        token = served._life.server.token  # type: ignore[union-attr]
        hosts: list[Any] = [
            None,
            {"host": f"tcp://127.0.0.1:{port}", "token": token},
            {"host": ssh_server.target, **ssh_arguments(ssh_server)},
        ]
        env: Any = RemoteVectorEnv(hosts, env="CartPole-v1", num_envs=4)  # type: ignore[arg-type]
        with env:
            assert [server.num_envs for server in env.servers] == [2, 1, 1]
            assert str(env) == f"<SpreadVectorEnv CartPole-v1 on local, tcp://127.0.0.1:{port}, {ssh_server.target}>"
            assert_same(env.reset(seed=3), local.reset(seed=3))
            for actions in np.random.default_rng(0).integers(0, 2, (40, 4)):
                env.step_async(actions)
                assert_same(env.step_wait(), local.step(actions))
    local.close()
