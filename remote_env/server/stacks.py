"""The Python stacks of a simulator on demand, even while it hangs in native code. Standard library only."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys

# Nobody else's: SIGUSR1 and SIGUSR2 belong to tasks, batch systems and launchers, 32 to 34 to the C library, SIGRTMIN
# itself and the next ones to whoever takes "the first real-time signal"; CPython, CUDA and Omniverse Kit use none.
DUMP_SIGNAL: int = signal.SIGRTMIN + 13 if sys.platform == "linux" else signal.SIGXCPU


def write_stacks_on_demand() -> None:
    """From now on DUMP_SIGNAL writes all threads' stacks to standard error, and so does a crash.

    The handler is the C library's and runs without the interpreter: native code that holds it is no obstacle. It
    writes to a descriptor of its own, so that a task that redirects standard error loses nothing of it.
    """
    descriptor = os.dup(2)
    faulthandler.register(DUMP_SIGNAL, descriptor, all_threads=True, chain=False)
    faulthandler.enable(descriptor, all_threads=True)
