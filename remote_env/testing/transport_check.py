"""Every promise of `remote_env.transport.Transport`, checked over a real link."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

from remote_env.errors import ConnectionLost, DeadlineExceeded
from remote_env.testing.checks import CheckFailed, expect, expect_error, run_rules
from remote_env.transport import Buffer, Transport

Pair = tuple[Transport, Transport]
Connect = Callable[[], Pair]
PATIENCE_S = 20.0  # of what must succeed
SHORT_S = 0.05  # deadlines that are to be missed
FLOOD = 64 << 20  # more than any buffers between two ends hold


def check_transport(connect: Connect, *, break_link: Callable[[], object] | None = None) -> None:
    """Check that a transport keeps every promise of `remote_env.transport.Transport`.

    Args:
        connect: makes a new link each time: the end that is checked, and the other end, such as a `SocketTransport`
            over what a listener has accepted. Both are closed here.
        break_link: breaks the link that was made last from outside (such as `FaultProxy.cut`), where that is possible.

    Raises:
        CheckFailed: a promise is broken; `rule` says which.
    """
    run_rules(_RULES, connect)
    if break_link is not None:
        run_rules(_RULES_OF_BREAKS, connect, break_link)


def _soon(seconds: float = PATIENCE_S) -> float:
    return time.monotonic() + seconds


@contextlib.contextmanager
def _linked(connect: Connect) -> Iterator[Pair]:
    pair = connect()
    try:
        yield pair
    finally:
        for end in pair:
            end.close()


def _receive(end: Transport, count: int) -> bytes:
    data = bytearray(count)
    end.recv_exactly_into(memoryview(data), _soon())
    return bytes(data)


def _cross(sender: Transport, receiver: Transport, buffers: list[Buffer]) -> bytes:
    """What arrives of `buffers`, sent from a thread of its own."""
    errors: list[BaseException] = []

    def send() -> None:
        try:
            sender.send_all(buffers, _soon())
        except BaseException as error:  # noqa: BLE001  # raised below
            errors.append(error)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    data = _receive(receiver, sum(map(len, buffers)))
    thread.join(PATIENCE_S)
    if errors:
        raise errors[0]
    return data


def _all_bytes_in_order(connect: Connect) -> None:
    """send_all sends every byte of its buffers in order: many, large, small and empty ones, of every kind."""
    sizes = ([1], [0, 3, 0], [40, 100, 900_000], [8191, 8192, 8193, 1, 32_704, 32_705], [1] * 1100, [6_000_000])
    with _linked(connect) as (end, other):
        for each in sizes:
            buffers: list[Buffer] = [os.urandom(size) for size in each]
            buffers[0] = memoryview(bytearray(buffers[0]))
            buffers[-1] = bytearray(buffers[-1])
            sent = b"".join(buffers)
            expect(_cross(end, other, buffers) == sent, f"buffers of {str(each)[:60]} bytes arrived changed")
            expect(_cross(other, end, buffers) == sent, f"{len(sent)} bytes from the other end were received changed")


def _both_ways_at_once(connect: Connect) -> None:
    """One thread may send while another receives."""
    data = os.urandom(3_000_000)
    found: list[bytes] = []
    with _linked(connect) as (end, other):
        thread = threading.Thread(target=lambda: found.append(_cross(other, end, [data])), daemon=True)
        thread.start()
        expect(_cross(end, other, [data]) == data, "what was sent arrived changed")
        thread.join(PATIENCE_S)
    expect(found == [data], "what was received meanwhile is not what was sent")


def _some_is_at_least_one(connect: Connect) -> None:
    """recv_some_into receives at least one byte, at most what fits, says how many, and keeps the rest for later."""
    with _linked(connect) as (end, other):
        other.send_all([b"0123456789"], _soon())
        received, view = b"", memoryview(bytearray(b"......"))
        while len(received) < 10:
            count = end.recv_some_into(view[1:5], _soon())
            expect(1 <= count <= 4, f"it said {count} for a view of 4 bytes")
            expect((view[0], view[5]) == (46, 46), "it wrote outside the view")
            received += bytes(view[1 : 1 + count])
        expect(received == b"0123456789", f"{received!r} came for b'0123456789'")


def _silence_is_told(connect: Connect) -> None:
    """A receive of which nothing comes raises DeadlineExceeded, has consumed nothing, and may be repeated."""
    with _linked(connect) as (end, other):
        for _ in range(2):
            view = memoryview(bytearray(4))
            expect_error(DeadlineExceeded, "recv_some_into", lambda: end.recv_some_into(view, _soon(SHORT_S)))  # noqa: B023
        expect_error(DeadlineExceeded, "recv_some_into past its deadline", lambda: end.recv_some_into(view, _soon(-1)))
        other.send_all([b"late"], _soon())
        expect(_receive(end, 4) == b"late", "what came after the deadline was not received whole")
        end.send_all([b"well"], _soon())
        expect(_receive(other, 4) == b"well", "the other direction was harmed")


def _a_part_is_not_all(connect: Connect) -> None:
    """recv_exactly_into fills its view from as many pieces as it takes; missing bytes are DeadlineExceeded."""
    with _linked(connect) as (end, other):
        thread = threading.Thread(target=_send_pieces, args=(other, 50), daemon=True)
        thread.start()
        expect(_receive(end, 100) == b"ab" * 50, "the pieces were put together wrongly")
        thread.join(PATIENCE_S)
        other.send_all([b"abc"], _soon())
        view = memoryview(bytearray(10))
        expect_error(DeadlineExceeded, "recv_exactly_into", lambda: end.recv_exactly_into(view, _soon(SHORT_S)))


def _send_pieces(end: Transport, count: int) -> None:
    for _ in range(count):
        end.send_all([b"ab"], _soon())


def _says_whether_bytes_wait(connect: Connect) -> None:
    """has_bytes says whether a receive would return, or fail, at once; asking consumes nothing."""
    with _linked(connect) as (end, other):
        expect(not end.has_bytes(), "it said that bytes have come before any was sent")
        other.send_all([b"0123"], _soon())
        _await_bytes(end, "bytes had been sent")
        expect(_receive(end, 2) == b"01" and end.has_bytes(), "it denied that there was a rest")
        expect(_receive(end, 2) == b"23" and not end.has_bytes(), "it said that there was more than had been sent")
        other.close()
        _await_bytes(end, "the peer had closed")
    expect(end.has_bytes(), "it said that a receive after close would wait")


def _await_bytes(end: Transport, what: str) -> None:
    until = _soon()
    while not end.has_bytes():
        expect(time.monotonic() < until, f"it denied for {PATIENCE_S:g} s that a receive would return at once: {what}")
        time.sleep(0.001)


def _a_peer_that_takes_nothing(connect: Connect) -> None:
    """send_all raises DeadlineExceeded when not all bytes went out in time, and close ends the link all the same."""
    for buffers in ([bytes(FLOOD)], [bytes(FLOOD // 2)] * 2):
        with _linked(connect) as (end, _):
            expect_error(DeadlineExceeded, "send_all", lambda: end.send_all(buffers, _soon(SHORT_S)))  # noqa: B023
    with _linked(connect) as (end, other):
        expect(_cross(end, other, [b"next"]) == b"next", "the next link did not work")


def _a_peer_that_closes(connect: Connect) -> None:
    """What the peer sent before it closed is received whole; then every call raises ConnectionLost."""
    with _linked(connect) as (end, other):
        other.send_all([b"last"], _soon())
        other.close()
        expect(_receive(end, 4) == b"last", "the last bytes did not come")
        view = memoryview(bytearray(4))
        expect_error(ConnectionLost, "recv_some_into", lambda: end.recv_some_into(view, _soon()))
        expect_error(ConnectionLost, "recv_exactly_into", lambda: end.recv_exactly_into(view, _soon()))
        expect_error(ConnectionLost, "send_all", lambda: _send_on(end))
    with _linked(connect) as (end, other):
        other.send_all([b"ab"], _soon())
        other.close()
        view = memoryview(bytearray(4))
        expect_error(ConnectionLost, "recv_exactly_into", lambda: end.recv_exactly_into(view, _soon()))


def _send_on(end: Transport) -> None:
    """Send until the break is known: the first bytes after it may still find room on the way."""
    until = _soon()
    while time.monotonic() < until:
        end.send_all([bytes(1000)] * 2, until)


def _closing(connect: Connect) -> None:
    """Close ends both directions, may be called again, never raises, and turns later calls into ConnectionLost."""
    with _linked(connect) as (end, other):
        end.send_all([b"bye"], _soon())
        end.close()
        end.close()
        expect(_receive(other, 3) == b"bye", "what was sent before close did not arrive")
        view = memoryview(bytearray(1))
        expect_error(ConnectionLost, "the other end's receive", lambda: other.recv_some_into(view, _soon()))
        expect_error(ConnectionLost, "a receive after close", lambda: end.recv_some_into(view, _soon()))
        expect_error(ConnectionLost, "a send after close", lambda: end.send_all([b"x"], _soon()))
    with _linked(connect) as (end, other):
        other.close()
        end.close()  # of a link that is gone


_RULES = (
    *(_all_bytes_in_order, _both_ways_at_once, _some_is_at_least_one, _silence_is_told, _a_part_is_not_all),
    *(_says_whether_bytes_wait, _a_peer_that_takes_nothing, _a_peer_that_closes, _closing),
)


def _break_meets(connect: Connect, break_link: Callable[[], object], use: Callable[[Transport], object]) -> None:
    with _linked(connect) as (end, other):
        expect(_cross(end, other, [b"there"]) == b"there", "the link did not work")
        breaker = threading.Thread(target=break_link, daemon=True)
        breaker.start()
        expect_error(ConnectionLost, "the call that the break met", lambda: use(end))
        breaker.join(PATIENCE_S)
        if breaker.is_alive():
            raise CheckFailed(f"break_link did not return within {PATIENCE_S:g} s")


def _a_break_meets_a_receive(connect: Connect, break_link: Callable[[], object]) -> None:
    """A receive that a broken link leaves without bytes raises ConnectionLost, long before its deadline."""
    _break_meets(connect, break_link, lambda end: end.recv_some_into(memoryview(bytearray(1)), _soon()))
    _break_meets(connect, break_link, lambda end: end.recv_exactly_into(memoryview(bytearray(9)), _soon()))


def _a_break_meets_a_send(connect: Connect, break_link: Callable[[], object]) -> None:
    """A send whose link breaks raises ConnectionLost."""
    _break_meets(connect, break_link, lambda end: end.send_all([bytes(FLOOD)], _soon()))


_RULES_OF_BREAKS = (_a_break_meets_a_receive, _a_break_meets_a_send)
