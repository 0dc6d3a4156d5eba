"""A slow, lossy link on this machine, with TCP's real behaviour: two TUN devices and a process that carries packets.

    python -m benchmarks.link --delay-ms 20 [--loss 0.01] [--rate-mbit 100] -- COMMAND…

COMMAND runs at the far end of the link, in a network namespace of its own, which is reached at 10.78.0.2 and sees this
machine at 10.78.0.1. For kernels without `tc netem`; needs root, `ip`, `unshare` and `nsenter`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NEAR, FAR = "10.78.0.1", "10.78.0.2"
MADE_IN_S = 20.0

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TUN_NO_PI = 0x1001
_MTU_BYTES = 1500
_QUEUE_BYTES = 4 << 20  # of each direction; what finds it full is dropped, as a router does
_BATCH = 64


@dataclass(frozen=True)
class Link:
    """A link, while it is up.

    Attributes:
        near: our address.
        far: the other end's.
        enter: a command that runs the one behind it at the far end.
    """

    near: str
    far: str
    enter: list[str]


@contextlib.contextmanager
def slow_link(delay_s: float, *, loss: float = 0.0, rate_bits_per_s: float = 0.0) -> Iterator[Link]:
    """A link with this delay each way.

    Args:
        delay_s: of each packet, each way [s]: a round trip takes twice that.
        loss: the share of packets that vanish, 0 to 1.
        rate_bits_per_s: how much passes each way; 0: all that comes.
    """
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        raise SystemExit("a slow link needs root and /dev/net/tun")
    host = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
    carrier = None
    try:
        _wait_for_own_network(host.pid)
        arguments = [str(value) for value in (host.pid, delay_s, loss, rate_bits_per_s)]
        carrier = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.link", "--carry", *arguments], stdout=subprocess.PIPE
        )
        if not carrier.stdout or carrier.stdout.readline() != b"up\n":
            raise SystemExit("the link could not be made; see above")
        enter = ["nsenter", "--net", "--target", str(host.pid)]
        subprocess.run([*enter, "ip", "link", "set", "lo", "up"], check=True, timeout=MADE_IN_S)
        yield Link(NEAR, FAR, enter)
    finally:
        if carrier is not None:
            carrier.kill()
            carrier.communicate(timeout=MADE_IN_S)
        host.communicate(timeout=MADE_IN_S)


def _wait_for_own_network(pid: int) -> None:
    deadline = time.monotonic() + MADE_IN_S
    while Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
        if time.monotonic() > deadline:
            raise SystemExit("no network namespace could be made")
        time.sleep(0.005)


def carry(host_pid: int, delay_s: float, loss: float, rate_bits_per_s: float) -> None:
    """Be the link, until killed."""
    ends = [_open_tun(None, NEAR), _open_tun(host_pid, FAR)]
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    free_at = dict.fromkeys(ends, 0.0)  # when the wire out of that end has sent what it has
    poll = select.epoll()
    for end in ends:
        poll.register(end, select.EPOLLIN)
    chance = random.Random(1)
    waiting: list[tuple[float, int, int, bytes]] = []
    count = 0
    print("up", flush=True)
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else -1
        for end, _ in poll.poll(timeout):
            for packet in _read_packets(end):
                now = time.monotonic()
                seconds = len(packet) * 8 / rate_bits_per_s if rate_bits_per_s else 0.0
                start = max(now, free_at[end])
                if chance.random() < loss or (start - now) * rate_bits_per_s > _QUEUE_BYTES * 8:
                    continue
                free_at[end] = start + seconds
                count += 1
                heapq.heappush(waiting, (start + seconds + delay_s, count, other[end], packet))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, end, packet = heapq.heappop(waiting)
            with contextlib.suppress(BlockingIOError):  # the device's queue is full: lost, as on a wire
                os.write(end, packet)


def _read_packets(end: int) -> Iterator[bytes]:
    for _ in range(_BATCH):
        try:
            yield os.read(end, _MTU_BYTES + 64)
        except BlockingIOError:
            return


def _open_tun(pid: int | None, address: str) -> int:
    """A TUN device with that address in the network of `pid`, or in ours."""
    name = f"slow{os.getpid()}"[:15]
    with _inside(pid):
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
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
        pid, delay_s, loss, rate = sys.argv[2:]
        carry(int(pid), float(delay_s), float(loss), float(rate))
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
