"""When a RemoteEnv starts, what each of its explicit steps does, and how it ends."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
import pytest

import remote_env
from remote_env import RemoteEnv
from remote_env.env import ending
from remote_env.errors import ConfigError, Unsupported


def test_nothing_starts_before_first_use() -> None:
    env = RemoteEnv(env="CartPole-v1")
    assert env.spec.id == "Remote-v0"
    assert repr(env) == "<RemoteEnv CartPole-v1 on local>"
    assert env.render_mode is None
    assert env.resume() is None
    assert env.logs() == ""
    assert env._life.server is None
    env.close()


def test_explicit_steps_are_idempotent() -> None:
    env = RemoteEnv() if "REMOTE_ENV_TASK" in os.environ else RemoteEnv(env="CartPole-v1")
    for _ in range(2):
        assert env.start_remote_server() is env
    server = env._life.server
    for _ in range(2):
        assert env.setup_tunnel() is env._life.place
    for _ in range(2):
        assert env.connect() is env
    assert env.start() is env
    assert env._life.server is server
    env.reset(seed=0)
    env.close()
    env.close()


def test_start_remote_server_takes_the_old_words(tmp_path: Any) -> None:
    script = tmp_path / "my_task.py"
    script.write_text("import gymnasium\ndef make_env(**kwargs):\n    return gymnasium.make('CartPole-v1', **kwargs)\n")
    with RemoteEnv(env="nothing").start_remote_server(server_script=str(script)) as env:
        assert env.remote_spec["id"] == "CartPole-v1"
    with RemoteEnv(env="nothing").start_remote_server(task_name="CartPole-v1", simulator="gymnasium") as env:
        assert env.remote_spec["id"] == "CartPole-v1"
    with pytest.raises(Unsupported, match="num_envs=4"):
        RemoteEnv(env="CartPole-v1").start_remote_server(num_envs=4)


def test_time_between_the_explicit_steps_does_not_count() -> None:
    env = RemoteEnv(env="CartPole-v1", start_timeout_s=30.0)
    env.start_remote_server()
    assert env._life.progress is None  # whose deadline ended with the first step
    env.connect()
    env.close()


def test_use_after_close_is_refused() -> None:
    env = RemoteEnv(env="CartPole-v1")
    env.reset()
    env.close()
    for use in (env.reset, lambda: env.step(0), env.render, env.start, env.connect, env.restart, env.setup_tunnel):
        with pytest.raises(ConfigError, match="closed"):
            use()
    assert env.resume() is None


def test_a_forgotten_environment_warns_and_cleans_up() -> None:
    env = RemoteEnv(env="CartPole-v1")
    env.reset()
    with pytest.warns(ResourceWarning, match="not closed"):
        del env


def test_at_exit_each_is_ended_whatever_becomes_of_the_others() -> None:
    class Kept:
        def __init__(self, error: Exception | None) -> None:
            self.error, self.ended = error, False

        def close(self) -> None:
            self.ended = True
            if self.error is not None:
                raise self.error

    ones = [Kept(ConfigError("stays")), Kept(None), Kept(ConfigError("stays too"))]
    for one in ones:
        ending.end_at_exit(one)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        ending._end_all()
    assert all(one.ended for one in ones)


def test_a_forked_child_cannot_use_or_end_it(cartpole: RemoteEnv) -> None:
    cartpole.reset(seed=1)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            cartpole.close()
            cartpole.__del__()
            try:
                cartpole.step(0)
            except ConfigError as error:
                status = 0 if "another process" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    cartpole.step(0)


def test_a_missing_task_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="name the task with env="):
        RemoteEnv().start()
    monkeypatch.setenv("REMOTE_ENV_TASK", "CartPole-v1")
    with RemoteEnv() as env:
        assert env.remote_spec["id"] == "CartPole-v1"


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_impossible_ports(port: int) -> None:
    with pytest.raises(ConfigError, match="from 1 to 65535"):
        RemoteEnv(port=port, env="CartPole-v1")


def test_facts_name_the_far_interpreter(cartpole: RemoteEnv) -> None:
    assert cartpole.facts["numpy"] == np.__version__
    assert cartpole.facts["gymnasium"] == gymnasium.__version__
    assert remote_env.__version__


def test_a_long_temporary_folder_is_no_obstacle(isolated_home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    deep = isolated_home / "tmp" / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with RemoteEnv(env="CartPole-v1") as env:
        env.reset(seed=0)
    assert list(deep.iterdir()) == []
    deep.rmdir()
