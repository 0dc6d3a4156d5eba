"""What is under an SSH connection, whose calls all keep deadlines, and which notices a silent host.

paramiko's own time-outs slip once sshd stops answering: a blocked write is retried for ever. Here whoever
waits names its deadline (`arm`), and every tick of the link looks whether one has passed; if so the link is
shut down, which wakes every waiting thread. There is no watchdog thread: a stuck connection always has a thread
inside `send` or `recv`. Links that lie on one another (jump hosts) share their deadlines: whichever thread ticks,
sees all of them, and what is shut down is the lowest.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import paramiko
from paramiko.packet import Packetizer

from remote_env.ssh.ways import TICK_S, Way

GRACE_S = 0.4  # a local time-out comes first; only a call that is stuck beyond it costs the connection
ANSWER_TICK_S = 0.002  # how often one who has asked looks for the answer
GREETING_LIMIT = REFUSAL_LIMIT = 256
GLOBAL_REQUEST = 80  # RFC 4254, section 4

_FAST_CIPHERS = (  # aes128-gcm moved 3 × the bytes of paramiko's first choice, aes128-ctr with HMAC
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
_MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)
_GONE = (errno.ECONNRESET, errno.EPIPE)


class Link:
    """A way to a host as paramiko uses it.

    Args:
        way: what carries the bytes.
        below: the link of the jump host, when `way` is one of its channels.

    Attributes:
        ended_by_peer: the host closed or reset the connection.
        greeting: the first bytes that the host sent.
    """

    def __init__(self, way: Way, below: Link | None = None) -> None:
        self._way = way
        self._below = below
        self._send, self._recv = way.send, way.recv
        self._armed: dict[int, float] = {} if below is None else below._armed
        self._next_check = 0.0
        self._closed = False  # paramiko reads it
        self._expired = False
        self._silence = ""
        self._alive_interval_s, self._alive_limit_s = 0.0, float("inf")
        self._received = 1  # how often something came; and how often it had at the last check
        self._checked = 0
        self._heard_at = self._asked_at = 0.0
        self._unanswered_since: float | None = None  # the first question that nothing has come after
        self.ended_by_peer = False
        self.greeting = b""

    @property
    def expired(self) -> bool:
        """A deadline passed and the link was shut down for it."""
        return self._expired or (self._below is not None and self._below.expired)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more can come: the host hung up, it was given up, or the link was closed here."""
        return self._closed or self.ended_by_peer or self.expired or bool(self._silence)

    @property
    def trouble(self) -> str:
        """What is known of why the link ended; "" when nothing is."""
        return self._silence or self._way.trouble()

    def arm(self, deadline: float) -> None:
        """Shut the link down when this thread has not called `disarm` by shortly after `deadline`, or after now."""
        self._armed[threading.get_ident()] = max(deadline, time.monotonic()) + GRACE_S

    def disarm(self) -> None:
        """The calling thread no longer waits."""
        self._armed.pop(threading.get_ident(), None)

    @contextlib.contextmanager
    def armed(self, deadline: float) -> Iterator[None]:
        """`arm` before the block, and what held before after it."""
        me = threading.get_ident()
        before = self._armed.get(me)
        self.arm(deadline)
        try:
            yield
        finally:
            self.disarm()
            if before is not None:
                self._armed[me] = before

    @property
    def received(self) -> int:
        """How often something has come from the host; what changes when it lives."""
        return self._received

    @property
    def silent_s(self) -> float:
        """For how long nothing has come [s], to within a few ticks."""
        return 0.0 if self._received != self._checked else time.monotonic() - self._heard_at

    def watch_silence(self, interval_s: float, count: int) -> None:
        """From now on ask a silent host every `interval_s` [s], and give it up after `count` of them; 0 is never."""
        self._checked = self._received - 1
        self._alive_limit_s = interval_s * count if count else float("inf")
        self._alive_interval_s = interval_s

    def is_question_due(self) -> bool:
        """Whether the host has been silent long enough to be asked (again) whether it lives."""
        now = time.monotonic()
        if not self._alive_interval_s or now < max(self._heard_at, self._asked_at) + self._alive_interval_s:
            return False
        self._asked_at = now
        if self._unanswered_since is None:
            self._unanswered_since = now
        return True

    def settle(self) -> None:
        """See `Way.settle`."""
        self._way.settle()
        self._recv = self._way.recv

    def _check(self) -> None:
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + TICK_S / 2
        self._way.poll()
        if any(now >= deadline for deadline in list(self._armed.values())):
            self._expired = True
            self._shut_down()
        elif self._received != self._checked:
            self._checked, self._unanswered_since = self._received, None
            self._heard_at = now
        elif self._alive_interval_s:
            self._check_silence(now)

    def _check_silence(self, now: float) -> None:
        """Give the host up when a question of ours has been out for a whole interval, and the limit has passed.

        A process that was itself stopped for minutes asks first.
        """
        silent_s, asked_at = now - self._heard_at, self._unanswered_since
        has_asked = asked_at is not None and now >= asked_at + self._alive_interval_s
        if has_asked and silent_s >= self._alive_limit_s:
            self._silence = f"nothing came from it for {silent_s:.0f} s (ServerAliveInterval × ServerAliveCountMax)"
            self._shut_down()

    def send(self, data: bytes) -> int:
        """Send some of `data`; for paramiko.

        Raises:
            TimeoutError: nothing was sent within one tick.
            OSError: the connection broke.
        """
        try:
            return self._send(data)
        except BlockingIOError as error:
            self._check()
            raise TimeoutError from error
        except OSError as error:  # a peer that is gone is met here before its end is read
            self.ended_by_peer |= error.errno in _GONE and not (self.expired or self._closed)
            raise

    def recv(self, size: int) -> bytes:
        """Receive up to `size` bytes, b"" at the end; for paramiko.

        Raises:
            TimeoutError: nothing came within one tick.
            OSError: the connection broke.
        """
        self._check()
        try:
            data = self._recv(size)
        except BlockingIOError as error:
            raise TimeoutError from error
        except OSError as error:
            self.ended_by_peer |= error.errno in _GONE
            raise
        self._received += 1
        if not data:
            self.ended_by_peer = not (self.expired or self._closed)
        if len(self.greeting) < GREETING_LIMIT:
            self.greeting += data[:GREETING_LIMIT]
        return data

    def settimeout(self, timeout: float | None) -> None:
        """Nothing: the way has its ticks."""

    def getpeername(self) -> object:
        """Something for paramiko's log."""
        return "?"

    def give_up(self, why: str) -> None:
        """The host is taken for dead: what still waits for it is told so once the link is closed."""
        self._silence = self._silence or why

    def _shut_down(self) -> None:
        self._way.shut_down()
        if self._below is not None:
            self._below._shut_down()

    def close(self) -> None:
        """End the connection; wakes whoever waits in `send` or `recv`."""
        if not self._closed:
            self._closed = True
            self._way.close()

    def abandon(self) -> None:
        """Free this process's descriptors and leave the connection to the process that opened it."""
        self._closed = True
        self._way.abandon()


