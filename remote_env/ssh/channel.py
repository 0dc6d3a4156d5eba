"""One SSH channel as a `Transport`: whole sends, receives and ends that keep their deadlines."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence

import paramiko

from remote_env.errors import ConnectionLost, DeadlineExceeded
from remote_env.ssh.link import Link
from remote_env.transport import Buffer

TICK_S = 0.1  # how often a wait for the channel looks at its deadline
CLOSE_TIMEOUT_S = 1.0
WINDOW_BYTES = 16 * 2**20  # what the host may send before we take it; bounds our memory
SMALL_BYTES = 8192  # buffers below this share a packet, larger ones are not copied together
_EMPTY = memoryview(b"")


class ChannelTransport:
    """A `Transport` over an open paramiko channel, which it owns; one thread may send while another receives.

    Args:
        channel: open.
        link: the socket under the channel's connection.
        name: what is at the other end, for messages.
    """

    def __init__(self, channel: paramiko.Channel, link: Link, name: str) -> None:
        self._channel = channel
        self._link = link
        self._name = name
        self._pid = os.getpid()
        self._rest = _EMPTY
        self._is_closed = False
        channel.settimeout(TICK_S)

    @property
    def is_open(self) -> bool:
        """Whether neither end has closed it, as far as is known, and the connection under it lives."""
        return not (self._channel.closed or self._channel.eof_received)

    def send_all(self, buffers: Sequence[Buffer], deadline: float) -> None:
        """See `Transport.send_all`."""
        self._link.arm(deadline)
        try:
            for piece in _merge_small(buffers):
                self._send(memoryview(piece), deadline)
        finally:
            self._link.disarm()

    def _send(self, view: memoryview, deadline: float) -> None:
        while view:
            try:
                sent = self._channel.send(view)
            except TimeoutError as error:
                if time.monotonic() >= deadline:
                    raise DeadlineExceeded(f"{self._name} takes no more bytes before the deadline") from error
                continue
            except (OSError, EOFError, paramiko.SSHException) as error:
                raise self._broken(error, deadline) from error
            if not sent:
                raise self._broken(None, deadline)
            view = view[sent:]

    def recv_some_into(self, view: memoryview, deadline: float) -> int:
        """See `Transport.recv_some_into`."""
        rest = self._rest or memoryview(self._receive(deadline))
        if not rest:
            raise self._broken(None, deadline)
        size = min(len(view), len(rest))
        view[:size] = rest[:size]
        self._rest = rest[size:]
        return size

    def recv_exactly_into(self, view: memoryview, deadline: float) -> None:
        """See `Transport.recv_exactly_into`."""
        done, size = 0, len(view)
        while done < size:
            done += self.recv_some_into(view[done:], deadline)
            if done < size and time.monotonic() >= deadline:  # bytes may come one by one for ever
                raise DeadlineExceeded(f"{done} of {size} bytes were received before the deadline")

    def has_bytes(self) -> bool:
        """See `Transport.has_bytes`."""
        return bool(self._rest) or self._channel.recv_ready() or not self.is_open

    def read_some(self, deadline: float) -> bytes:
        """Whatever has come, at least one byte; b"" when the other end has finished sending.

        Raises:
            DeadlineExceeded: nothing came in time.
            ConnectionLost: the connection broke.
        """
        data = self._receive(deadline)
        if not data and not self._ended_in_order():
            raise self._broken(None, deadline)
        return data

    def _receive(self, deadline: float) -> bytes:
        """What has come, at least one byte, or b"" at the end."""
        self._link.arm(deadline)
        try:
            while True:
                try:
                    # All of it: paramiko's buffer would move whatever stays behind.
                    return bytes(self._channel.recv(WINDOW_BYTES))
                except TimeoutError as error:
                    if time.monotonic() >= deadline:
                        raise DeadlineExceeded("nothing was received before the deadline") from error
        except (EOFError, paramiko.SSHException) as error:
            raise self._broken(error, deadline) from error
        finally:
            self._link.disarm()

    def _ended_in_order(self) -> bool:
        return bool(self._channel.eof_received) and not self._link.expired

    def _broken(self, error: Exception | None, deadline: float) -> Exception:
        if self._link.expired and time.monotonic() >= deadline:
            return DeadlineExceeded(f"{self._name} stopped answering; the SSH connection was closed")
        if error is None and self._ended_in_order():
            return ConnectionLost(f"{self._name} closed the connection")
        if self._is_closed:
            return ConnectionLost(f"the connection to {self._name} was closed here")
        why = self._link.trouble or ("the host ended it" if self._link.ended_by_peer else str(error or ""))
        return ConnectionLost(f"the SSH connection to {self._name} broke" + (f": {why}" if why else ""))

    def finish_sending(self, deadline: float) -> None:
        """Tell the other end that no more bytes will come."""
        with self._link.armed(deadline):
            try:
                self._channel.shutdown_write()
            except (OSError, EOFError, paramiko.SSHException) as error:
                raise self._broken(error, deadline) from error

    def close(self) -> None:
        """See `Transport.close`. In a forked child it does nothing: the channel is the parent's."""
        if self._pid != os.getpid():
            return
        self._is_closed = True
        # A failure means that the connection has ended, and the channel with it.
        ended = contextlib.suppress(OSError, EOFError, paramiko.SSHException)
        with self._link.armed(time.monotonic() + CLOSE_TIMEOUT_S), ended:
            self._channel.close()


def _merge_small(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    if len(buffers) == 1:
        yield buffers[0]
        return
    small: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) < SMALL_BYTES:
            small.append(buffer)
            continue
        if small:
            yield b"".join(small)
            small = []
        yield buffer
    if small:
        yield b"".join(small)
