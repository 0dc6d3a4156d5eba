"""One connection through the fault proxy: two flows of bytes, and what is done to them. No thread, no selector."""

from __future__ import annotations

import contextlib
import errno
import math
import random
import socket
import struct
from collections import deque
from selectors import EVENT_READ, EVENT_WRITE
from typing import Literal

Direction = Literal["up", "down"]  # up: from the client to the server
CHUNK = 1 << 18
MAX_QUEUED = 8 << 20  # bytes that wait here in one direction; beyond that nothing more is read
BURST_S = 0.02  # what a throttled flow may send at once
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class Faults:
    """What is done to the bytes of every connection; the proxy's thread alone reads and changes it.

    Attributes:
        rng: decides whatever is random but the cuts, which have one of their own: they are the same for the same seed.
        delay_s, jitter_s: how long each byte waits, at least and at most in addition [s].
        bytes_per_s: that each direction of each connection carries at most; None for all.
        trickle: one byte at a time.
        mean_bytes, cut_direction: of the random cuts; None for none.
        cut_after: per direction, how many more bytes pass before the connection that carries the last of them is cut.
        flips: per direction, how many bytes pass before those of which one bit is turned.
        carried: per direction, how many bytes have gone out in all.
    """

    def __init__(self, seed: int | None) -> None:
        self.rng, self._cut_rng = random.Random(seed), random.Random(seed)
        self.delay_s = self.jitter_s = 0.0
        self.bytes_per_s: float | None = None
        self.trickle = False
        self.mean_bytes: float | None = None
        self.cut_direction = "both"
        self.cut_after: dict[Direction, tuple[float, bool]] = {}
        self.flips: dict[Direction, list[int]] = {"up": [], "down": []}
        self.carried: dict[Direction, int] = {"up": 0, "down": 0}

    def draw_budget(self) -> tuple[float, bool]:
        """How many bytes a connection carries before its random cut, and whether that is a reset."""
        if self.mean_bytes is None:
            return math.inf, False
        return math.ceil(self._cut_rng.expovariate(1 / self.mean_bytes)), self._cut_rng.random() < 0.5

    def draw_delay(self) -> float:
        """How long the bytes that have just come are to wait [s]."""
        return self.delay_s + self.rng.uniform(0.0, self.jitter_s)

    def flip(self, data: bytearray, direction: Direction) -> None:
        """Turn the bits whose time has come."""
        size = len(data)
        for offset in self.flips[direction]:
            if offset < size:
                data[offset] ^= 1 << self.rng.randrange(8)
        self.flips[direction] = [offset - size for offset in self.flips[direction] if offset >= size]


class Flow:
    """The bytes of one connection in one direction."""

    def __init__(self, source: socket.socket, sink: socket.socket, direction: Direction, faults: Faults) -> None:
        self.source, self.sink, self.direction, self._faults = source, sink, direction, faults
        self._queue: deque[tuple[float, memoryview]] = deque()
        self._queued = 0
        self._credit, self._credit_at = 0.0, 0.0
        self.source_ended = self.done = self.is_blocked = False

    @property
    def wants_bytes(self) -> bool:
        """Whether its source is to be read."""
        return not self.source_ended and self._queued < MAX_QUEUED

    def take(self, now: float) -> None:
        """Read what the source has; OSError when it broke."""
        try:
            data = bytearray(self.source.recv(CHUNK))
        except BlockingIOError:
            return
        if not data:
            self.source_ended = True
            return
        self._faults.flip(data, self.direction)
        due = now + self._faults.draw_delay()
        if self._queue:
            due = max(due, self._queue[-1][0])
        self._queue.append((due, memoryview(data)))
        self._queued += len(data)

    def give(self, now: float, most: float) -> int:
        """Send what is due, at most so many bytes; how many went. OSError when the sink broke."""
        gone = 0
        self.is_blocked = False
        while self._queue and self._queue[0][0] <= now and (allowed := self._allowance(now, most - gone)):
            sent = self._send(allowed)
            gone += sent
            if self.is_blocked or self._faults.trickle:
                break
        if self.source_ended and not self._queue and not self.done:
            self.done = True
            self.sink.shutdown(socket.SHUT_WR)
        return gone

    def _send(self, allowed: int) -> int:
        due, data = self._queue[0]
        try:
            sent = self.sink.send(data[:allowed])
        except BlockingIOError:
            self.is_blocked = True
            return 0
        self._queue[0] = (due, data[sent:])
        if sent == len(data):
            self._queue.popleft()
        self._queued -= sent
        self._credit -= sent
        self._faults.carried[self.direction] += sent
        return sent

    def _allowance(self, now: float, most: float) -> int:
        size = min(len(self._queue[0][1]), most)
        if self._faults.trickle:
            size = min(size, 1)
        if (rate := self._faults.bytes_per_s) is not None:
            burst = max(rate * BURST_S, 1.0)
            self._credit = min(self._credit + (now - self._credit_at) * rate, burst)
            self._credit_at = now
            size = min(size, self._credit)
        return int(size)

    def next_time(self, now: float) -> float:
        """When there is something to do that no socket tells; infinity for never."""
        if not self._queue or self.is_blocked:
            return math.inf
        due = self._queue[0][0]
        if due > now or (rate := self._faults.bytes_per_s) is None:
            return due
        return now + max(min(BURST_S / 2, len(self._queue[0][1]) / rate), (1.0 - self._credit) / rate)

    @property
    def has_bytes(self) -> bool:
        """Whether bytes wait here."""
        return bool(self._queue)


