import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_env.errors import ConfigError, InputError
from remote_env.policy.chunk_queue import AGGREGATES, ChunkQueue

SHARES = {"weighted_average": 0.3, "latest_only": 0.0, "average": 0.5, "conservative": 0.7}


def chunk(*values):
    return np.array([[value, -value] for value in values], np.float32)


class NaiveQueue:
    """What the queue is to do, written down without any thought of speed."""

    def __init__(self, actions_per_chunk, threshold, old_share):
        self.limit, self.threshold, self.old_share = actions_per_chunk, threshold, old_share
        self.waiting, self.executed, self.largest, self.stale = {}, -1, 0, 0

    def put(self, values, first_step):
        values = values if self.limit is None else values[: self.limit]
        self.largest = max(self.largest, len(values))
        for offset, value in enumerate(values):
            step = first_step + offset
            if step <= self.executed:
                self.stale += 1
            elif step in self.waiting:
                self.waiting[step] = self.old_share * self.waiting[step] + (1 - self.old_share) * value
            else:
                self.waiting[step] = value

    def pop(self, step):
        for queued in sorted(self.waiting):
            if queued < step:
                del self.waiting[queued]
                self.stale += 1
        value = self.waiting.pop(step, None)
        self.executed = step if value is not None else step - 1
        return value

    def wants_chunk(self):
        return not self.waiting or len(self.waiting) / self.largest <= self.threshold


values = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12)
puts = st.tuples(st.just("put"), values, st.integers(-3, 8))
pops = st.tuples(st.just("pop"), st.integers(0, 3))


@given(
    moves=st.lists(puts | pops, max_size=40),
    aggregate=st.sampled_from(sorted(AGGREGATES)),
    limit=st.none() | st.integers(1, 8),
    threshold=st.floats(0, 1),
)
def test_any_order_of_chunks_and_steps_gives_what_a_naive_queue_gives(moves, aggregate, limit, threshold):
    queue = ChunkQueue(actions_per_chunk=limit, chunk_size_threshold=threshold, aggregate=aggregate)
    naive, step = NaiveQueue(limit, threshold, SHARES[aggregate]), 0
    for name, first, *rest in moves:
        if name == "put":
            first_step = max(0, step + rest[0])
            queue.put(chunk(*first), first_step)
            naive.put(first, first_step)
        else:
            step += first  # some steps are left out
            found, expected = queue.pop(step), naive.pop(step)
            assert (found is None) == (expected is None)
            if found is not None:
                np.testing.assert_allclose(found.action, [expected, -expected], rtol=1e-4, atol=1e-4)
                step += 1
        assert len(queue) == len(naive.waiting)
        assert queue.wants_chunk == naive.wants_chunk()
        assert queue.must_go == (not naive.waiting)
        assert (queue.stale_actions, queue.largest_chunk) == (naive.stale, naive.largest)


def test_a_chunk_is_played_in_order_and_then_the_queue_must_be_filled():
    queue = ChunkQueue()
    assert queue.must_go
    queue.put(chunk(1, 2, 3), first_step=0)
    assert [queue.pop(step).action[0] for step in range(3)] == [1, 2, 3]
    assert queue.must_go
    assert queue.pop(3) is None


def test_actions_of_steps_that_were_executed_are_dropped():
    queue = ChunkQueue()
    queue.put(chunk(1, 2, 3, 4), first_step=0)
    for step in range(3):
        queue.pop(step)
    assert queue.put(chunk(10, 20, 30, 40), first_step=1) == 2  # for steps 1 and 2
    assert queue.pop(3).action[0] == pytest.approx(0.3 * 4 + 0.7 * 30)
    assert queue.pop(4).action[0] == 40


def test_a_chunk_that_comes_too_late_leaves_nothing():
    queue = ChunkQueue()
    queue.put(chunk(1), first_step=0)
    queue.pop(0)
    assert queue.pop(5) is None
    assert queue.put(chunk(1, 2, 3), first_step=1) == 3
    assert queue.must_go


