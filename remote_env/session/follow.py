"""A server's log, line by line as it is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from remote_env.errors import AuthError, ConnectError, ConnectionLost
from remote_env.session.control import CONTROL_TIMEOUT_S, ControlLink, LogPart

POLL_S, SLOWEST_POLL_S = 0.05, 0.5
RECONNECT_TIMEOUT_S, LONGEST_PAUSE_S = 60.0, 2.0


class LogReader:
    """Whole lines of a log that is read in parts.

    Args:
        link: where it is asked for; its owner closes it.
        offset: where to begin.
    """

    def __init__(self, link: ControlLink, offset: int) -> None:
        self.link = link
        self.offset = offset
        self._rest = ""

    def read(self, deadline: float) -> list[str]:
        """The lines that were finished since; errors as `ControlLink.ask`."""
        part = self.link.log_since(self.offset, deadline)
        self.offset = part.next
        return self.feed(part)

    def feed(self, part: LogPart) -> list[str]:
        """The lines that `part` finishes."""
        *lines, self._rest = (self._rest + part.text).split("\n")
        return lines

    def finish(self) -> list[str]:
        """What was begun and will not be finished."""
        rest, self._rest = self._rest, ""
        return [rest] if rest else []


def follow_log(
    open_link: Callable[[], ControlLink], *, lines: int = 100, timeout_s: float = CONTROL_TIMEOUT_S
) -> Iterator[str]:
    """The last `lines` lines of a server's log, then each as it is written, until the server ends.

    Args:
        open_link: makes a control link, and another when that breaks; it is closed when the iterator ends or is
            closed. A ConnectionLost of its own ends the iterator.
        lines: how many of those that are there already.
        timeout_s: how long the server may take to answer [s].

    Raises:
        DeadlineExceeded: it does not answer.
        ConnectError: the link broke, and there was no other within `RECONNECT_TIMEOUT_S`.
    """
    link = open_link()
    try:
        tail = link.log_tail(lines)
        yield from tail.text.splitlines()
        reader, pause_s = LogReader(link, tail.next), POLL_S
        while True:
            try:
                found = reader.read(time.monotonic() + timeout_s)
            except ConnectionLost:
                link.close()
                again = open_again(open_link)
                if again is None:
                    yield from reader.finish()
                    return
                reader.link, link, found = again, again, []
            yield from found
            pause_s = POLL_S if found else min(2 * pause_s, SLOWEST_POLL_S)
            time.sleep(pause_s)
    finally:
        link.close()


def open_again(open_link: Callable[[], ControlLink]) -> ControlLink | None:
    """Another link in place of one that broke; None when the server has ended."""
    until, pause_s = time.monotonic() + RECONNECT_TIMEOUT_S, POLL_S
    while True:
        try:
            return open_link()
        except (AuthError, ConnectionLost):  # another server has its port; or nobody wants the log any more
            return None
        except ConnectError as error:
            if error.nothing_listens:
                return None
            if time.monotonic() >= until:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
