import json
import threading

import numpy as np
import pytest

from remote_env.errors import ConfigError, ConnectionLost, DeadlineExceeded, InputError, PolicyError
from remote_env.policy.asynchronous import AsyncPolicy
from remote_env.policy.policy import Feature, Policy, PolicyMetadata

DEADLINE_S = 20.0


class SteeredPolicy(Policy):
    """Gives chunks whose actions say from which observation they come, when the test lets it.

    Action k of a chunk from observation value v is (v + k, v): the first number is the step that it is for, when
    observations hold their step.
    """

    def __init__(self, chunk_size=8, *, is_held=False):
        self.metadata = PolicyMetadata(
            name="steered",
            observation={"state": Feature("state", (1,))},
            action_names=("for_step", "from_step"),
            chunk_size=chunk_size,
            control_rate_hz=50,
        )
        self.chunk_size = chunk_size
        self.asked = []  # (observation's value, episode)
        self.resets = []
        self.threads = set()
        self.error = self.reset_error = None
        self.moved = threading.Condition()
        self.permits = 0 if is_held else 1_000_000

    def infer(self, observation, *, episode_ids):
        value = float(observation["state"][0, 0])
        with self.moved:
            self.threads.add(threading.current_thread())
            self.asked.append((value, episode_ids[0]))
            self.moved.notify_all()
            assert self.moved.wait_for(lambda: self.permits > 0, DEADLINE_S)
            self.permits -= 1
            if self.error is not None:
                raise self.error
        steps = value + np.arange(self.chunk_size)
        return np.stack([steps, np.full_like(steps, value)], axis=1)[None].astype(np.float32)

    def reset(self, episode_ids=None):
        with self.moved:
            self.resets.append(tuple(episode_ids))
            self.moved.notify_all()
            if self.reset_error is not None:
                raise self.reset_error

    def let_go(self, times=1):
        with self.moved:
            self.permits += times
            self.moved.notify_all()

    def wait_until(self, condition):
        with self.moved:
            assert self.moved.wait_for(condition, DEADLINE_S)


def seen(value):
    return {"state": np.array([[value]], np.float32)}


@pytest.fixture
def make():
    made = []

    def make(policy, **arguments):
        arguments = {"timeout_s": DEADLINE_S, "aggregate": "latest_only", **arguments}
        made.append((policy, AsyncPolicy(policy, **arguments)))
        return made[-1][1]

    yield make
    for policy, asynchronous in made:
        policy.let_go(1_000_000)
        asynchronous.close(DEADLINE_S)


def wait_for_answer(asynchronous):
    """Until the answer under way has arrived, without taking it."""
    thread = asynchronous._thread
    with thread._changed:
        assert thread._changed.wait_for(lambda: thread._answer is not None, DEADLINE_S)


def test_every_step_gets_the_action_that_is_meant_for_it(make):
    asynchronous = make(SteeredPolicy())
    for step in range(100):
        assert asynchronous.select_action(seen(step), step=step)[0] == step


def test_an_action_is_float32_and_the_callers_own(make):
    asynchronous = make(SteeredPolicy())
    first = asynchronous.select_action(seen(0), step=0)
    assert (first.shape, first.dtype) == ((2,), np.float32)
    first[:] = 1e6
    asynchronous.select_action(seen(1), step=1)
    assert asynchronous.report()["largest_jump_inside"] == 1


def test_queued_actions_are_applied_while_the_next_chunk_is_inferred(make):
    policy = SteeredPolicy(is_held=True)
    policy.let_go()
    asynchronous = make(policy)
    actions = [asynchronous.select_action(seen(step), step=step) for step in range(8)]
    assert [action[1] for action in actions] == [0] * 8  # all from the first chunk: the second is still held
    policy.wait_until(lambda: len(policy.asked) == 2)
    assert policy.asked == [(0, ""), (3, "")]  # asked when half of it, 4 actions, was left
    policy.let_go()
    assert asynchronous.select_action(seen(8), step=8).tolist() == [8, 3]


def test_actions_of_steps_that_passed_meanwhile_are_dropped(make):
    policy = SteeredPolicy(is_held=True)
    policy.let_go()
    asynchronous = make(policy)
    for step in range(6):
        asynchronous.select_action(seen(step), step=step)
    policy.let_go()
    wait_for_answer(asynchronous)
    assert asynchronous.select_action(seen(6), step=6).tolist() == [6, 3]
    assert asynchronous.report()["stale_actions"] == 3  # for steps 3, 4 and 5


