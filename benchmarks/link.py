"""A slow, lossy link on this machine, with TCP's real behaviour: two TUN devices and a process that carries packets.

    python -m benchmarks.link --delay-ms 20 [--loss 0.01] [--rate-mbit 100] -- COMMAND…

COMMAND runs at the far end of the link, in a network namespace of its own, which is reached at 10.78.0.2 and sees this
machine at 10.78.0.1; while another link is up, at 10.78.1.2 and so on. For kernels without `tc netem`;
needs root, `ip`, `unshare` and `nsenter`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NETWORK = "10.78.{}."  # and 1 for the near end, 2 for the far one
MADE_IN_S = 20.0

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TUN_NO_PI = 0x1001
_IFF_VNET_HDR = 0x4000
_TUNSETOFFLOAD = 0x400454D0
_TUN_F_CSUM_TSO4 = 0x03
_VNET_HDR_BYTES = 10  # before each packet: what is left to do to it
_PR_SET_TIMERSLACK = 29  # linux/prctl.h
_FAST_BITS_PER_S = 500e6
_MTU_BYTES = 1500
_QUEUE_BYTES = 4 << 20  # of each direction; what finds it full is dropped, as a router does
_BATCH = 64
_STDIN = 0


@dataclass(frozen=True)
class Link:
    """A link, while it is up.

    Attributes:
        near: our address.
        far: the other end's.
        enter: a command that runs the one behind it at the far end.
        device: the name of ours.
    """

    near: str
    far: str
    enter: list[str]
    device: str

    @property
    def received_bytes(self) -> int:
        """How much has come to us over the link, with the headers of its packets."""
        return int(Path(f"/sys/class/net/{self.device}/statistics/rx_bytes").read_text())


@contextlib.contextmanager
def slow_link(
    delay_s: float, *, loss: float = 0.0, rate_bits_per_s: float = 0.0, congestion_control: str = ""
) -> Iterator[Link]:
    """A link with this delay each way.

    Args:
        delay_s: of each packet, each way [s]: a round trip takes twice that.
        loss: the share of packets that vanish, 0 to 1.
        rate_bits_per_s: how much passes each way; 0: all that comes.
        congestion_control: of TCP at both ends ("cubic", "bbr"); "": this machine's.
    """
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        raise SystemExit("a slow link needs root and /dev/net/tun")
    claim, network = _claim_network()
    host = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
    carrier = None
    try:
        _wait_for_own_network(host.pid)
        arguments = [str(value) for value in (network, host.pid, delay_s, loss, rate_bits_per_s)]
        command = [sys.executable, "-m", "benchmarks.link", "--carry", *arguments]
        carrier = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if not carrier.stdout or carrier.stdout.readline() != b"up\n":
            raise SystemExit("the link could not be made; see above")
        enter = ["nsenter", "--net", "--target", str(host.pid)]
        subprocess.run([*enter, "ip", "link", "set", "lo", "up"], check=True, timeout=MADE_IN_S)
        link = Link(f"{network}1", f"{network}2", enter, _device_name(carrier.pid))
        if congestion_control:
            _set_congestion_control(link, network, congestion_control)
        yield link
    finally:
        if carrier is not None:
            carrier.kill()
            carrier.communicate(timeout=MADE_IN_S)
        host.communicate(timeout=MADE_IN_S)
        claim.close()


def _set_congestion_control(link: Link, network: str, name: str) -> None:
    """Of what goes over this link alone."""
    for enter, address in (([], link.near), (link.enter, link.far)):
        route = f"ip route change {network}0/24 dev {link.device} src {address} congctl {name}"
        subprocess.run([*enter, *route.split()], check=True, timeout=MADE_IN_S)


def _claim_network() -> tuple[socket.socket, str]:
    """Addresses that no other link has, their last number left out; ours until the socket is closed."""
    claim = socket.socket(socket.AF_UNIX)
    for number in range(256):
        with contextlib.suppress(OSError):  # another link's
            claim.bind(f"\0slow link {number}")
            return claim, NETWORK.format(number)
    raise SystemExit("256 slow links are up already")


def _wait_for_own_network(pid: int) -> None:
    deadline = time.monotonic() + MADE_IN_S
    while Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
        if time.monotonic() > deadline:
            raise SystemExit("no network namespace could be made")
        time.sleep(0.005)


class _Direction:
    """One way through the link: what has come out of one device and is to go into the other.

    Args:
        source: the device that it comes from.
        sink: the one that it goes to.
        header_bytes: before each packet, which no wire would carry.
    """

    def __init__(self, source: int, sink: int, header_bytes: int) -> None:
        self.source, self.sink, self._header_bytes = source, sink, header_bytes
        self._free_at = 0.0  # when the wire has sent what it has
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._chance = random.Random(source)

    def take(self, delay_s: float, loss: float, rate_bits_per_s: float) -> None:
        """Read what waits in the device."""
        for packet in _read_packets(self.source):
            now = time.monotonic()
            bits = (len(packet) - self._header_bytes) * 8
            start = max(now, self._free_at)
            if self._chance.random() < loss or (start - now) * rate_bits_per_s > _QUEUE_BYTES * 8:
                continue
            self._free_at = start + (bits / rate_bits_per_s if rate_bits_per_s else 0.0)
            self._waiting.append((self._free_at + delay_s, packet))

    def give(self) -> float | None:
        """Write what is due; when the next is [s, monotonic], None when nothing waits."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= time.monotonic():
            _, packet = waiting.popleft()
            with contextlib.suppress(BlockingIOError):  # the device's queue is full: lost, as on a wire
                os.write(self.sink, packet)
        return waiting[0][0] if waiting else None


def carry(network: str, host_pid: int, delay_s: float, loss: float, rate_bits_per_s: float) -> None:
    """Be the link, until standard input ends."""
    # A fast one takes what TCP hands over in one piece, as network cards do: Python could not follow packet by packet.
    whole = not loss and (not rate_bits_per_s or rate_bits_per_s >= _FAST_BITS_PER_S)
    near, far = _open_tun(None, f"{network}1", whole=whole), _open_tun(host_pid, f"{network}2", whole=whole)
    header_bytes = _VNET_HDR_BYTES if whole else 0
    directions = {end: _Direction(end, other, header_bytes) for end, other in ((near, far), (far, near))}
    _be_punctual()
    print("up", flush=True)
    due: list[float] = []
    while True:
        # Not epoll: it counts in whole milliseconds.
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        ready, _, _ = select.select([near, far, _STDIN], [], [], timeout)
        if _STDIN in ready:
            return
        for end in ready:
            directions[end].take(delay_s, loss, rate_bits_per_s)
        due = [at for at in (direction.give() for direction in directions.values()) if at is not None]


def _be_punctual() -> None:
    """Wake up when due: a wire does not wait for a CPU, nor for the kernel to gather timers."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with contextlib.suppress(PermissionError):  # in a container that may not
        os.setpriority(os.PRIO_PROCESS, 0, -20)


def _read_packets(end: int) -> Iterator[bytes]:
    for _ in range(_BATCH):
        try:
            yield os.read(end, (64 << 10) + _VNET_HDR_BYTES)
        except BlockingIOError:
            return


def _device_name(carrier_pid: int) -> str:
    return f"slow{carrier_pid}"[:15]


def _open_tun(pid: int | None, address: str, *, whole: bool) -> int:
    """A TUN device with that address in the network of `pid`, or in ours; `whole`: TCP's pieces are not cut up."""
    name = _device_name(os.getpid())
    with _inside(pid):
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        flags = _IFF_TUN_NO_PI | (_IFF_VNET_HDR if whole else 0)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        if whole:
            fcntl.ioctl(device, _TUNSETOFFLOAD, _TUN_F_CSUM_TSO4)
        for command in (
            f"ip addr add {address}/24 dev {name}",
            f"ip link set {name} up mtu {_MTU_BYTES} txqueuelen 2000",
        ):
            subprocess.run(command.split(), check=True, timeout=MADE_IN_S)
    return device


@contextlib.contextmanager
def _inside(pid: int | None) -> Iterator[None]:
    if pid is None:
        yield
        return
    home, there = (os.open(f"/proc/{name}/ns/net", os.O_RDONLY) for name in ("self", pid))
    try:
        _set_namespace(there)
        yield
    finally:
        _set_namespace(home)
        os.close(home)
        os.close(there)


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def main() -> int:
    """Make a link and run a command at its far end."""
    if sys.argv[1:2] == ["--carry"]:
        network, pid, delay_s, loss, rate = sys.argv[2:]
        carry(network, int(pid), float(delay_s), float(loss), float(rate))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay-ms", type=float, default=20.0, help="each way (default 20)")
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets that vanish (default 0)")
    parser.add_argument("--rate-mbit", type=float, default=0.0, help="Mbit/s each way (default: no limit)")
    parser.add_argument("command", nargs="+", help="what to run at the far end")
    options = parser.parse_args()
    with slow_link(options.delay_ms / 1e3, loss=options.loss, rate_bits_per_s=options.rate_mbit * 1e6) as link:
        return subprocess.run([*link.enter, *options.command], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
