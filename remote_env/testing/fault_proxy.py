"""A real proxy that breaks real connections: cut, silent, slow, damaged. docs/testing.md, "A link that fails"."""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, TypeVar

from remote_env.errors import ConfigError
from remote_env.testing.proxied import Direction, Faults, Proxied, close_with_reset

COMMAND_TIMEOUT_S = 10.0
DRAIN_S, DRAIN_BYTES = 1.0, 1 << 20  # what a connection that was closed in order may take to take leave
Address = tuple[str, int] | str
T = TypeVar("T")


class FaultProxy:
    """Passes bytes on between its clients and `target`, and fails as it is told. It has a thread of its own.

    Every command holds for all connections, those to come included, and has happened when the method returns. "up" is
    from the client to the server, "down" is back.

    Args:
        target: host and port of a TCP server, or the path of a Unix socket.
        listen: where clients are to connect: host and port (0 for a free one), or the path of a Unix socket to make.
        seed: of whatever is random; None for another each time.

    Attributes:
        address: where clients connect: as `listen`, with the port that it got.
        connections: how many it has accepted and passed on.
        cuts: how many connections it has cut.
    """

    def __init__(self, target: Address, *, listen: Address = ("127.0.0.1", 0), seed: int | None = None) -> None:
        self._target, self._faults = target, Faults(seed)
        self._listener, self.address = _listen(listen)
        self.connections = self.cuts = 0
        self._live: list[Proxied] = []
        self._draining: dict[socket.socket, list[float]] = {}
        self._watched: dict[socket.socket, int] = {}
        self._is_paused = self._refuses = self._ends = False
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._bell, self._ear = socket.socketpair()
        self._ear.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="fault proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What happens to links

    def cut(self, *, reset: bool = False) -> int:
        """End every live connection now, at both ends; how many there were.

        Args:
            reset: TCP resets; else each end sees the other close (FIN). A Unix socket knows no resets.
        """
        return self._do(lambda: self._cut_all(reset=reset))

    def cut_every(self, mean_bytes: float | None, *, direction: Literal["up", "down", "both"] = "both") -> None:
        """Cut each connection once it has carried so many bytes: drawn anew for each, exponentially with this mean.

        Every second one, by chance, is reset. None: no longer.
        """
        if mean_bytes is not None and not mean_bytes >= 1:
            raise ConfigError(f"mean_bytes is {mean_bytes}; a link that can be of use carries 1 byte or more")
        self._do(lambda: self._draw_budgets(mean_bytes, direction))

    def cut_after(self, count: int, direction: Direction = "up", *, reset: bool = False) -> None:
        """Let so many more bytes pass in this direction, of all connections together; then cut the last one's.

        Args:
            count: bytes, 0 or more. It happens once.
            direction: that they are counted in.
            reset: as for `cut`.
        """
        _check_count(count, "count")
        self._do(lambda: self._faults.cut_after.update({direction: (count, reset)}))

    def pause(self) -> None:
        """Pass nothing on, and tell nobody: neither bytes nor ends. New connections are accepted, and stay silent."""
        self._do(lambda: setattr(self, "_is_paused", True))

    def resume(self) -> None:
        """Go on after `pause` with everything that has waited."""
        self._do(lambda: setattr(self, "_is_paused", False))

    def refuse(self, on: bool) -> None:
        """Whether new connections are closed at once; those that live go on."""
        self._do(lambda: setattr(self, "_refuses", on))

    # What happens to bytes

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Let every byte wait so long [s], by chance up to `jitter` longer, in each direction; their order is kept."""
        if not (seconds >= 0 and jitter >= 0):
            raise ConfigError(f"a delay of {seconds} s and {jitter} s; neither can be negative")
        self._do(lambda: vars(self._faults).update(delay_s=seconds, jitter_s=jitter))

    def throttle(self, bytes_per_s: float | None) -> None:
        """Carry no more than that, per connection and direction; None: as fast as it goes."""
        if bytes_per_s is not None and not bytes_per_s > 0:
            raise ConfigError(f"bytes_per_s is {bytes_per_s}; it must be above 0, or None. pause() stops all bytes")
        self._do(lambda: setattr(self._faults, "bytes_per_s", bytes_per_s))

    def trickle(self, on: bool) -> None:
        """Whether each byte is sent in a segment of its own."""
        self._do(lambda: setattr(self._faults, "trickle", on))

    def corrupt(self, *, direction: Direction, offset: int) -> None:
        """Turn one bit of the byte after the next `offset` in this direction, of all connections together."""
        _check_count(offset, "offset")
        self._do(lambda: self._faults.flips[direction].append(offset))

    def carried(self, direction: Direction) -> int:
        """How many bytes it has passed on in this direction so far."""
        return self._do(lambda: self._faults.carried[direction])

    def close(self) -> None:
        """End every connection and the thread; may be called again."""
        if self._thread.is_alive():
            with contextlib.suppress(ConfigError):  # it ended meanwhile
                self._do(lambda: setattr(self, "_ends", True))
        self._thread.join(COMMAND_TIMEOUT_S)
        self._bell.close()

    # Its thread

    def _do(self, action: Callable[[], T]) -> T:
        """Have the thread do it; what that returns."""
        done: Future[T] = Future()
        self._commands.append((action, done))
        try:
            self._bell.send(b"!")
        except OSError as error:
            raise ConfigError("this FaultProxy is closed; make another") from error
        return done.result(COMMAND_TIMEOUT_S)

    def _serve(self) -> None:
        try:
            while not self._ends:
                self._turn()
        finally:
            self._end()

    def _turn(self) -> None:
        events = {key.fileobj: mask for key, mask in self._selector.select(self._patience())}
        if self._ear in events:
            self._obey()
        if self._listener in events:
            self._accept_all()
        if not self._is_paused:
            for each in self._live:
                self._work(each, events)  # type: ignore[arg-type]  # only sockets are registered
        self._drain()
        for each in [each for each in self._live if each.over]:
            self._live.remove(each)
            self._leave(each)
        for each in self._live:
            for sock in (each.client, each.server):
                self._watch(sock, 0 if self._is_paused else each.wanted(sock))

    def _patience(self) -> float | None:
        now = time.monotonic()
        times = [each.next_time(now) for each in self._live if not self._is_paused]
        first = min([*times, *(until for until, _ in self._draining.values())], default=math.inf)
        return None if first == math.inf else max(first - now, 0.0)

    def _obey(self) -> None:
        self._ear.recv(4096)
        while self._commands:
            action, done = self._commands.popleft()
            try:
                done.set_result(action())
            except Exception as error:  # noqa: BLE001  # it is the caller's
                done.set_exception(error)

    def _accept_all(self) -> None:
        self._listener.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            while True:
                client = self._listener.accept()[0]
                if self._refuses:
                    close_with_reset(client)
                    continue
                self.connections += 1
                self._live.append(Proxied(client, self._target, self._faults))

    def _work(self, each: Proxied, events: dict[socket.socket, int]) -> None:
        if each.over:
            return
        try:
            if each.work(time.monotonic(), events):
                self._cut_spent(each)
        except OSError:  # one of its ends is gone: so is the other
            each.cut(reset=True)

    def _cut_spent(self, each: Proxied) -> None:
        self.cuts += 1
        spent = [direction for direction, (left, _) in self._faults.cut_after.items() if left <= 0]
        resets = [self._faults.cut_after.pop(direction)[1] for direction in spent]
        each.cut(reset=any(resets) if resets else each.budget[1])

    def _cut_all(self, *, reset: bool) -> int:
        self._accept_all()
        living = [each for each in self._live if not each.over]
        for each in living:
            each.cut(reset=reset)
        self.cuts += len(living)
        return len(living)

    def _draw_budgets(self, mean_bytes: float | None, direction: str) -> None:
        self._faults.mean_bytes, self._faults.cut_direction = mean_bytes, direction
        for each in self._live:
            each.budget = self._faults.draw_budget()

    def _leave(self, each: Proxied) -> None:
        """Read what still comes for a moment: closing a socket with unread bytes would be a reset."""
        for sock in (each.client, each.server):
            self._watch(sock, 0)
            if sock.fileno() >= 0:
                self._draining[sock] = [time.monotonic() + DRAIN_S, DRAIN_BYTES]
                self._watch(sock, selectors.EVENT_READ)

    def _drain(self) -> None:
        for sock, allowance in list(self._draining.items()):
            if time.monotonic() >= allowance[0] or not _read_on(sock, allowance):
                self._watch(sock, 0)
                del self._draining[sock]
                sock.close()

    def _watch(self, sock: socket.socket, wanted: int) -> None:
        known = self._watched.get(sock, 0)
        if not known and wanted:
            self._selector.register(sock, wanted)
        elif known and not wanted:
            self._selector.unregister(sock)
        elif known != wanted:
            self._selector.modify(sock, wanted)
        self._watched[sock] = wanted
        if not wanted:
            del self._watched[sock]

    def _end(self) -> None:
        for each in self._live:
            each.client.close()
            each.server.close()
        for sock in (*self._draining, self._listener, self._ear):
            sock.close()
        self._selector.close()
        if isinstance(self.address, str):
            Path(self.address).unlink(missing_ok=True)
        while self._commands:
            self._commands.popleft()[1].set_exception(ConfigError("this FaultProxy is closed; make another"))


def _listen(where: Address) -> tuple[socket.socket, Address]:
    if isinstance(where, str):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(where)
        listener.listen(128)
        return listener, os.fspath(where)
    listener = socket.create_server(where, family=socket.AF_INET6 if ":" in where[0] else socket.AF_INET, backlog=128)
    return listener, (where[0], int(listener.getsockname()[1]))


def _read_on(sock: socket.socket, allowance: list[float]) -> bool:
    """Read and forget what has come; whether more may come."""
    try:
        while allowance[1] > 0 and (size := len(sock.recv(1 << 16))):
            allowance[1] -= size
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _check_count(count: int, name: str) -> None:
    if count < 0:
        raise ConfigError(f"{name} is {count}; it counts the bytes that still pass, 0 or more")
