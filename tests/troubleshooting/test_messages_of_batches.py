"""What is told when a batch of environments is taken for one, or used as another batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from quotes import produces
from server_process import serving

from remote_env import RemoteEnv, RemoteVectorEnv
from remote_env.protocol.task import TaskSpec

TASK = "tasks_for_tests.scene:Scene"
CUBE = '<mujoco><worldbody><body name="cube"><freejoint/><geom size="0.1"/></body></worldbody></mujoco>'


@pytest.fixture(scope="module")
def port(isolated_home: Path) -> Iterator[int]:
    """Of a server of a batch of three."""
    task = TaskSpec(TASK, {}, num_envs=3)
    with serving(task=task.to_plain(), digest=task.digest) as server:
        yield server.port


@pytest.fixture
def batch(port: int) -> Iterator[RemoteVectorEnv]:
    with RemoteVectorEnv(port=port) as batch:
        batch.reset(seed=0)
        yield batch


@produces("ConfigError: that server holds a batch of … environments, and a RemoteEnv is for one: …")
def test_one_environment_at_a_server_of_a_batch(port: int) -> None:
    RemoteEnv(port=port).start()


@produces("ConfigError: that server holds a batch of … environments, and asked for was num_envs=…; …")
def test_a_batch_of_another_size(port: int) -> None:
    RemoteVectorEnv(port=port, num_envs=2).start()


@produces("Unsupported: the task … does not say what it looks like, so render='local' needs local_model=: …")
def test_a_task_that_does_not_say_what_it_looks_like(port: int) -> None:
    with RemoteVectorEnv(port=port, render="local") as seen:
        seen.reset()


@produces("InputError: local_view's env_ids=…: at least one number of an environment, 0 to …")
def test_a_view_of_an_environment_that_there_is_not(port: int, tmp_path: Path) -> None:
    (tmp_path / "cube.xml").write_text(CUBE)
    looks = {"render": "local", "local_model": tmp_path / "cube.xml", "local_view": {"env_ids": [5]}}
    with RemoteVectorEnv(port=port, **looks) as seen:
        seen.reset()


@produces("InputError: … states for … environments; give one each")
def test_too_few_states(batch: RemoteVectorEnv) -> None:
    batch.set_states([batch.get_state(0)])


@produces("InputError: actions is …; the task takes …: convert it before step()")
def test_one_action_for_all(batch: RemoteVectorEnv) -> None:
    batch.step(np.zeros(2, np.float32))


@produces("InputError: … seeds for … environments; give one each, or one for all")
def test_too_few_seeds(batch: RemoteVectorEnv) -> None:
    batch.reset(seed=[1, 2])


@produces("InputError: options['reset_mask'] is …; it is a bool array of the shape …, true at least once")
def test_a_mask_that_is_none(batch: RemoteVectorEnv) -> None:
    batch.reset(options={"reset_mask": [0]})


@produces("ConfigError: num_envs= says how many environments the batch is to have; a single one is RemoteEnv's")
def test_a_batch_of_no_size() -> None:
    RemoteVectorEnv(env=TASK)


@produces("TypeError: RemoteEnv has no argument num_envs= (did you mean RemoteVectorEnv(num_envs=…)?)")
def test_one_environment_with_a_size() -> None:
    RemoteEnv(env=TASK, num_envs=2)


@produces("Unsupported: policy= is for RemoteEnv: …")
def test_a_policy_beside_a_batch() -> None:
    RemoteVectorEnv(env=TASK, num_envs=2, policy="checkpoint")
