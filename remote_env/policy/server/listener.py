"""One port: accept, tell what comes by its first bytes, and give each connection a thread of its own."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from remote_env.errors import ConfigError, ConnectionLost, DeadlineExceeded, ProtocolError, RemoteEnvError
from remote_env.policy.server.connections import Connections, tune
from remote_env.policy.server.port_holder import describe_holder
from remote_env.policy.server.service import NO_PLACE, PolicyService, ServeContext
from remote_env.policy.server.sniffing import HTTP, peek_head, sniff
from remote_env.protocol import frames
from remote_env.protocol.handshake import pack_link

BACKLOG = 128
FIRST_BYTES_TIMEOUT_S = 10.0
HTTP_TIMEOUT_S = 10.0
LINGER_S = 1.0
ACCEPT_PAUSE_S = 1.0
REFUSALS_EVERY_S = 1.0  # a flood of connections is one line a second


class Listener:
    """A bound TCP port; it listens from `start` on.

    Attributes:
        address: (host, port) that it is bound to.
        dialects: name -> module, of those that are spoken here; none on a port for health alone.

    Args:
        host: a name or an address.
        port: 0 for any that is free.
        dialects: see above.
        connections: shared by all listeners.
        context: for the dialects.
        answer: the response to an HTTP request's head.
        first_bytes_timeout_s: how long a connection may keep to itself what it speaks.

    Raises:
        ConfigError: the port is taken, or the host is not this machine's.
    """

    def __init__(
        self,
        host: str,
        port: int,
        dialects: Mapping[str, Any],
        *,
        connections: Connections,
        context: ServeContext,
        answer: Callable[[bytes], bytes],
        first_bytes_timeout_s: float = FIRST_BYTES_TIMEOUT_S,
    ) -> None:
        self.dialects, self._connections, self._context, self._answer = dict(dialects), connections, context, answer
        self._first_bytes_timeout_s = first_bytes_timeout_s
        self._sock = _bind(host, port)
        name = self._sock.getsockname()
        self.address: tuple[str, int] = (name[0], name[1])
        self._service: PolicyService | None = None
        self._thread = threading.Thread(target=self._accept_all, name=f"accept-{name[1]}", daemon=True)
        self._refused, self._refused_at = 0, float("-inf")

    def start(self, service: PolicyService | None, context: ServeContext | None = None) -> None:
        """Listen; without a service only HTTP is answered.

        Raises:
            ConfigError: somebody else listens there by now.
        """
        self._service, self._context = service, context or self._context
        try:
            self._sock.listen(BACKLOG)
        except OSError as error:
            raise _cannot_listen(*self.address, error) from error
        self._thread.start()

    def close(self) -> None:
        """Stop listening; open connections go on. May be called again."""
        with contextlib.suppress(OSError):  # it never listened, or is closed already
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        if self._thread.is_alive():
            self._thread.join(ACCEPT_PAUSE_S * 3)

    def _accept_all(self) -> None:
        while not self._context.stopping.is_set():
            try:
                sock, address = self._sock.accept()
            except OSError as error:
                if self._sock.fileno() < 0 or error.errno in (errno.EINVAL, errno.EBADF, errno.ENOTCONN):
                    return  # closed by `close`
                if error.errno not in (errno.ECONNABORTED, errno.EINTR):
                    self._context.log(f"cannot accept a connection: {error.strerror}; trying again")
                    self._context.stopping.wait(ACCEPT_PAUSE_S)
                continue
            self._begin(sock, _show(address))

    def _begin(self, sock: socket.socket, address: str) -> None:
        thread = threading.Thread(target=self._serve, args=(sock, address), name=f"connection {address}", daemon=True)
        try:
            if self._connections.add(sock, thread):
                return
            why = f"{len(self._connections)} connections are open"
        except RuntimeError as error:  # the system gives no more threads
            self._connections.remove(sock)
            why = str(error)
        sock.close()
        self._log_refusal(f"refused {address}: {why}")

    def _log_refusal(self, line: str) -> None:
        self._refused += 1
        now = time.monotonic()
        if now - self._refused_at >= REFUSALS_EVERY_S:
            more = f" (and {self._refused - 1} before it)" if self._refused > 1 else ""
            self._refused, self._refused_at = 0, now
            self._context.log(line + more)

    # In the connection's own thread

    def _serve(self, sock: socket.socket, address: str) -> None:
        try:
            tune(sock)
            self._dispatch(sock, address)
        except (ConnectionLost, DeadlineExceeded, ProtocolError) as error:
            self._context.log(f"dropped {address}: {error}")
        except (RemoteEnvError, OSError) as error:
            self._context.log(f"dropped {address}: {type(error).__name__}: {error}")
        except Exception:  # noqa: BLE001  one connection's trouble must not end the others
            self._context.log(f"dropped {address}: a fault of the server\n{traceback.format_exc().rstrip()}")
        finally:
            self._connections.remove(sock)

    def _dispatch(self, sock: socket.socket, address: str) -> None:
        spoken = sniff(sock, time.monotonic() + self._first_bytes_timeout_s)
        if spoken == HTTP or (spoken == "openpi" and spoken not in self.dialects):
            self._answer_http(sock)
            return
        module = self._choose(spoken)
        with contextlib.ExitStack() as place:

            def admit() -> bool:
                if place.enter_context(self._connections.client(sock)):
                    return True
                many = f"{self._connections.max_clients} clients are connected (--max_clients)"
                self._context.log(f"refused {address}: {many}")
                return False

            if not getattr(module, "ADMITS_WHO_PROVED", False) and not admit():
                _refuse(sock, spoken, NO_PLACE)
                return
            sock.settimeout(None)
            module.serve(sock, self._service, replace(self._context, admit=admit))

    def _choose(self, spoken: str) -> Any:
        """The module that serves such a connection; a port of one dialect lets that judge what is of none."""
        if spoken in self.dialects:
            return self.dialects[spoken]
        if not spoken and len(self.dialects) == 1 and "openpi" not in self.dialects:
            return next(iter(self.dialects.values()))
        known = ", ".join(self.dialects) or "only HTTP"
        if spoken:
            raise ProtocolError(f"it speaks {spoken}; this port takes {known}")
        raise ProtocolError(f"its first bytes are of no dialect; this port takes {known}")

    def _answer_http(self, sock: socket.socket) -> None:
        deadline = time.monotonic() + HTTP_TIMEOUT_S
        head = peek_head(sock, deadline)
        sock.settimeout(HTTP_TIMEOUT_S)
        sock.recv(len(head))
        sock.sendall(self._answer(head))
        _end(sock)


def _refuse(sock: socket.socket, dialect: str, reason: str) -> None:
    """Tell the client why, where its dialect has words for it before it has proved itself."""
    if dialect == "renv":
        sock.settimeout(LINGER_S)
        sock.sendall(pack_link(frames.REFUSED, {"kind": "busy", "message": reason}))
    elif dialect == "openpi":
        sock.settimeout(LINGER_S)
        body = (reason + "\n").encode()
        head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nConnection: close\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    _end(sock)


def _end(sock: socket.socket) -> None:
    """Close so that what was sent arrives: bytes that nobody read would otherwise reset the connection."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + LINGER_S
        sock.settimeout(LINGER_S)
        while sock.recv(65536) and time.monotonic() < deadline:
            pass


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = _resolve(host, port)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _cannot_listen(host, port, error) from error
    return sock


def _resolve(host: str, port: int) -> Sequence[tuple[Any, ...]]:
    """The addresses that `host` stands for, those of IPv4 first: "localhost" means 127.0.0.1 to most clients."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return sorted(found, key=lambda entry: entry[0] != socket.AF_INET)


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    place = show_place(host, port)
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"the port {place} is busy: {describe_holder(port)}; end that, or choose another port with -p"
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"cannot listen on {place}: {error.strerror}; ports from 1024 on need no rights")
    return ConfigError(f"cannot listen on {place}: {error.strerror or error}")


def show_place(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _show(address: tuple[Any, ...]) -> str:
    return show_place(str(address[0]).removeprefix("::ffff:"), int(address[1]))
