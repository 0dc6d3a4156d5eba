"""The ledgers: what is under way is kept, in its own memory, until the other end is known to have it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_env.errors import ProtocolError
from remote_env.protocol.ledger import REPLIES_LIMIT_BYTES, Message, ReplyLedger, RequestLedger

STEP, RESULT = 34, 64


def contents(messages: list[Message]) -> list[tuple[int, bytes]]:
    return [(message.sequence, b"".join(message.buffers)) for message in messages]


# Requests


def test_requests_are_numbered_without_gaps_and_settled_in_order() -> None:
    ledger = RequestLedger()
    assert (ledger.last, ledger.received) == (0, 0)
    for number in range(1, 4):
        ledger.keep(STEP, (bytes([number]),))
        assert ledger.last == number
    ledger.settle(1)
    assert (ledger.received, ledger.last, [message.sequence for message in ledger.pending]) == (1, 3, [2, 3])
    ledger.settle(3)  # of an abandoned call the reply may be skipped with the next one's
    assert (ledger.received, ledger.last, list(ledger.pending)) == (3, 3, [])
    ledger.keep(STEP, (b"x",))
    assert ledger.last == 4


def test_the_size_of_a_request_is_that_of_all_its_buffers() -> None:
    ledger = RequestLedger()
    ledger.keep(STEP, (bytearray(40), memoryview(bytes(1000))))
    assert ledger.pending[0] == Message(1, STEP, ledger.pending[0].buffers, 1040)


def test_what_a_simulator_has_not_taken_is_sent_again() -> None:
    ledger = RequestLedger()
    for number in range(1, 5):
        ledger.keep(STEP, (b"request", bytes([number])))
    ledger.settle(2)
    assert contents(ledger.missed(2)) == [(3, b"request\3"), (4, b"request\4")]
    assert contents(ledger.missed(3)) == [(4, b"request\4")]
    assert ledger.missed(4) == []


@pytest.mark.parametrize("taken", [0, 1, 5, 1 << 40])
def test_a_simulator_that_claims_what_cannot_be_is_refused(taken: int) -> None:
    ledger = RequestLedger()
    for _ in range(4):
        ledger.keep(STEP, (b"",))
    ledger.settle(2)
    with pytest.raises(ProtocolError, match=rf"has taken request {taken}; 2 were answered and 4 sent"):
        ledger.missed(taken)
    assert (ledger.received, ledger.last) == (2, 4)


def test_a_request_whose_memory_is_owned_stays_as_it_was_sent() -> None:
    ledger, action = RequestLedger(), bytearray(b"action")
    ledger.keep(STEP, (memoryview(action),))
    ledger.own()
    action[:] = b"______"
    assert contents(ledger.missed(0)) == [(1, b"action")]


def test_owning_from_one_on_leaves_the_earlier_ones_alone() -> None:
    ledger, reused = RequestLedger(), bytearray(b"a")
    ledger.keep(STEP, (reused,))
    ledger.own()
    owned = ledger.pending[0]
    reused[:] = b"b"
    ledger.keep(STEP, (reused,))
    ledger.own(1)
    reused[:] = b"c"
    assert ledger.pending[0] is owned
    assert contents(ledger.missed(0)) == [(1, b"a"), (2, b"b")]


# Replies


def answer(ledger: ReplyLedger, acknowledged: int, reply: bytes | bytearray | memoryview) -> int:
    """Take the next request, and answer it."""
    ledger.take(ledger.taken + 1, acknowledged)
    ledger.keep(RESULT, (reply,))
    return ledger.taken


def test_replies_are_kept_until_they_are_acknowledged() -> None:
    ledger = ReplyLedger()
    for reply in (b"one", b"two", b"three"):
        answer(ledger, 0, reply)
    assert contents(list(ledger.replies)) == [(1, b"one"), (2, b"two"), (3, b"three")]
    answer(ledger, 2, b"four")
    assert (ledger.acknowledged, contents(list(ledger.replies))) == (2, [(3, b"three"), (4, b"four")])


def test_what_a_client_has_not_received_is_sent_again_and_again() -> None:
    ledger = ReplyLedger()
    for reply in (b"one", b"two", b"three"):
        answer(ledger, 0, reply)
    for _ in range(2):
        assert contents(ledger.resume(1)) == [(2, b"two"), (3, b"three")]
    assert contents(ledger.resume(3)) == []
    assert (ledger.taken, ledger.acknowledged) == (3, 3)


def test_a_request_that_is_taken_and_not_answered_has_nothing_to_send() -> None:
    ledger = ReplyLedger()
    answer(ledger, 0, b"one")
    ledger.take(2, 0)
    assert (contents(ledger.resume(1)), ledger.taken) == ([], 2)
    ledger.keep(RESULT, (b"two",))
    assert contents(ledger.resume(1)) == [(2, b"two")]


@pytest.mark.parametrize("sequence", [0, 1, 2, 4, 1 << 63])
def test_a_request_out_of_turn_is_refused_and_changes_nothing(sequence: int) -> None:
    ledger = ReplyLedger()
    for reply in (b"one", b"two"):
        answer(ledger, 0, reply)
    with pytest.raises(ProtocolError, match=f"request {sequence} where 3 is due"):
        ledger.take(sequence, 2)
    assert (ledger.taken, ledger.acknowledged, len(ledger.replies)) == (2, 0, 2)


@pytest.mark.parametrize("acknowledged", [0, 4, 1 << 63])
def test_acknowledging_what_cannot_have_come_is_refused(acknowledged: int) -> None:
    ledger = ReplyLedger()
    for reply in (b"one", b"two", b"three"):
        answer(ledger, min(ledger.taken, 1), reply)
    wrong = f"reply {acknowledged} is acknowledged; 1 to 3 could be"
    for refused in (lambda: ledger.take(4, acknowledged), lambda: ledger.resume(acknowledged)):
        with pytest.raises(ProtocolError, match=wrong):
            refused()
    assert (ledger.taken, ledger.acknowledged, len(ledger.replies)) == (3, 1, 2)


def test_a_request_that_is_sent_again_acknowledges_what_it_did_at_first() -> None:
    ledger = ReplyLedger()
    answer(ledger, 0, b"one")
    answer(ledger, 0, b"two")
    ledger.resume(2)  # the client has both; its third request it had sent before
    ledger.take(3, 1)
    assert (ledger.taken, ledger.stated, ledger.acknowledged) == (3, 1, 2)
    ledger.keep(RESULT, (b"three",))
    assert contents(ledger.resume(2)) == [(3, b"three")]
    with pytest.raises(ProtocolError, match="reply 0 is acknowledged; 1 to 3 could be"):
        ledger.take(4, 0)  # less than an earlier request said


def test_a_reply_s_memory_is_copied_when_the_next_request_is_taken_and_not_before() -> None:
    """A task may give the same buffer again and again, and change it once its next step runs."""
    ledger, image = ReplyLedger(), bytearray(b"frame 1")
    answer(ledger, 0, memoryview(image))
    assert ledger.replies[0].buffers[0] is not image
    assert ledger.replies[0].buffers[0].obj is image  # type: ignore[union-attr]  # not copied yet
    ledger.take(2, 0)
    image[:] = b"frame 2"
    ledger.keep(RESULT, (memoryview(image),))
    assert contents(ledger.resume(0)) == [(1, b"frame 1"), (2, b"frame 2")]
    ledger.take(3, 0)
    image[:] = b"frame 3"
    assert contents(ledger.resume(0)) == [(1, b"frame 1"), (2, b"frame 2")]


def test_a_reply_that_was_acknowledged_is_never_copied() -> None:
    ledger, image = ReplyLedger(), bytearray(b"frame")
    for _ in range(3):
        answer(ledger, ledger.taken, memoryview(image))
        assert ledger.replies[0].buffers[0].obj is image  # type: ignore[union-attr]
        assert len(ledger.replies) == 1


def test_above_the_limit_no_request_is_taken_until_replies_are_acknowledged() -> None:
    ledger = ReplyLedger(limit_bytes=10)
    answer(ledger, 0, b"12345")
    answer(ledger, 0, b"67890")
    answer(ledger, 0, b"x")  # 10 bytes wait, which is not above 10
    with pytest.raises(ProtocolError, match="replies of 11 bytes wait for being acknowledged; at most 10 do"):
        ledger.take(4, 0)
    assert (ledger.taken, len(ledger.replies)) == (3, 3)
    assert contents(ledger.resume(1)) == [(2, b"67890"), (3, b"x")]  # which acknowledges the first
    ledger.take(4, 1)
    assert ledger.taken == 4


def test_a_reply_that_is_larger_than_the_limit_alone_is_kept_and_can_be_acknowledged() -> None:
    ledger = ReplyLedger(limit_bytes=10)
    answer(ledger, 0, bytes(1000))
    assert len(ledger.resume(0)[0].buffers[0]) == 1000
    ledger.take(2, 1)
    assert ledger.taken == 2
    assert ReplyLedger().limit_bytes == REPLIES_LIMIT_BYTES == 64 << 20


# Both


@given(st.lists(st.sampled_from(["send", "deliver", "reply", "receive", "cut"]), max_size=60), st.integers(1, 5))
def test_whatever_is_cut_each_request_runs_once_and_each_reply_comes_once(events: list[str], window: int) -> None:
    """The two ledgers with a stream between them that loses what is on its way when it is cut."""
    client, simulator = RequestLedger(), ReplyLedger()
    up: list[tuple[int, int, bytes]] = []
    down: list[tuple[int, bytes]] = []
    ran, received, acknowledged_in = [], [], {}
    for event in [*events, "cut", *["send", "deliver", "receive"] * 20]:
        if event == "send" and len(client.pending) < window:
            number = client.last + 1
            acknowledged_in[number] = client.received  # stands in the frame, which is sent again as it is
            client.keep(STEP, (bytes([number % 256]),))
            up.append((number, client.received, bytes([number % 256])))
        elif event in ("deliver", "reply") and up:
            number, acknowledged, body = up.pop(0)
            simulator.take(number, acknowledged)
            ran.append(number)
            simulator.keep(RESULT, (b"reply " + body,))
            down.append((number, b"reply " + body))
        elif event == "receive" and down:
            number, body = down.pop(0)
            assert number == client.received + 1
            assert body == b"reply " + bytes([number % 256])
            received.append(number)
            client.settle(number)
        elif event == "cut":
            down = [(message.sequence, b"".join(message.buffers)) for message in simulator.resume(client.received)]
            missed = client.missed(simulator.taken)
            up = [
                (message.sequence, acknowledged_in[message.sequence], b"".join(message.buffers)) for message in missed
            ]
    assert ran == list(range(1, len(ran) + 1))
    assert received == list(range(1, len(received) + 1))