class _TimerlessPacketizer(Packetizer):  # type: ignore[misc]  # paramiko has no types
    """paramiko's packets without a time-out thread per handshake, and with keys that last as long as is safe.

    RFC 4344, section 3.2: a key of a 128-bit block cipher may protect 2^32 blocks (64 GiB); paramiko's 512 MB
    would renegotiate every two seconds while images stream.
    """

    REKEY_BYTES = 2**34
    REKEY_PACKETS = 2**31

    _handshake_end = float("inf")
    on_tick: Callable[[], None] | None = None

    def start_handshake(self, timeout: float) -> None:
        self._handshake_end = time.monotonic() + timeout

    def complete_handshake(self) -> None:
        self._handshake_end = float("inf")

    def handshake_timed_out(self) -> bool:
        return time.monotonic() > self._handshake_end

    def _check_keepalive(self) -> None:
        """Called by the reading thread at every tick without a byte."""
        if self.on_tick is not None:
            self.on_tick()

    def send_if_idle(self, message: paramiko.Message) -> bool:
        """Send `message` unless another thread is writing: the reading thread must never wait for a writer."""
        lock = self._Packetizer__write_lock
        if not lock.acquire(blocking=False):
            return False
        try:
            self.send_message(message)
        finally:
            lock.release()
        return True


