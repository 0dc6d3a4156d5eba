"""What is told when a batch of environments is taken for one, or used as another batch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quotes import produces
from server_process import serving

from remote_env import RemoteEnv, RemoteVectorEnv
from remote_env.errors import TaskError
from remote_env.protocol.task import TaskSpec
from remote_env.server.gymnasium_batch import make_batch

TASK = "tasks_for_tests.scene:Scene"
ACTIONS = np.zeros(2, np.int64)
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


@produces("Unsupported: local_pixels= is for RemoteEnv: …")
def test_images_of_a_batch_that_are_to_be_drawn_here() -> None:
    RemoteVectorEnv(env=TASK, num_envs=2, local_pixels=True)


@produces("Unsupported: policy= is for RemoteEnv: …")
def test_a_policy_beside_a_batch() -> None:
    RemoteVectorEnv(env=TASK, num_envs=2, policy="checkpoint")


# Several hosts


@produces("ConfigError: num_envs=… for … hosts: each is to have one environment at least")
def test_fewer_environments_than_hosts() -> None:
    RemoteVectorEnv([None, None], env=TASK, num_envs=1)  # type: ignore[arg-type]


@produces("ConfigError: …: … for … hosts; give one each, or one for all")
def test_more_ports_than_hosts() -> None:
    RemoteVectorEnv([None, None], [1, 2, 3], env=TASK, num_envs=2)  # type: ignore[arg-type]


@produces("ConfigError: on_failure=…: allowed are …")
def test_a_failure_that_is_to_be_ignored() -> None:
    RemoteVectorEnv([None, None], env=TASK, num_envs=2, on_failure="ignore")  # type: ignore[arg-type]


@produces(
    "ConfigError: host … of … (…) has another … than host … of … (…): …; a batch is of environments that are alike"
)
def test_hosts_of_different_tasks(port: int, async_port: int) -> None:
    with RemoteVectorEnv([None, None], [port, async_port]) as batch:  # type: ignore[arg-type]
        batch.start()


@produces("TaskError: environments … to …, host … of … (…): …")
def test_an_error_on_one_of_the_hosts(failing: RemoteVectorEnv) -> None:
    failing.step(ACTIONS)


@produces("InputError: a step failed on one of the servers (…): call reset()")
def test_a_step_after_a_host_has_failed(failing: RemoteVectorEnv) -> None:
    with pytest.raises(TaskError):
        failing.step(ACTIONS)
    failing.step(ACTIONS)


# Environments in processes of their own


@pytest.fixture(scope="module")
def async_port(isolated_home: Path) -> Iterator[int]:
    """Of a server whose two environments do as they are told, each in a process of its own."""
    task = TaskSpec("tasks_for_tests.misbehaving:RaisesAtThird", {"vectorization_mode": "async"}, num_envs=2)
    with serving(task=task.to_plain(), digest=task.digest) as server:
        yield server.port


@pytest.fixture
def failing(async_port: int) -> Iterator[RemoteVectorEnv]:
    """A batch over one host, whose next step fails."""
    with RemoteVectorEnv([None], [async_port]) as batch:  # type: ignore[arg-type]
        batch.reset()
        batch.call("plan", "raise")
        yield batch


@produces("InputError: an environment of this batch has failed (…): call reset(), which makes the batch anew")
def test_a_step_after_one_of_them_has_failed(async_port: int) -> None:
    with RemoteVectorEnv(port=async_port) as batch:
        batch.reset()
        batch.call("plan", "raise")
        with pytest.raises(TaskError):
            batch.step(ACTIONS)
        batch.step(ACTIONS)


@pytest.mark.fault
@produces("TaskError: step: the process of environment … ended in a step or reset; reset() makes the batch anew")
def test_processes_that_are_killed(async_port: int) -> None:
    with RemoteVectorEnv(port=async_port) as batch:
        batch.reset()
        for pid in batch.get_attr("pid"):
            os.kill(pid, signal.SIGKILL)
        batch.step(ACTIONS)


@produces("ConfigError: vectorization_mode=…: allowed are …")
def test_a_vectorization_that_there_is_not() -> None:
    """The server's half of it, in this process."""
    nothing: Any = None
    make_batch(TASK, {"vectorization_mode": "threads"}, 2, factory=None, make_one=nothing, scenes=nothing)
