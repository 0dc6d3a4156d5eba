"""Who is at the other end of a socket."""

from __future__ import annotations

import socket


def peer_address(sock: socket.socket) -> str:
    """The peer's "host:port", to show; words where there is none."""
    try:
        peer = sock.getpeername()
    except OSError:
        return "a client that left at once"
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "a local socket"