class Proxied:
    """A client's connection, and the one to the server that belongs to it.

    Attributes:
        over: it has ended; both sockets are closed or are about to be.
        budget: how many bytes may still pass before the random cut, and whether that is a reset.
    """

    def __init__(self, client: socket.socket, target: tuple[str, int] | str, faults: Faults) -> None:
        family = socket.AF_UNIX if isinstance(target, str) else _family(target)
        server = socket.socket(family, socket.SOCK_STREAM)
        self.client, self.server, self._target, self._faults = client, server, target, faults
        for sock in (client, server):
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.flows = (Flow(client, server, "up", faults), Flow(server, client, "down", faults))
        self.budget = faults.draw_budget()
        self._dialled = self._linked = self.over = False

    def wanted(self, sock: socket.socket) -> int:
        """The events that this socket is waited for; 0 for none."""
        if self.over:
            return 0
        if not self._linked:
            return EVENT_WRITE if self._dialled and sock is self.server else 0
        reads = EVENT_READ * any(flow.source is sock and flow.wants_bytes for flow in self.flows)
        return reads | EVENT_WRITE * any(flow.sink is sock and flow.is_blocked for flow in self.flows)

    def work(self, now: float, events: dict[socket.socket, int]) -> bool:
        """Move what can be moved; whether the connection is to be cut now. OSError when an end broke."""
        if not self._linked:
            self._dial(bool(events.get(self.server)))
        if not self._linked:
            return False
        for flow in self.flows:
            if events.get(flow.source, 0) & EVENT_READ and flow.wants_bytes:
                flow.take(now)
            if self._give(flow, now):
                return True
        self.over = all(flow.done for flow in self.flows)
        return False

    def _dial(self, answered: bool) -> None:
        if not self._dialled:
            self._dialled = True
            status = self.server.connect_ex(self._target)
            if status == errno.EINPROGRESS:
                return
        elif answered:
            status = self.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        else:
            return
        if status:
            raise OSError(status, "the target does not answer")
        self._linked = True

    def _give(self, flow: Flow, now: float) -> bool:
        """Whether the bytes that may pass have passed."""
        counts = self._faults.cut_direction in ("both", flow.direction)
        budget = self.budget[0] if counts else math.inf
        left, reset = self._faults.cut_after.get(flow.direction, (math.inf, False))
        gone = flow.give(now, min(budget, left))
        if counts:
            self.budget = (budget - gone, self.budget[1])
        if flow.direction in self._faults.cut_after:
            self._faults.cut_after[flow.direction] = (left - gone, reset)
        is_full = min(budget, left) <= gone
        return is_full and (gone > 0 or flow.has_bytes)

    def next_time(self, now: float) -> float:
        """When there is something to do that no socket tells."""
        return min(flow.next_time(now) for flow in self.flows) if self._linked else math.inf

    def cut(self, *, reset: bool) -> None:
        """End both connections: with a reset, or as if the process at the other end had closed its socket."""
        self.over = True
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    sock.close()
                else:
                    sock.shutdown(socket.SHUT_WR)


def close_with_reset(sock: socket.socket) -> None:
    """Close the socket so that its peer sees it break."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def _family(address: tuple[str, int]) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET
