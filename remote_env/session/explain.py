"""Why an answer is late: what the simulator does, and where in its Python code."""

from __future__ import annotations

import re
import time
from typing import Any

from remote_env.errors import DeadlineExceeded, RemoteEnvError
from remote_env.protocol import frames
from remote_env.session.control import ControlLink

EXPLAIN_TIMEOUT_S = 1.0  # how much later than its deadline a call may end, to say what the simulator is doing
POLL_S = 0.02
SHOWN_FRAMES = 3
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x", re.MULTILINE)
_FRAME = re.compile(r'^\s+File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>.+)$', re.MULTILINE)


def explain_delay(control: ControlLink, kind: int) -> DeadlineExceeded:
    """The error of a request of this kind that was not answered in time.

    Its `remote_stack` holds the simulator's Python stacks, innermost call first; "" when they could not be had.
    """
    asked, until = frames.NAMES[kind], time.monotonic() + EXPLAIN_TIMEOUT_S
    try:
        status = control.status(EXPLAIN_TIMEOUT_S)
    except RemoteEnvError as error:
        return DeadlineExceeded(f"no answer to {asked} in time, and the server does not say why ({error})")
    stack = read_stacks(control, until) if status["state"] == "busy" else ""
    return DeadlineExceeded(
        f"no answer to {asked} in time; the simulator is {describe(status)}{_where(stack)}. resume() waits for it, "
        "reset() abandons it, restart() kills it; for a slow task raise step_timeout_s or reset_timeout_s",
        remote_stack=stack,
    )


def describe(status: dict[str, Any]) -> str:
    """A status in words: "busy in step (step 37) for 12.0 s"."""
    if status["state"] == "busy":
        return f"busy in {status['call']} (step {status['steps']}) for {status['since_s']:.1f} s"
    return str(status["state"])


def read_stacks(control: ControlLink, deadline: float) -> str:
    """The Python stacks of the simulator's threads as faulthandler writes them, also while it holds its interpreter.

    "" when they do not come in time.
    """
    stacks = ""
    try:
        offset = control.dump(deadline).get("log_from")
        while offset is not None and time.monotonic() < deadline:
            found = _only_stacks(control.log_since(int(offset), deadline).text)
            if found and found == stacks:
                return stacks  # nothing more came between two looks
            stacks = found
            time.sleep(POLL_S)
    except RemoteEnvError:
        return stacks  # the delay is what is to be explained, not why it cannot be
    return stacks


def _only_stacks(text: str) -> str:
    """The threads' stacks in a part of the log, without what else was written."""
    lines = text.splitlines()
    return "\n".join(line for line in lines if _THREAD.match(line) or _FRAME.match(line))


def _where(stacks: str) -> str:
    frames_of_main = top_frames(stacks)
    return f", at {' < '.join(frames_of_main)}" if frames_of_main else ""


def top_frames(stacks: str) -> list[str]:
    """The innermost calls of the simulator's main thread, as "function (file:line)"."""
    threads = _THREAD.split(stacks)[1:]
    if not threads:
        return []
    # faulthandler lists the newest thread first: the main one is the last.
    found = list(_FRAME.finditer(threads[-1]))[:SHOWN_FRAMES]
    return [f"{frame['function']} ({frame['file'].rpartition('/')[2]}:{frame['line']})" for frame in found]