def test_overlapping_chunks_are_aggregated(make):
    policy = SteeredPolicy(is_held=True)
    policy.let_go()
    asynchronous = make(policy, aggregate="weighted_average")
    for step in range(4):
        asynchronous.select_action(seen(step), step=step)
    policy.let_go()
    wait_for_answer(asynchronous)
    assert asynchronous.select_action(seen(4), step=4) == pytest.approx([4, 0.3 * 0 + 0.7 * 3])


def test_a_chunk_that_is_all_stale_on_arrival_is_followed_by_a_question_from_here(make):
    policy = SteeredPolicy(chunk_size=4, is_held=True)
    policy.let_go()
    asynchronous = make(policy)
    for step in range(4):
        asynchronous.select_action(seen(step), step=step)
    policy.let_go(2)
    assert asynchronous.select_action(seen(50), step=50).tolist() == [50, 50]  # steps 4 to 49 were left out
    assert [value for value, _ in policy.asked] == [0, 1, 50]


def test_only_one_question_is_under_way(make):
    policy = SteeredPolicy(is_held=True)
    policy.let_go()
    asynchronous = make(policy, chunk_size_threshold=1.0)
    for step in range(8):
        asynchronous.select_action(seen(step), step=step)
    policy.wait_until(lambda: len(policy.asked) == 2)
    assert [value for value, _ in policy.asked] == [0, 1]  # no step twice, and none after while that one runs


def test_an_exception_of_the_policy_is_raised_in_the_caller_with_its_traceback(make):
    policy = SteeredPolicy()
    policy.error = RuntimeError("CUDA out of memory")
    asynchronous = make(policy)
    with pytest.raises(PolicyError, match="RuntimeError: CUDA out of memory") as caught:
        asynchronous.select_action(seen(0), step=0)
    assert "test_asynchronous.py" in caught.value.remote_traceback
    assert caught.value.__cause__ is policy.error


def test_an_error_of_ours_is_raised_as_it_is(make):
    policy = SteeredPolicy()
    policy.error = ConnectionLost("the policy server closed the link")
    with pytest.raises(ConnectionLost) as caught:
        make(policy).select_action(seen(0), step=0)
    assert caught.value is policy.error


def test_an_error_surfaces_at_the_next_step_even_while_actions_are_queued_and_the_one_after_asks_again(make):
    policy = SteeredPolicy(is_held=True)
    policy.let_go()
    asynchronous = make(policy)
    for step in range(4):
        asynchronous.select_action(seen(step), step=step)
    policy.error = RuntimeError("lost a weight")
    policy.let_go()
    wait_for_answer(asynchronous)
    with pytest.raises(PolicyError, match="lost a weight"):
        asynchronous.select_action(seen(4), step=4)
    policy.error = None
    policy.let_go()
    assert asynchronous.select_action(seen(4), step=4).tolist() == [4, 0]
    policy.wait_until(lambda: len(policy.asked) == 3)


def test_chunks_of_another_shape_are_told_to_the_caller(make):
    policy = SteeredPolicy()
    policy.infer = lambda observation, episode_ids: np.zeros((8, 2), np.float32)
    with pytest.raises(PolicyError, match=r"shape \(1, K, D\); this one gave \(8, 2\)"):
        make(policy).select_action(seen(0), step=0)


def test_waiting_has_a_deadline_that_says_what_runs_and_may_go_on(make):
    policy = SteeredPolicy(is_held=True)
    asynchronous = make(policy, timeout_s=0.05)
    with pytest.raises(DeadlineExceeded, match=r"no actions came within 0\.\d s; an inference of steered has run for"):
        asynchronous.select_action(seen(0), step=0)
    policy.let_go()
    wait_for_answer(asynchronous)
    assert asynchronous.select_action(seen(0), step=0).tolist() == [0, 0]
    assert len(policy.asked) == 1


def test_another_episode_never_sees_an_answer_of_the_one_before(make):
    policy = SteeredPolicy(is_held=True)
    policy.let_go()
    asynchronous = make(policy)
    asynchronous.reset("first")
    for step in range(4):
        asynchronous.select_action(seen(step), step=step)
    policy.wait_until(lambda: len(policy.asked) == 2)  # the second one runs while the episode ends
    asynchronous.reset("second")
    policy.let_go(2)
    assert asynchronous.select_action(seen(500), step=0).tolist() == [500, 500]
    assert policy.asked == [(0, "first"), (3, "first"), (500, "second")]


def test_the_policy_is_told_of_both_episodes_before_it_sees_the_new_one(make):
    policy = SteeredPolicy()
    asynchronous = make(policy)
    asynchronous.reset("first")
    asynchronous.select_action(seen(0), step=0)
    asynchronous.reset("second")
    policy.wait_until(lambda: len(policy.resets) == 2)
    assert policy.resets == [("", "first"), ("first", "second")]


