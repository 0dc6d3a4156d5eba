"""A host's addresses, looked up within a deadline: a resolver whose network is gone blocks for half a minute."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from remote_env.errors import ConnectError

Address = tuple[int, int, int, str, Any]  # as `socket.getaddrinfo` gives them
_found: dict[tuple[str, int], Sequence[Address]] = {}  # for when the resolver is cut off too, and its host is not


def find_addresses(name: str, port: int, deadline: float) -> Sequence[Address]:
    """The addresses of `name`; those of the last time when the resolver does not answer in time, or fails.

    Raises:
        ConnectError: the name is unknown, or nothing was said in time.
    """
    try:
        return socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        pass  # it is no number
    try:
        _found[name, port] = _look_up(name, port, deadline)
    except (socket.gaierror, UnicodeError, TimeoutError) as error:
        if (name, port) not in _found:
            raise _unknown(name, error) from error
    return _found[name, port]


def _look_up(name: str, port: int, deadline: float) -> Sequence[Address]:
    answers: queue.SimpleQueue[Sequence[Address] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, name="remote-env-resolve", daemon=True).start()  # ends when the resolver gives up
    remaining_s = max(deadline - time.monotonic(), 0.001)
    is_known = (name, port) in _found
    try:
        answer = answers.get(timeout=remaining_s / 3 if is_known else remaining_s)
    except queue.Empty:
        raise TimeoutError("the resolver did not answer in time") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _unknown(name: str, error: Exception) -> ConnectError:
    if isinstance(error, TimeoutError):
        return ConnectError(f"the address of {name!r} could not be found: {error}; check your network and DNS")
    return ConnectError(f"host {name!r} is unknown ({error}); check its spelling, your DNS and ~/.ssh/config")
