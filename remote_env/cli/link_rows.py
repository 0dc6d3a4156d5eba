"""Rows about the way to a host: login, round trip, bytes per second, clock, forwarding."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from remote_env.cli.rows import FAIL, OK, WARN, Row, Where
from remote_env.errors import AuthError, ConnectError, HostKeyError
from remote_env.protocol.log_text import clean

ECHOES, ECHO_TIME_S, WARM_UP = 200, 3.0, 10
ECHO = b"0123456789abcde\n"
TRANSFER_BYTES, TRANSFER_TIME_S, PIECE_BYTES = 16 * 10**6, 3.0, 256 * 1024
CLOCK_ASKS = 10
FAR_MS, SLOW_MB_S, WRONG_CLOCK_S = 15.0, 5.0, 1.0
_BEGINS = "@remote-env begins"
_PROHIBITED = 1  # RFC 4254, section 5.1


def login_row(connection: Any, where: Where, deadline: float, timeout_s: float) -> Row:
    """Log in, and say as whom and how; its failure is the library's own error."""
    began = time.monotonic()
    try:
        connection.connect(deadline)
    except ConnectError as error:
        return Row("login", FAIL, str(error), _login_fix(error, where, timeout_s))
    known = connection.negotiated
    shown = [
        f"{connection.description} in {time.monotonic() - began:.2f} s by {known.get('authentication', '?')}",
        str(known.get("server_version", "")),
        f"host key {known.get('host_key', '?')}",
        f"{known.get('cipher', '?')}, {known.get('kex', '?')}",
    ]
    return Row("login", OK, "; ".join(filter(None, shown)))


def _login_fix(error: ConnectError, where: Where, timeout_s: float) -> str:
    if isinstance(error, HostKeyError):
        if change := re.search(r"ssh-keygen -f .* -R \S+", str(error)):
            return f"{change[0]}   # only if the host was installed anew"
        return f"{where.login}   # compare with what ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub says there"
    if isinstance(error, AuthError):
        return f"{where.login.replace('ssh ', 'ssh-copy-id ', 1)}   # or ssh-add, for a key with a passphrase"
    return f"{where.login.replace('ssh ', f'ssh -v -o ConnectTimeout={timeout_s:.0f} ', 1)}"


@contextlib.contextmanager
def _started(connection: Any, program: str, deadline: float) -> Iterator[Any]:
    """A program of sh that runs there, past what the account's start-up files print; no single quotes in it.

    Raises:
        ConnectError: it did not start.
    """
    command, said = f"exec sh -c 'echo {_BEGINS}; {program}'", b""
    with connection.start_command(command, stdin=None, deadline=deadline) as running:
        while not said.endswith(b"\n") or _BEGINS.encode() not in said:
            data = running.read_some(deadline)
            if not data:
                raise ConnectError(f"sh did not run {program!r} there; it said: {clean(said.decode(errors='replace'))}")
            said += data
        yield running


def round_trip_row(connection: Any, deadline: float) -> Row:
    """How long a few bytes take there and back on an open channel."""
    with _started(connection, "exec cat", deadline) as echo:
        samples = sorted(_echo_samples(echo, deadline))
    p50_ms, p99_ms = (1000 * samples[int(share * (len(samples) - 1))] for share in (0.5, 0.99))
    found = f"{p50_ms:.2f} ms p50, {p99_ms:.2f} ms p99 ({len(samples)} × {len(ECHO)} bytes)"
    if p50_ms <= FAR_MS:
        return Row("round trip", OK, found)
    fix = "record there and replay here (examples/remote_replay.py), or step many environments per call"
    return Row("round trip", WARN, f"{found}: too far for closed-loop control at 50 Hz", fix)


def _echo_samples(echo: Any, deadline: float) -> Iterator[float]:
    answer = memoryview(bytearray(len(ECHO)))
    until = time.monotonic() + ECHO_TIME_S
    for number in range(ECHOES + WARM_UP):
        began = time.monotonic()
        echo.send_all([ECHO], deadline)
        echo.recv_exactly_into(answer, deadline)
        if number >= WARM_UP or began > until:
            yield time.monotonic() - began
        if began > until:
            return


