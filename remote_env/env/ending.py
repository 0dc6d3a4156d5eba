"""How environments end when their program does: at its exit, in its forked children, and by signals."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
import time
import weakref
from typing import Any, Protocol

log = logging.getLogger("remote_env")

GRACE_S = 10.0  # how long a second signal does not disturb the ending that the first one began


class Endable(Protocol):
    """What has to be ended."""

    def close(self) -> None:
        """End it, or leave what is to be kept; may be called again."""

    def let_go(self) -> None:
        """In a forked child: free what is the parent's."""


_open: weakref.WeakSet[Any] = weakref.WeakSet()


def end_at_exit(endable: Endable) -> None:
    """Have it ended when the interpreter exits, and let go of in forked children."""
    _open.add(endable)


def has_ended(endable: Endable) -> None:
    """Take it back."""
    _open.discard(endable)
    _signals.forget(endable)


def end_by_signals(endable: Endable) -> None:
    """Have SIGTERM and SIGHUP end the program in order, with SystemExit, until it has ended."""
    _signals.remember(endable)


@atexit.register
def _end_all() -> None:
    with contextlib.ExitStack() as ends:  # each, whatever becomes of the others
        for endable in list(_open):
            ends.callback(endable.close)


def _let_go_of_all() -> None:
    for endable in list(_open):
        endable.let_go()
    _signals.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_of_all)


class _Signals:
    """Our handlers of the signals that end a program, while a server of ours runs on another machine.

    By default such a signal ends the interpreter at once: nothing would be closed. A handler of the user's own is
    never replaced, and SIGINT raises KeyboardInterrupt already.
    """

    def __init__(self) -> None:
        self._holders: weakref.WeakSet[Any] = weakref.WeakSet()
        self._installed: list[int] = []
        self._ending_until = 0.0

    def remember(self, holder: Endable) -> None:
        """Install the handlers where the defaults are in force; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._holders.add(holder)
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._raise)
                self._installed.append(number)

    def forget(self, holder: Endable) -> None:
        """Restore the defaults when nobody is left who needs the handlers."""
        self._holders.discard(holder)
        if not self._holders:
            self.reset()

    def reset(self) -> None:
        """Restore the defaults; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self._installed:
            if signal.getsignal(number) == self._raise:
                signal.signal(number, signal.SIG_DFL)
        self._installed.clear()

    def _raise(self, number: int, _frame: Any) -> None:
        if time.monotonic() < self._ending_until:
            return
        self._ending_until = time.monotonic() + GRACE_S
        log.warning("%s: closing what runs on other machines", signal.Signals(number).name)
        raise SystemExit(128 + number)


_signals = _Signals()
