"""Snapshots, branches and tried chunks of a real server's episode, beside the same task in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from remote_env import RemoteEnv
from remote_env.errors import DeadlineExceeded, InputError, SessionLost, TaskError, Unsupported
from remote_env.protocol.branching import MAX_CHUNKS, MAX_KEPT
from remote_env.protocol.chunks import MAX_STEPS
from remote_env.tasks import TRANSFER_CUBE_ID

ON_DEMAND = "tasks_for_tests.misbehaving:OnDemand"
NOTHING = np.zeros((2, 3, 2), np.float32)
TORQUES = np.random.default_rng(2).uniform(-2, 2, (5, 6, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def pendulum(isolated_home: object) -> Iterator[RemoteEnv]:
    with RemoteEnv(env="Pendulum-v1", env_kwargs={"max_episode_steps": 12}) as env:
        yield env


@pytest.fixture(scope="module")
def aloha(isolated_home: object) -> Iterator[RemoteEnv]:
    with RemoteEnv(env=TRANSFER_CUBE_ID, env_kwargs={"obs_type": "state"}, capture_state=True) as env:
        yield env


@pytest.fixture(scope="module")
def on_demand(isolated_home: object) -> Iterator[RemoteEnv]:
    with RemoteEnv(env=ON_DEMAND) as env:
        yield env


def here(seed: int, before: Any = ()) -> gymnasium.Env[Any, Any]:
    """The same task, as far on."""
    env = gymnasium.make("Pendulum-v1", max_episode_steps=12)
    env.reset(seed=seed)
    for action in before:
        env.step(action)
    return env


def assert_untouched(env: RemoteEnv, local: gymnasium.Env[Any, Any]) -> None:
    """The episode goes on as if nothing had been tried."""
    seen, expected = env.step(TORQUES[4, 5]), local.step(TORQUES[4, 5])
    assert seen[0].tobytes() == expected[0].tobytes()
    assert seen[1:] == expected[1:]


# Snapshots


def test_the_same_actions_go_the_same_way_again(aloha: RemoteEnv) -> None:
    aloha.reset(seed=3)
    aloha.action_space.seed(1)
    actions = [aloha.action_space.sample() for _ in range(6)]
    aloha.step_many(actions[:2])
    snapshot, scene = aloha.snapshot(), aloha.get_state()
    first = aloha.step_many(actions)
    aloha.reset(seed=4)
    aloha.restore(snapshot)
    assert np.array_equal(aloha.get_state().values, scene.values)
    again = aloha.step_many(actions)
    assert again.observations.tobytes() == first.observations.tobytes()
    assert (again.rewards.tolist(), again.infos) == (first.rewards.tolist(), first.infos)


def test_time_limits_count_on_from_a_snapshot(pendulum: RemoteEnv) -> None:
    pendulum.reset(seed=1)
    pendulum.step_many(TORQUES[0])
    snapshot = pendulum.snapshot()
    for _ in range(2):
        chunk = pendulum.step_many(np.concatenate(TORQUES))
        assert (chunk.ran, chunk.truncated[-1]) == (6, True)
        pendulum.restore(snapshot)
    pendulum.forget(snapshot)
    with pytest.raises(InputError, match=f"this session has no snapshot '{snapshot}': it was forgotten"):
        pendulum.restore(snapshot)


def test_snapshots_need_an_episode_and_end_with_their_session() -> None:
    with RemoteEnv(env=ON_DEMAND) as env:
        for ask in (env.snapshot, lambda: env.fork(2), lambda: env.try_chunks(NOTHING), lambda: env.restore("x")):
            with pytest.raises(InputError, match=r"call reset\(\) before"):
                ask()
        env.reset()
        snapshot, branches = env.snapshot(), env.fork(2)
        env.call("plan", "kill")
        with pytest.raises(SessionLost):
            env.step(np.zeros(2, np.float32))
        env.reset()
        with pytest.raises(InputError, match="another session's, with which it ended; it has 0 of them"):
            env.restore(snapshot)
        branches.close()
        env.step(np.zeros(2, np.float32))


def test_there_is_an_end_to_snapshots(pendulum: RemoteEnv) -> None:
    pendulum.reset(seed=1)
    with pendulum.fork(MAX_KEPT), pytest.raises(InputError, match=f"keeps {MAX_KEPT} snapshots and branches"):
        pendulum.snapshot()
    pendulum.forget(pendulum.snapshot())


def test_a_backend_that_cannot_says_so() -> None:
    with RemoteEnv(env="anything", simulator="tasks_for_tests.counter_backend:CounterBackend") as env:
        env.reset()
        for ask in (env.snapshot, lambda: env.fork(2), lambda: env.try_chunks([[env.action_space.sample()]])):
            with pytest.raises(Unsupported, match="CounterBackend has no snapshots"):
                ask()
        env.step(env.action_space.sample())


# Chunks


@pytest.mark.parametrize("want", ["rewards", "last", "all"])
def test_what_is_tried_is_what_would_happen(pendulum: RemoteEnv, want: Any) -> None:
    pendulum.reset(seed=7)
    pendulum.step_many(TORQUES[0, :3])
    tried = pendulum.try_chunks(TORQUES, want=want)
    for number, chunk in enumerate(TORQUES):
        local = here(7, TORQUES[0, :3])
        steps = [local.step(action) for action in chunk]
        assert tried.rewards[number].tolist() == [step[1] for step in steps]
        if want == "last":
            assert tried.observations[number].tobytes() == steps[-1][0].tobytes()
        if want == "all":
            assert tried.observations[number].tobytes() == np.stack([step[0] for step in steps]).tobytes()
            assert tried.infos[number] == [{}] * 6
    assert tried.returns.tolist() == tried.rewards.sum(axis=1).tolist()
    assert (tried.ran.tolist(), tried.terminated.any(), tried.truncated.any()) == ([6] * 5, False, False)
    assert (tried.observations is None) == (want == "rewards")
    assert_untouched(pendulum, here(7, TORQUES[0, :3]))


def test_chunks_end_with_their_episode_or_go_on(pendulum: RemoteEnv) -> None:
    pendulum.reset(seed=7)
    pendulum.step_many(np.concatenate(TORQUES)[:8])
    tried = pendulum.try_chunks(TORQUES, want="all")
    assert (tried.ran.tolist(), tried.truncated.tolist()) == ([4] * 5, [True] * 5)
    assert tried.observations[0].shape == (4, 3)
    assert not tried.rewards[:, 4:].any()
    assert pendulum.try_chunks(TORQUES, stop=False).ran.tolist() == [6] * 5
    assert_untouched(pendulum, here(7, np.concatenate(TORQUES)[:8]))


def test_chunks_can_begin_at_a_snapshot(pendulum: RemoteEnv) -> None:
    pendulum.reset(seed=7)
    snapshot = pendulum.snapshot()
    now = pendulum.try_chunks(TORQUES)
    pendulum.step_many(TORQUES[1])
    assert np.array_equal(pendulum.try_chunks(TORQUES, snapshot=snapshot).rewards, now.rewards)
    assert not np.array_equal(pendulum.try_chunks(TORQUES).rewards, now.rewards)
    assert_untouched(pendulum, here(7, TORQUES[1]))


def test_actions_of_dict_spaces_come_stacked_or_in_lists_and_bring_what_is_asked_for() -> None:
    with RemoteEnv(env="tasks_for_tests.misbehaving:Nested", observation_keys=["pose", "image"]) as env:
        env.reset(seed=1)
        aims = np.random.default_rng(1).uniform(-1, 1, (3, 2, 2)).astype(np.float32)
        stacked = env.try_chunks({"kind": np.ones((3, 2), np.int64), "aim": aims}, want="last")
        listed = env.try_chunks([[{"kind": 1, "aim": aim} for aim in chunk] for chunk in aims], want="last")
        assert np.array_equal(stacked.rewards, listed.rewards)
        assert np.array_equal(stacked.observations["image"], listed.observations["image"])
        assert stacked.observations.keys() == {"image", "pose"}
        assert stacked.observations["pose"]["xyz"].shape == (3, 3)


@pytest.mark.parametrize(
    ("actions", "options", "text"),
    [
        (np.zeros((0, 6, 1)), {}, "0 chunks of actions"),
        (np.zeros((2, 0, 1)), {}, "2 chunks of 0 actions"),
        (np.zeros((1, MAX_STEPS + 1, 1)), {}, f"1 chunks of {MAX_STEPS + 1} actions"),
        (np.zeros((MAX_CHUNKS + 1, 1, 1)), {}, f"{MAX_CHUNKS + 1} chunks of 1 or more actions"),
        (np.zeros((1024, 1025, 1), np.float32), {}, "1048576 actions in all"),
        (np.zeros((2, 6, 2)), {}, r"the task takes float32 \(1,\)"),
        (np.full((2, 6, 1), np.nan), {}, r"not finite: nan at index \[0, 0, 0\]"),
        ([[np.zeros(1)], [np.zeros(1)] * 2], {}, r"as many actions as the others; got \[1, 2\]"),
        (np.zeros(3), {}, r"actions are a \(M, K, …\) array"),
        ("abc", {}, r"actions are a \(M, K, …\) array.*a str"),
        (TORQUES, {"want": "most"}, "want='most': allowed are rewards, last, all"),
        (TORQUES, {"snapshot": "mine"}, "no snapshot 'mine'"),
    ],
)
def test_bad_chunks_are_refused(pendulum: RemoteEnv, actions: Any, options: dict[str, Any], text: str) -> None:
    pendulum.reset(seed=7)
    with pytest.raises(InputError, match=text):
        pendulum.try_chunks(actions, **options)
    assert_untouched(pendulum, here(7))


def test_too_much_is_refused_before_it_is_sent(aloha: RemoteEnv) -> None:
    with pytest.raises(InputError, match=r"1048576 observations of 328 bytes.*want=\"rewards\""):
        aloha.try_chunks(np.zeros((1024, 1024, 14), np.float32), want="all")


def test_a_task_that_raises_in_a_chunk_leaves_the_episode_where_it_was(on_demand: RemoteEnv) -> None:
    on_demand.reset()
    count = on_demand.call("total_steps")
    on_demand.call("plan", "raise")
    with pytest.raises(TaskError, match="ValueError in step 0 of chunk 0: the cube fell") as caught:
        on_demand.try_chunks(NOTHING)
    assert "die(how)" in caught.value.remote_traceback
    assert on_demand.call("total_steps") == count
    on_demand.call("plan", "")
    on_demand.step(np.zeros(2, np.float32))


def test_an_info_that_cannot_cross_is_the_task_s_fault(on_demand: RemoteEnv) -> None:
    on_demand.reset()
    on_demand.call("plan", "uncodable")
    with pytest.raises(TaskError, match="it ran, but"):
        on_demand.try_chunks(np.zeros((1, 1, 2), np.float32), want="last")
    on_demand.call("plan", "")
    assert on_demand.try_chunks(np.zeros((1, 1, 2), np.float32), want="last").infos == [{}]


@pytest.mark.fault
def test_what_is_tried_for_too_long_can_be_waited_for(
    on_demand: RemoteEnv, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_demand.reset()
    on_demand.call("plan", f"until:{tmp_path / 'go'}")
    monkeypatch.setattr(on_demand, "_step_timeout_s", 0.2)
    with pytest.raises(DeadlineExceeded, match="branch"), on_demand.fork(1) as branches:
        branches.step(NOTHING[:1, 0])
    with pytest.raises(InputError, match=r"\(BRANCH\) was interrupted.*resume\(\)"):
        on_demand.try_chunks(NOTHING)
    (tmp_path / "go").touch()
    monkeypatch.setattr(on_demand, "_step_timeout_s", 30.0)
    assert on_demand.resume() is None
    assert on_demand.try_chunks(NOTHING).ran.tolist() == [3, 3]


# Branches


def test_branches_are_episodes_of_their_own(pendulum: RemoteEnv) -> None:
    pendulum.reset(seed=7)
    pendulum.step_many(TORQUES[0, :3])
    locals_ = [here(7, TORQUES[0, :3]) for _ in range(5)]
    with pendulum.fork(5) as branches:
        for index in range(3):
            observations, rewards, terminated, truncated, infos = branches.step(TORQUES[:, index])
            expected = [local.step(action) for local, action in zip(locals_, TORQUES[:, index], strict=True)]
            assert observations.tobytes() == np.stack([step[0] for step in expected]).tobytes()
            assert rewards.tolist() == [step[1] for step in expected]
            assert (terminated.any(), truncated.any(), infos) == (False, False, [{}] * 5)
            pendulum.step(TORQUES[1, index])  # in between: neither notices the other
        tried = branches.step_many(TORQUES, want="all")
    assert tried.observations[4].shape == (6, 3)
    assert_untouched(pendulum, here(7, [*TORQUES[0, :3], *TORQUES[1, :3]]))


def test_a_branch_that_has_ended_stays(pendulum: RemoteEnv) -> None:
    pendulum.reset(seed=7)
    pendulum.step_many(np.concatenate(TORQUES)[:10])
    with pendulum.fork(2) as branches:
        ended = branches.step_many(TORQUES[:2])
        assert (ended.ran.tolist(), ended.truncated.tolist()) == ([2, 2], [True, True])
        observations, rewards, _, truncated, _ = branches.step(TORQUES[:2, 0])
        assert (rewards.tolist(), truncated.tolist()) == ([0.0, 0.0], [True, True])
        local = here(7, np.concatenate(TORQUES)[:10])
        expected = [local.step(action) for action in TORQUES[0, :2]][-1][0]
        assert observations[0].tobytes() == expected.tobytes()


def test_branches_begin_at_a_snapshot(pendulum: RemoteEnv) -> None:
    pendulum.reset(seed=7)
    snapshot = pendulum.snapshot()
    pendulum.step_many(TORQUES[0])
    with pendulum.fork(1, snapshot=snapshot) as branches:
        assert branches.step(TORQUES[:1, 0])[1][0] == here(7).step(TORQUES[0, 0])[1]


def test_branches_are_asked_for_and_left_at_any_time(isolated_home: object) -> None:
    env = RemoteEnv(env="Pendulum-v1")
    with pytest.raises(InputError, match=r"call reset\(\) before try_chunks\(\) or fork\(\)"):
        env.fork(2)
    env.reset(seed=0)
    branches = env.fork(2)
    env.step_async(TORQUES[0, 0])
    with pytest.raises(InputError, match=r"1 step is under way: take its result with step_wait\(\) first"):
        branches.step(TORQUES[:2, 0])
    env.close()
    with pytest.raises(SessionLost, match="was closed"):
        branches.step(TORQUES[:2, 0])
    branches.close()


def test_branches_that_are_closed_or_miscounted(pendulum: RemoteEnv) -> None:
    pendulum.reset(seed=7)
    branches = pendulum.fork(2)
    with pytest.raises(InputError, match="actions for 3 branches, and 2 are to step"):
        branches.step(TORQUES[:3, 0])
    branches.close()
    branches.close()
    with pytest.raises(InputError, match="closed"):
        branches.step(TORQUES[:2, 0])
    for count in (0, -1, MAX_KEPT + 1, True, 1.5):
        with pytest.raises(InputError, match="a whole number from 1"):
            pendulum.fork(count)  # type: ignore[arg-type]
    assert_untouched(pendulum, here(7))


def test_a_branch_that_fails_moves_none(on_demand: RemoteEnv) -> None:
    on_demand.reset()
    on_demand.call("plan", "raise")
    with on_demand.fork(2) as branches:
        with pytest.raises(TaskError, match="step 0 of chunk 0"):
            branches.step(np.zeros((2, 2), np.float32))
        on_demand.call("plan", "")
        with pytest.raises(TaskError):
            branches.step(np.zeros((2, 2), np.float32))  # still where they began: with the plan
    on_demand.step(np.zeros(2, np.float32))


def test_a_policy_beside_the_task_drops_its_plan_when_it_goes_back() -> None:
    with RemoteEnv(env=ON_DEMAND, policy="tasks_for_tests.policies:Counting") as env:
        env.reset()
        snapshot = env.snapshot()
        env.step_policy()
        env.restore(snapshot)
        with pytest.raises(InputError, match="went back to a snapshot and nothing has been observed since"):
            env.step_policy()
        env.step(np.zeros(2, np.float32))
        env.step_policy()
