"""The program of one rendering process; `remote_env.replay.frames` starts it."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys

from remote_env.replay.frames import serve


def main() -> None:
    """Read one job from standard input, write its frames to standard output."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up between frames
    job = pickle.load(sys.stdin.buffer)  # noqa: S301  # from the process that started us
    # The parent went away, or wants no more frames.
    with contextlib.suppress(BrokenPipeError):
        serve(job, out)
    os._exit(0)  # a closed pipe would otherwise complain once more at exit


if __name__ == "__main__":
    main()