def test_the_policy_is_used_from_one_thread_only(make):
    policy = SteeredPolicy()
    asynchronous = make(policy)
    for episode in range(3):
        asynchronous.reset(str(episode))
        for step in range(20):
            asynchronous.select_action(seen(step), step=step)
    assert len(policy.threads) == 1
    assert threading.current_thread() not in policy.threads


def test_a_policy_that_could_not_be_reset_is_not_asked(make):
    policy = SteeredPolicy()
    asynchronous = make(policy)
    policy.reset_error = ConnectionLost("the policy server is gone")
    asynchronous.reset("first")
    with pytest.raises(ConnectionLost, match="is gone"):
        asynchronous.select_action(seen(0), step=0)
    assert policy.asked == []


def test_close_ends_the_thread_and_may_be_called_again(make):
    asynchronous = make(SteeredPolicy())
    asynchronous.select_action(seen(0), step=0)
    asynchronous.close()
    asynchronous.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "policy inference"]
    with pytest.raises(InputError, match="closed"):
        asynchronous.select_action(seen(1), step=1)
    with pytest.raises(InputError, match="closed"):
        asynchronous.reset("another")


def test_close_does_not_wait_forever_for_an_inference_that_hangs(make):
    policy = SteeredPolicy(is_held=True)
    asynchronous = make(policy, timeout_s=0.05)
    with pytest.raises(DeadlineExceeded):
        asynchronous.select_action(seen(0), step=0)
    with pytest.raises(DeadlineExceeded, match="its thread was not over within"):
        asynchronous.close(timeout_s=0.05)
    policy.let_go()  # as closing a remote policy would
    asynchronous.close(DEADLINE_S)
    assert not [thread for thread in threading.enumerate() if thread.name == "policy inference"]


def test_nothing_is_started_before_it_is_needed(make):
    asynchronous = make(SteeredPolicy())
    assert not [thread for thread in threading.enumerate() if thread.name == "policy inference"]
    asynchronous.close()


def test_the_report_counts_starvation_apart_from_first_waits(make):
    policy = SteeredPolicy(chunk_size=4, is_held=True)
    policy.let_go()
    asynchronous = make(policy)
    for step in range(4):
        asynchronous.select_action(seen(step), step=step)
    policy.let_go()
    wait_for_answer(asynchronous)
    asynchronous.select_action(seen(4), step=4)
    assert asynchronous.report()["starved"] == 0  # the answer was there in time
    policy.let_go(2)
    asynchronous.select_action(seen(60), step=60)
    report = asynchronous.report()
    assert report["starved"] == 1
    assert report["starved_s"] > 0
    assert report["first_waits_s"] > 0
    assert report["actions"] == 6


def test_the_report_tells_jumps_at_seams_from_those_inside(make):
    policy = SteeredPolicy(is_held=True)
    policy.let_go()
    asynchronous = make(policy)
    for step in range(4):
        asynchronous.select_action(seen(step), step=step)
    policy.let_go()
    wait_for_answer(asynchronous)
    asynchronous.select_action(seen(4), step=4)
    report = asynchronous.report()
    assert report["largest_jump_inside"] == 1  # of the step number
    assert report["largest_jump_at_seams"] == 3  # of the number that says where a chunk comes from


def test_the_report_is_plain_and_says_none_where_nothing_was_measured(make):
    asynchronous = make(SteeredPolicy())
    empty = asynchronous.report()
    assert empty["latency_p99_s"] is empty["largest_jump_inside"] is empty["threshold_for_p99"] is None
    asynchronous.select_action(seen(0), step=0)
    report = json.loads(json.dumps(asynchronous.report()))
    assert report["inferences"] == 1
    assert 0 < report["latency_p50_s"] <= report["latency_p99_s"] <= report["latency_max_s"]
    assert report["threshold_for_p99"] * 8 == pytest.approx(np.ceil(report["latency_p99_s"] / 0.02))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({}, 0.02), ({"fps": 10}, 0.1), ({"environment_dt": 0.5}, 0.5)],
)
def test_the_time_of_an_action_is_the_policys_own_unless_told(make, arguments, expected):
    assert make(SteeredPolicy(), **arguments).environment_dt == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fps": 30, "environment_dt": 0.1}, "give one of them"),
        ({"fps": 0}, "fps=0"),
        ({"environment_dt": float("inf")}, "environment_dt=inf"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"aggregate": "mean"}, "no aggregate function 'mean'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        AsyncPolicy(SteeredPolicy(), **arguments)