class Refusal(paramiko.ChannelException):  # type: ignore[misc]  # paramiko has no types
    """The host did not open a channel; `text` is why in its own words, such as "Connection refused"."""


class _Transport(paramiko.Transport):  # type: ignore[misc]  # paramiko has no types
    """paramiko's transport, which remembers the key exchange that it used, and tells why no channel was opened."""

    kex_name = ""

    def _parse_channel_open_failure(self, message: paramiko.Message) -> None:
        number, code, words = message.get_int(), message.get_int(), message.get_binary()
        text = words[:REFUSAL_LIMIT].decode(errors="replace")
        with self.lock:
            self.saved_exception = Refusal(code, "".join(letter for letter in text if letter.isprintable()))
            event = self.channel_events.pop(number, None)
            if event is not None:
                self._channels.delete(number)
                event.set()

    def _parse_newkeys(self, message: paramiko.Message) -> None:
        engine = type(self.kex_engine)
        self.kex_name = next((name for name in self.preferred_kex if self._kex_info.get(name) is engine), "")
        super()._parse_newkeys(message)


LOG_CHANNEL = "remote_env.ssh.transport"


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of paramiko's says more than that the connection broke, which is raised where it matters."""
    return not record.getMessage().startswith("Socket exception")


logging.getLogger(LOG_CHANNEL).addFilter(_is_news)
# What goes wrong is raised; without a handler Python would also print it.
logging.getLogger(LOG_CHANNEL).addHandler(logging.NullHandler())


def open_transport(link: Link) -> paramiko.Transport:
    """A paramiko transport over `link`, not yet started, with the fast ciphers first."""
    transport = _Transport(link, packetizer_class=_TimerlessPacketizer)
    transport.set_log_channel(LOG_CHANNEL)
    options = transport.get_security_options()
    options.ciphers = tuple(name for name in _FAST_CIPHERS if name in options.ciphers)
    options.digests = tuple(name for name in _MACS if name in options.digests)
    return transport


def keep_alive(transport: paramiko.Transport, link: Link, interval_s: float, count: int) -> None:
    """Ask a host that is silent for `interval_s` whether it lives, and give it up after `count` such times.

    The questions go out on the thread that reads; what waits to be written by another asks just as well.
    """
    place = weakref.ref(transport)

    def ask() -> None:
        transport = place()
        if transport is not None and link.is_question_due():
            _ask(transport)

    transport.packetizer.on_tick = ask
    link.watch_silence(interval_s, count)


def _ask(transport: paramiko.Transport) -> bool:
    """Ask the host whether it lives; whether that could be sent now, while no other thread was writing."""
    if not transport.clear_to_send.is_set():
        return False
    message = paramiko.Message()
    message.add_byte(bytes([GLOBAL_REQUEST]))
    message.add_string("keepalive@openssh.com")  # who does not know it has to say so
    message.add_boolean(True)
    return bool(transport.packetizer.send_if_idle(message))


def hears(transport: paramiko.Transport, link: Link, deadline: float) -> bool:
    """Ask the host whether it lives; whether anything comes from it by `deadline`."""
    before, is_asked = link.received, False
    while transport.is_active() and not link.has_ended and time.monotonic() < deadline:
        if link.received != before:
            return True
        if not is_asked:
            with link.armed(deadline), contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                is_asked = _ask(transport)
        time.sleep(ANSWER_TICK_S)
    return False


def negotiated(transport: paramiko.Transport) -> dict[str, str]:
    """What the two ends have agreed upon, by the names that `ssh -v` uses."""
    cipher = str(transport.local_cipher)
    return {
        "server_version": str(transport.remote_version),
        "kex": str(transport.kex_name),
        "host_key": str(transport.host_key_type),
        "cipher": cipher,
        "mac": "implicit" if "gcm" in cipher else str(transport.local_mac),
    }
