"""What each end keeps until the other has it, so that no request runs twice and no reply is lost. Standard library.

Sequence numbers run over all connections of a session, without gaps. Whatever is sent again is sent byte for byte.

A client that steps without looking ahead has one request under way, and its simulator one reply. Each is noted by one
assignment, to `lone`; only what a cut, a deadline or a window leaves behind becomes a `Message`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from remote_env.errors import ProtocolError
from remote_env.protocol import frames

Buffer = bytes | bytearray | memoryview

REPLIES_LIMIT_BYTES = 64 << 20  # of replies that are not acknowledged, before another request is taken


class Message(NamedTuple):
    """A frame with its payload, as it goes out.

    Attributes:
        sequence: of the request.
        kind: its type.
        buffers: its bytes; memory of whoever made it until `own`.
        size: in bytes.
    """

    sequence: int
    kind: int
    buffers: Sequence[Buffer]
    size: int


class RequestLedger:
    """The client's half: the requests that are under way.

    Attributes:
        received: the last reply that was read whole; 0 before the first.
        lone: the number and the one buffer of a STEP that was noted without more ado; or None. It may be set only
            where nothing is under way, and is over once `received` says so.
        queue: the other requests; of those that are answered some may still be there.
    """

    __slots__ = ("lone", "queue", "received")

    def __init__(self) -> None:
        self.received = 0
        self.lone: tuple[int, Buffer] | None = None
        self.queue: deque[Message] = deque()

    @property
    def pending(self) -> deque[Message]:
        """The requests without a reply, in order. A Ctrl-C between any two lines changes nothing about them."""
        queue, received = self.queue, self.received
        if self.lone is not None:
            sequence, step = self.lone
            if sequence > received and not queue:
                queue.append(Message(sequence, frames.STEP, (step,), len(step)))
            self.lone = None
        while queue and queue[0][0] <= received:
            queue.popleft()
        return queue

    @property
    def last(self) -> int:
        """The number of the last request."""
        pending = self.pending
        return pending[-1][0] if pending else self.received

    def keep(self, kind: int, buffers: Sequence[Buffer]) -> None:
        """Note the request number `last` + 1, before any of it is sent."""
        pending = self.pending
        sequence = (pending[-1][0] if pending else self.received) + 1
        pending.append(Message(sequence, kind, buffers, sum(map(len, buffers))))

    def settle(self, sequence: int) -> None:
        """Note that the reply to this request has been read whole; replies come in order."""
        self.received = sequence
        self.lone = None  # or it stands in the queue
        queue = self.queue
        while queue and queue[0][0] <= sequence:
            queue.popleft()

    def own(self, start: int = 0) -> None:
        """Copy what is under way, from the `start`th on: its memory is its maker's again."""
        pending = self.pending
        for index in range(start, len(pending)):
            pending[index] = _owned(pending[index])

    def missed(self, taken: int) -> list[Message]:
        """What a simulator that has taken request `taken` has yet to be sent.

        Raises:
            ProtocolError: it claims a request that was never sent, or has forgotten one that it answered.
        """
        if not self.received <= taken <= self.last:
            raise ProtocolError(
                f"the simulator has taken request {taken}; {self.received} were answered and {self.last} sent"
            )
        return [message for message in self.pending if message.sequence > taken]


class ReplyLedger:
    """The simulator's half: the replies that the client is not known to have.

    Args:
        limit_bytes: of replies, beyond which no further request is taken.

    Attributes:
        taken: the last request that was taken; 0 before the first.
        acknowledged: the last reply that the client is known to have.
        stated: what the last request acknowledged: all that its sender knew. One that is sent again after a cut says
            what it said at first, which may be less than `acknowledged`.
        lone: the reply to the request that was taken last, when it was noted without more ado, in one buffer; or None.
        queue: the other replies that it is not known to have.
    """

    __slots__ = ("_owned", "acknowledged", "limit_bytes", "lone", "queue", "stated", "taken")

    def __init__(self, limit_bytes: int = REPLIES_LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.taken = self.acknowledged = self.stated = 0
        self.lone: Buffer | None = None
        self.queue: deque[Message] = deque()
        self._owned = 0  # how many of them are copies of ours

    @property
    def replies(self) -> deque[Message]:
        """The replies that the client is not known to have, in order."""
        result, self.lone = self.lone, None
        if result is not None:
            self.queue.append(Message(self.taken, frames.RESULT, (result,), len(result)))
        return self.queue

    def take(self, sequence: int, acknowledged: int) -> None:
        """Take a request; to be called before it runs, since a task may change what its last reply was made of.

        Raises:
            ProtocolError: it is not the next one, acknowledges what was never sent or less than an earlier one, or
                replies above the limit wait for being acknowledged; it is not taken, and the connection must end.
        """
        taken = self.taken
        if sequence == taken + 1 and acknowledged == taken:  # the client has all of them
            self.lone = None
            if self.queue:
                self.queue.clear()
                self._owned = 0
            self.taken, self.stated, self.acknowledged = sequence, acknowledged, acknowledged
            return
        if sequence != taken + 1:
            raise ProtocolError(f"request {sequence} where {taken + 1} is due")
        if acknowledged != taken:
            self._check_acknowledged(acknowledged, self.stated)
        if acknowledged > self.acknowledged:
            self.acknowledge(acknowledged)
        if self.replies:
            self._keep_own()
        self.taken, self.stated = sequence, acknowledged

    def _check_acknowledged(self, acknowledged: int, least: int) -> None:
        if not least <= acknowledged <= self.taken:
            raise ProtocolError(f"reply {acknowledged} is acknowledged; {least} to {self.taken} could be")

    def acknowledge(self, acknowledged: int) -> None:
        """Forget the replies up to this one."""
        self.acknowledged = acknowledged
        replies = self.replies
        while replies and replies[0][0] <= acknowledged:
            replies.popleft()
            self._owned = max(self._owned - 1, 0)

    def _keep_own(self) -> None:
        replies = self.replies
        waiting = sum(message.size for message in replies)
        if waiting > self.limit_bytes:
            raise ProtocolError(
                f"replies of {waiting} bytes wait for being acknowledged; at most {self.limit_bytes} do before another "
                "request: connect again, which acknowledges what has come"
            )
        for index in range(self._owned, len(replies)):
            replies[index] = _owned(replies[index])
        self._owned = len(replies)

    def keep(self, kind: int, buffers: Sequence[Buffer]) -> None:
        """Note the reply to the request that was taken last, before any of it is sent.

        Its memory must not change before the next `take`, which copies it if it is still needed then.
        """
        self.replies.append(Message(self.taken, kind, buffers, sum(map(len, buffers))))

    def resume(self, received: int) -> list[Message]:
        """What a client whose last reply was `received` has yet to be sent.

        Raises:
            ProtocolError: it claims a reply that was never sent, or has forgotten one that it acknowledged.
        """
        self._check_acknowledged(received, self.acknowledged)
        self.acknowledge(received)
        return list(self.replies)


def _owned(message: Message) -> Message:
    if all(type(buffer) is bytes for buffer in message.buffers):
        return message
    return message._replace(buffers=[bytes(buffer) for buffer in message.buffers])
