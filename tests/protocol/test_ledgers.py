"""The two ledgers against each other, with random requests, windows, cuts and buffers that their makers use again."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from remote_env.errors import ProtocolError
from remote_env.protocol.ledger import Buffer, Message, ReplyLedger, RequestLedger

LIMIT_BYTES = 2_000
PAYLOADS = st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=3)


def whole(buffers: object) -> bytes:
    """The bytes on the wire."""
    return b"".join(map(bytes, buffers))  # type: ignore[call-overload]


def answer(request: bytes) -> bytes:
    """What the task says to a request."""
    return hashlib.sha256(request).digest() + request[:50]


class Ledgers(RuleBasedStateMachine):
    """A client, a simulator, and what is under way between them.

    The client's and the task's buffers are used again and filled with noise whenever the ledgers allow it: a request's
    once it is owned or answered, a reply's as soon as the next request is taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests, self.replies = RequestLedger(), ReplyLedger(LIMIT_BYTES)
        self.sent: dict[int, tuple[bytes, int]] = {}  # what each request was at first: its bytes, what it acknowledged
        self.ran: list[bytes] = []
        self.answers: dict[int, bytes] = {}
        self.got: dict[int, bytes] = {}
        self.up: list[tuple[int, int, bytes]] = []
        self.down: list[tuple[int, bytes]] = []
        self.is_joined = True
        self.reply_memory = bytearray(400)  # the task's: each reply lies in it
        self.lent: list[bytearray] = []  # the client's: what its pending requests lie in until they are owned

    @initialize(window=st.integers(1, 5))
    def choose_window(self, window: int) -> None:
        self.window = window

    # The client

    @precondition(lambda self: len(self.sent) - self.requests.received < self.window)
    @rule(parts=PAYLOADS, is_owned=st.booleans())
    def ask(self, parts: list[bytes], is_owned: bool) -> None:
        buffers = [bytearray(part) for part in parts]
        sequence, acknowledged = self.requests.last + 1, self.requests.received
        self.requests.keep(34, [memoryview(buffer) for buffer in buffers])
        self.sent[sequence] = whole(buffers), acknowledged
        if self.is_joined:
            self.up.append((sequence, acknowledged, whole(buffers)))
        self.lent += buffers
        if is_owned:  # as `step_async` does
            self.requests.own(len(self.requests.pending) - 1)
            spoil(*buffers)

    @precondition(lambda self: self.requests.lone is None and not self.requests.queue)
    @rule(step=st.binary(min_size=1, max_size=300))
    def step_alone(self, step: bytes) -> None:
        """As `Session.step` does where nothing else is under way."""
        buffer, received = bytearray(step), self.requests.received
        self.requests.lone = (received + 1, buffer)
        self.sent[received + 1] = step, received
        if self.is_joined:
            self.up.append((received + 1, received, step))
        self.lent.append(buffer)

    @precondition(lambda self: self.down)
    @rule()
    def read_reply(self) -> None:
        sequence, body = self.down.pop(0)
        assert sequence == self.requests.received + 1
        self.got[sequence] = body
        self.requests.settle(sequence)

    # The link

    @precondition(lambda self: self.is_joined)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        """A suffix is lost in each direction; the simulator may still read what came before that."""
        self.up = self.up[: data.draw(st.integers(0, len(self.up)))]
        self.down = []
        self.is_joined = False
        self.requests.own()
        spoil(*self.lent)
        self.lent.clear()

    @precondition(lambda self: not self.is_joined)
    @rule()
    def join(self) -> None:
        """The simulator has read what there was of the old connection, or never will."""
        self.up = []
        missed = self.replies.resume(self.requests.received)
        self.down = [(message.sequence, whole(message.buffers)) for message in missed]
        self.up = [self.as_sent(message) for message in self.requests.missed(self.replies.taken)]
        self.is_joined = True

    def as_sent(self, message: Message) -> tuple[int, int, bytes]:
        body, acknowledged = self.sent[message.sequence]
        assert whole(message.buffers) == body, "sent again, and not byte for byte"
        return message.sequence, acknowledged, body

    # The simulator

    @precondition(lambda self: self.up)
    @rule(size=st.integers(0, 400), is_lone=st.booleans())
    def run(self, size: int, is_lone: bool) -> None:
        sequence, acknowledged, body = self.up[0]
        if sum(len(self.answers[number]) for number in range(self.known(acknowledged) + 1, sequence)) > LIMIT_BYTES:
            with pytest.raises(ProtocolError, match="wait for being acknowledged"):
                self.replies.take(sequence, acknowledged)
            self.is_joined, self.up = False, []  # what was sent before that still arrives
            self.requests.own()
            return
        self.up.pop(0)
        self.replies.take(sequence, acknowledged)
        spoil(self.reply_memory)  # the task may now change what its last reply was made of
        self.ran.append(body)
        reply = (answer(body) * 10)[:size]
        self.reply_memory[: len(reply)] = reply
        buffers: list[Buffer] = [bytes(8), memoryview(self.reply_memory)[: len(reply)]]
        if is_lone:  # as a vector's step is answered
            del buffers[0]
            self.replies.lone = buffers[0]
        else:
            self.replies.keep(64, buffers)
        self.answers[sequence] = whole(buffers)
        if self.is_joined:
            self.down.append((sequence, whole(buffers)))

    def known(self, acknowledged: int) -> int:
        """The last reply that the simulator knows its client to have, if a request says so much."""
        return max(acknowledged, self.replies.acknowledged)

    @rule(sequence=st.integers(0, 100), acknowledged=st.integers(0, 100))
    def refuse_what_is_not_due(self, sequence: int, acknowledged: int) -> None:
        due = self.replies.taken + 1
        if sequence == due and self.replies.stated <= acknowledged < due:
            return
        before = self.replies.taken, self.replies.acknowledged, list(self.replies.replies)
        with pytest.raises(ProtocolError, match=r"is due|is acknowledged"):
            self.replies.take(sequence, acknowledged)
        assert before == (self.replies.taken, self.replies.acknowledged, list(self.replies.replies))

    # What must hold

    @invariant()
    def each_request_runs_once_and_in_order(self) -> None:
        assert self.ran == [self.sent[number][0] for number in range(1, len(self.ran) + 1)]

    @invariant()
    def each_reply_is_that_of_its_request(self) -> None:
        assert self.got == {number: self.answers[number] for number in range(1, self.requests.received + 1)}

    @rule()  # and no invariant: asking after what a ledger keeps puts it in order
    def nothing_unacknowledged_is_dropped(self) -> None:
        kept = [message.sequence for message in self.replies.replies]
        assert kept == [*range(self.replies.acknowledged + 1, self.replies.taken + 1)]
        under_way = [message.sequence for message in self.requests.pending]
        assert under_way == [*range(self.requests.received + 1, len(self.sent) + 1)]

    def teardown(self) -> None:
        """Left alone, everything comes to its end."""
        while self.requests.received < len(self.sent):
            if not self.is_joined:
                self.join()
            elif self.down:
                self.read_reply()
            else:
                assert self.up, "a request is under way, and nothing is"
                self.run(20, is_lone=False)
            self.each_request_runs_once_and_in_order()
            self.each_reply_is_that_of_its_request()
        assert len(self.got) == len(self.sent)


def spoil(*buffers: bytearray) -> None:
    """Use memory again."""
    for buffer in buffers:
        buffer[:] = b"\xee" * len(buffer)


TestLedgers = Ledgers.TestCase
TestLedgers.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