def test_the_next_chunk_is_asked_for_when_half_of_the_largest_is_left():
    queue = ChunkQueue(chunk_size_threshold=0.5)
    queue.put(chunk(1, 2, 3, 4), first_step=0)
    wants = []
    for step in range(3):
        queue.pop(step)
        wants.append(queue.wants_chunk)
    assert wants == [False, True, True]


def test_a_shorter_chunk_does_not_change_what_half_means():
    queue = ChunkQueue(chunk_size_threshold=0.5)
    queue.put(chunk(1, 2, 3, 4, 5, 6), first_step=0)
    for step in range(6):
        queue.pop(step)
    queue.put(chunk(1, 2, 3), first_step=6)
    assert queue.wants_chunk


def test_only_the_first_actions_of_a_chunk_are_used_where_fewer_are_asked_for():
    queue = ChunkQueue(actions_per_chunk=2)
    queue.put(chunk(1, 2, 3), first_step=0)
    assert len(queue) == queue.largest_chunk == 2


@pytest.mark.parametrize(("name", "old_share"), SHARES.items())
def test_the_aggregate_functions_weigh_old_and_new(name, old_share):
    old, new = chunk(1, 2), chunk(5, 6)
    np.testing.assert_allclose(AGGREGATES[name](old, new), old_share * old + (1 - old_share) * new, rtol=1e-6)
    assert AGGREGATES[name](old, new).dtype == np.float32


def test_a_function_of_ones_own_aggregates():
    queue = ChunkQueue(aggregate=np.maximum)
    queue.put(chunk(3, 1), first_step=0)
    queue.put(chunk(2, 2), first_step=0)
    assert [queue.pop(step).action[0] for step in range(2)] == [3, 2]


def test_an_action_tells_the_latest_chunk_that_has_a_part_in_it():
    queue = ChunkQueue()
    queue.put(chunk(1, 2, 3), first_step=0)
    queue.put(chunk(1, 2), first_step=1)
    assert [queue.pop(step).chunk for step in range(3)] == [0, 1, 1]


def test_another_episode_counts_steps_from_zero():
    queue = ChunkQueue()
    queue.put(chunk(1, 2), first_step=0)
    queue.pop(1)
    queue.clear()
    assert queue.must_go
    assert queue.put(chunk(7), first_step=0) == 0
    assert queue.pop(0).action[0] == 7


def test_a_step_that_has_passed_is_refused():
    queue = ChunkQueue()
    queue.put(chunk(1, 2), first_step=0)
    queue.pop(0)
    with pytest.raises(InputError, match="step 0 has passed: the next one is 1"):
        queue.pop(0)


def test_what_the_giver_does_with_its_chunk_afterwards_changes_nothing():
    queue, given_chunk = ChunkQueue(), chunk(1, 2)
    queue.put(given_chunk, first_step=0)
    given_chunk[:] = 99
    assert queue.pop(0).action[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"actions_per_chunk": 0}, "at least one action"),
        ({"chunk_size_threshold": 1.5}, "from 0 to 1"),
        ({"chunk_size_threshold": float("nan")}, "from 0 to 1"),
        ({"aggregate": "median"}, "choose one of weighted_average, latest_only, average, conservative"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ChunkQueue(**arguments)


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((0, 3)), np.zeros((1, 2, 3))])
def test_a_chunk_of_another_shape_is_refused(wrong):
    with pytest.raises(InputError, match=r"shape \(K, D\)"):
        ChunkQueue().put(wrong, first_step=0)


def test_actions_of_another_size_are_refused_and_the_queue_stays_as_it_was():
    queue = ChunkQueue()
    queue.put(chunk(1), first_step=0)
    with pytest.raises(InputError, match="actions have 2 numbers so far; this chunk's have 5"):
        queue.put(np.zeros((3, 5)), first_step=0)
    assert len(queue) == 1
