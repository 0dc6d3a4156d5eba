"""The connections at the supervisor: accept, authenticate, read, write, drop; none ever blocks it.

Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from remote_env.errors import AuthError, ConfigError, ProtocolError, RemoteEnvError, VersionMismatch
from remote_env.protocol import frames
from remote_env.protocol.handshake import ServerHandshake, pack_link
from remote_env.server.peer import HANDSHAKE_TIMEOUT_S, SEND_TIMEOUT_S, Peer

MAX_STRANGERS = 64  # connections at once that have not authenticated; one more takes the place of the oldest
MAX_PROVED = 256  # connections at once that have, and were not passed on
MAX_UNSENT_IN_ALL = 32 << 20  # bytes of answers that clients have not taken; who has taken least is dropped then
MAX_TOLD_LENGTH = 2000  # characters of a refusal, which may quote what came
LINES_AT_ONCE, LINES_EVERY_S = 50, 10.0  # of the log for those who have proved nothing
ACCEPT_PAUSE_S = 1.0
BACKLOG = 128


class Owner(Protocol):
    """Who is told what happens on the connections."""

    def on_proved(self, peer: Peer) -> None:
        """It has authenticated; its HELLO may be believed."""

    def on_message(self, peer: Peer, kind: int, sequence: int, message: dict[str, Any]) -> None:
        """It has sent a link message."""

    def on_http(self, request: bytes) -> bytes:
        """The response to an HTTP request."""

    def on_gone(self, peer: Peer) -> None:
        """It is closed, or was passed on."""


class Connections:
    """All connections that have not been passed on.

    Args:
        owner: told what happens.
        selector: what the supervisor waits on.
        listener: where connections come from; `close` closes it.
        token: what they must prove to have.
        say: writes a line to the log.
    """

    def __init__(
        self,
        owner: Owner,
        selector: selectors.BaseSelector,
        listener: socket.socket,
        token: str,
        say: Callable[[str], None],
        *,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        self._owner, self._selector, self._listener, self._say = owner, selector, listener, say
        self._token, self._handshake_timeout_s = token, handshake_timeout_s
        self._peers: dict[Peer, None] = {}  # oldest first
        self._lines, self._unsaid, self._lines_from = 0, 0, float("-inf")
        self._accept_again_at = 0.0  # while the listener rests, when it may be tried again
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def next_deadline(self) -> float:
        """When `turn` has something to do, at the latest [s, monotonic]."""
        deadlines = [peer.next_deadline for peer in self._peers]
        return min([*deadlines, self._accept_again_at or float("inf")])

    def turn(self, now: float) -> None:
        """Drop whoever is late, and let the listener rest or work."""
        for peer in [peer for peer in self._peers if peer.next_deadline < now]:
            self.drop(peer, peer.lateness(now))
        self._mind_listener(now)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            self._say(f"a connection could not be accepted: {error}")
            self._accept_again_at = time.monotonic() + ACCEPT_PAUSE_S
            return
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # two messages in a row took 40 ms without
        strangers = self._strangers()
        if len(strangers) >= MAX_STRANGERS:
            # Whoever knows the token is through in a moment, so that the oldest is the least likely to.
            self.drop(strangers[0], f"{MAX_STRANGERS} others had not proved themselves either")
        peer = Peer(sock, ServerHandshake(self._token), time.monotonic() + self._handshake_timeout_s)
        self._peers[peer] = None
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._usable(peer))

    def _strangers(self) -> list[Peer]:
        return [peer for peer in self._peers if not peer.handshake.done]

    def _mind_listener(self, now: float) -> None:
        """Let the listener rest while there are no descriptors; the kernel queues who comes."""
        if self._accept_again_at <= now:
            self._accept_again_at = 0.0
        is_accepting = self._listener in self._selector.get_map()
        if not self._accept_again_at and not is_accepting:
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        elif is_accepting and self._accept_again_at:
            self._selector.unregister(self._listener)

    def _usable(self, peer: Peer) -> None:
        """Something has come from it, or it takes more."""
        try:
            peer.flush()
            if peer.is_closing:
                self._close_when_sent(peer)
                return
            for kind, sequence, message in peer.receive():
                self._handle(peer, kind, sequence, message)
                if peer.sock is None or peer.is_closing:
                    return
            if peer.http_request:
                peer.send(self._owner.on_http(peer.http_request))
                self._close_when_sent(peer)
            elif peer.ended:
                self.drop(peer)
            else:
                self._watch(peer)
        except VersionMismatch as error:
            self.refuse(peer, "version", error)
        except AuthError as error:
            self.refuse(peer, "auth", error)
        except (ProtocolError, OSError, RecursionError) as error:  # the last of objects within objects
            self.refuse(peer, "protocol", error)
        except Exception as error:  # noqa: BLE001  no message, whatever is in it, may end the server for the others
            traceback.print_exc()
            self.refuse(peer, "protocol", error)

    def _handle(self, peer: Peer, kind: int, sequence: int, message: dict[str, Any]) -> None:
        if peer.handshake.done:
            self._owner.on_message(peer, kind, sequence, message)
            return
        reply = peer.handshake.feed(kind, message)
        if reply is not None:
            peer.send(reply)
            return
        if len(self._peers) - len(self._strangers()) > MAX_PROVED:
            many = (
                f"this server has {MAX_PROVED} connections and takes no more; end some: remote-env ps, remote-env stop"
            )
            self.refuse(peer, "busy", RemoteEnvError(many))
            return
        if peer.handshake.hello["role"] == "control":
            peer.deadline = float("inf")
        self._owner.on_proved(peer)
        peer.handshake.hello.clear()  # it may hold much besides what was asked for, and stay for long

    def _watch(self, peer: Peer) -> None:
        """Wait for what it sends, and for when it takes more if it has not taken all."""
        if peer.sock is None:
            return
        reading = 0 if peer.is_closing else selectors.EVENT_READ
        events = reading | (selectors.EVENT_WRITE if peer.unsent_size else 0)
        key = self._selector.get_key(peer.sock)
        if key.events != events:
            self._selector.modify(peer.sock, events, key.data)

    def _close_when_sent(self, peer: Peer) -> None:
        if not peer.unsent_size:
            self.drop(peer)
            return
        peer.is_closing = True
        peer.deadline = min(peer.deadline, time.monotonic() + SEND_TIMEOUT_S)
        self._watch(peer)

    def send(self, peer: Peer, kind: int, message: dict[str, Any], sequence: int = 0) -> None:
        """Send a link message; a peer that cannot be written to is dropped."""
        try:
            peer.send(pack_link(kind, message, sequence=sequence))
            self._watch(peer)
        except OSError as error:
            self.drop(peer, f"cannot be written to: {error}")
        if peer.unsent_size:
            self._bound_unsent()

    def _bound_unsent(self) -> None:
        """Drop whoever has taken least while all of them together have taken too little."""
        while sum(peer.unsent_size for peer in self._peers) > MAX_UNSENT_IN_ALL:
            self.drop(max(self._peers, key=lambda peer: peer.unsent_size), "asks for more than it takes")

    def refuse(self, peer: Peer, kind: str, error: Exception) -> None:
        """Say why, and close."""
        if peer.sock is None:
            return
        why = "".join(letter if letter.isprintable() else "?" for letter in str(error)[:MAX_TOLD_LENGTH])
        self._note_drop(peer, why)
        try:
            told = {"cut_off": error.__dict__["cut_off"]} if "cut_off" in error.__dict__ else {}
            peer.send(pack_link(frames.REFUSED, {"kind": kind, "message": why, **told}))
            self._close_when_sent(peer)
        except OSError:
            self.drop(peer)

    def hand_over(self, peer: Peer) -> socket.socket:
        """Its socket, which is not ours any more."""
        sock = peer.detach()
        self._forget(peer, sock)
        return sock

    def drop(self, peer: Peer, why: str = "") -> None:
        """Close one."""
        if peer.sock is None:
            return
        if why:
            self._note_drop(peer, why)
        self._forget(peer, peer.sock)
        peer.close()

    def _forget(self, peer: Peer, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        self._peers.pop(peer, None)
        self._owner.on_gone(peer)

    def _note_drop(self, peer: Peer, why: str) -> None:
        """A line of the log; of many strangers only some, or they would drive everything else out of it."""
        now = time.monotonic()
        if now > self._lines_from + LINES_EVERY_S:
            if self._unsaid:
                self._say(f"{self._unsaid} more connections were dropped that had proved nothing")
            self._lines, self._unsaid, self._lines_from = 0, 0, now
        if not peer.handshake.done and self._lines >= LINES_AT_ONCE:
            self._unsaid += 1
            return
        self._lines += 1
        self._say(f"connection dropped: {why}")

    def stop_listening(self) -> None:
        """Free the port."""
        if self._listener in self._selector.get_map():
            self._selector.unregister(self._listener)
        self._listener.close()

    def close(self) -> None:
        """Close every connection, with what it can still be told."""
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.flush()
            peer.close()


def open_listener(listen: dict[str, Any], *, insecure: bool) -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        ConfigError: an address beyond loopback, without `insecure`.
        OSError: it cannot be bound.
    """
    if "unix" in listen:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        address: Any = listen["unix"]
    else:
        host, port = listen["tcp"]
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not insecure and address[0] not in ("127.0.0.1", "::1"):
            raise ConfigError(_explain_exposure(address[0], port))
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    mask = os.umask(0o177)  # of a Unix socket: nobody else may knock
    try:
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


def _explain_exposure(address: str, port: int) -> str:
    way = f"ssh -L {port}:127.0.0.1:{port} THIS-HOST" if port else "ssh -L PORT:127.0.0.1:PORT THIS-HOST"
    return (
        f"refusing to listen on {address}: clients must know the token, but nothing is encrypted, so whoever is on the "
        "way could see and change the traffic. Listen on 127.0.0.1 and come through SSH: RemoteEnv('user@this-host'), "
        f"or {way} and RemoteEnv('127.0.0.1'). Where everybody on that network is trusted, say --insecure "
        "(RemoteEnv: insecure=True)"
    )
