"""Things that listen and are not what one looks for."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def listener_that_says(words: bytes) -> Iterator[int]:
    """A port of loopback whose owner says these words and then nothing more."""
    with contextlib.ExitStack() as taken:

        def greet(client: socket.socket) -> None:
            taken.enter_context(client).sendall(words)

        with _listener(greet) as port:
            yield port


@contextlib.contextmanager
def listener_that_hangs_up() -> Iterator[int]:
    """A port of loopback that accepts connections and closes them."""
    with _listener(socket.socket.close) as port:
        yield port


@contextlib.contextmanager
def port_without_answer() -> Iterator[int]:
    """A port of loopback that answers no further connection, as behind a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(4):  # more than its queue holds
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield int(listener.getsockname()[1])


@contextlib.contextmanager
def _listener(take: Callable[[socket.socket], None]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener, take))
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(listener: socket.socket, take: Callable[[socket.socket], None]) -> None:
    with contextlib.suppress(OSError):  # it was shut down
        while True:
            take(listener.accept()[0])