def transfer_row(connection: Any, deadline: float) -> Row:
    """How many bytes per second go each way."""
    up, down = _upload_rate(connection, deadline), _download_rate(connection, deadline)
    found = (
        f"{up:.0f} MB/s there, {down:.0f} MB/s back" if min(up, down) >= 10 else f"{up:.2g} there, {down:.2g} MB/s back"
    )
    if min(up, down) >= SLOW_MB_S:
        return Row("transfer", OK, found)
    images_s = min(up, down) * 1e6 / (480 * 640 * 3)
    fix = "record states and render here (capture_state=True, remote_env.replay)"
    return Row("transfer", WARN, f"{found}: {images_s:.1f} images of 640 × 480 a second at most", fix)


def _upload_rate(connection: Any, deadline: float) -> float:
    piece, sent = bytes(PIECE_BYTES), 0
    with _started(connection, "exec wc -c", deadline) as counter:
        began = time.monotonic()
        while sent < TRANSFER_BYTES and time.monotonic() - began < TRANSFER_TIME_S:
            counter.send_all([piece], deadline)
            sent += len(piece)
        counter.finish_sending(deadline)
        counter.read_some(deadline)  # only now it has taken them all
        return sent / 1e6 / (time.monotonic() - began)


def _download_rate(connection: Any, deadline: float) -> float:
    with _started(connection, f"read -r _; exec head -c {TRANSFER_BYTES} /dev/zero", deadline) as source:
        got, began = 0, time.monotonic()
        source.send_all([b"\n"], deadline)
        while (data := source.read_some(deadline)) and time.monotonic() - began < TRANSFER_TIME_S:
            got += len(data)
        return got / 1e6 / (time.monotonic() - began)


@dataclass(frozen=True)
class ClockSample:
    """One question to another clock.

    Attributes:
        sent: when we asked, by our clock [s].
        told: what the other clock said [s].
        received: when the answer came, by our clock [s].
        resolution: of what was told [s].
    """

    sent: float
    told: float
    received: float
    resolution: float = 0.0

    @property
    def offset(self) -> float:
        """How far the other clock is ahead [s]: ((t1 − t0) + (t2 − t3)) / 2 with t1 = t2 (RFC 5905, section 8)."""
        return ((self.told - self.sent) + (self.told - self.received)) / 2 + self.resolution / 2

    @property
    def uncertainty(self) -> float:
        """Half the round trip, for the way there may take all of it or nothing, and half the resolution [s]."""
        return (self.received - self.sent) / 2 + self.resolution / 2


def clock_row(connection: Any, where: Where, deadline: float) -> Row:
    """How far the host's clock is ahead of ours."""
    # A `date` that knows no %N, such as BusyBox's, writes nothing or the letter for it.
    with _started(connection, 'while read -r _; do date "+%s %N"; done', deadline) as clock:
        samples = [_ask_clock(clock, deadline) for _ in range(CLOCK_ASKS)]
    best = min(samples, key=lambda sample: sample.uncertainty)
    found = f"{best.offset * 1000:+.1f} ± {best.uncertainty * 1000:.1f} ms"
    if abs(best.offset) <= WRONG_CLOCK_S + best.uncertainty:
        return Row("clock", OK, found)
    fix = where.command("sudo timedatectl set-ntp true")
    return Row("clock", WARN, f"{best.offset:+.1f} ± {best.uncertainty:.1f} s: time stamps cannot be compared", fix)


def _ask_clock(clock: Any, deadline: float) -> ClockSample:
    sent, line = time.time(), b""
    clock.send_all([b"\n"], deadline)
    while b"\n" not in line and (data := clock.read_some(deadline)):
        line += data
    received = time.time()
    seconds, _, fraction = line.decode(errors="replace").strip().partition(" ")
    if fraction.isdecimal():
        return ClockSample(sent, int(seconds) + int(fraction) / 1e9, received)
    return ClockSample(sent, float(seconds or "nan"), received, resolution=1.0)


def forwarding_row(connection: Any, where: Where, deadline: float) -> Row:
    """Whether sshd lets us reach ports of the host's loopback."""
    port = connection.login.port
    fix = where.command(
        'echo "AllowTcpForwarding local" | sudo tee /etc/ssh/sshd_config.d/remote-env.conf && sudo systemctl reload ssh'
    )
    try:
        with contextlib.closing(connection.open_port(port, deadline)):
            return Row("forwarding", OK, "sshd opens ports of its own loopback for us")
    except ConnectError as error:
        if getattr(error.__cause__, "code", None) == _PROHIBITED:
            return Row("forwarding", FAIL, str(error), fix)
        return Row("forwarding", OK, f"allowed (nothing listens on port {port} there)")
