"""Every exception that remote_env raises.

    RemoteEnvError
    ├─ ConfigError               what the caller asked for cannot be done as asked (also ValueError)
    ├─ InputError                one call's argument is wrong; the session stays usable (also ValueError)
    ├─ ConnectError              no working link to the host
    │  ├─ HostKeyError             the host's key is unknown or has changed
    │  ├─ AuthError                the host or the task server refused who we are
    │  └─ StartError               the far end did not start (log_tail=)
    ├─ ConnectionLost            the link; the session may still be resumed
    ├─ SessionLost               the simulator; the episode is gone
    ├─ DeadlineExceeded          no answer in time (also TimeoutError)
    ├─ ProtocolError             the peer sent what the protocol does not allow
    │  ├─ DamagedFrame             bytes changed on their way
    │  ├─ VersionMismatch
    │  └─ MessageTooBig
    ├─ PredictionMismatch        the remote did something else than was predicted
    ├─ NotRun                    a pipelined step behind one that ended the episode or failed; it did not run
    ├─ TaskError                 the task raised (remote_traceback=)
    ├─ PolicyError               the policy raised (remote_traceback=)
    ├─ Unsupported               this backend has no such ability
    ├─ CaptureError              a capture on disk is damaged or of another kind
    └─ ReplayError               a capture does not fit the local model

Each takes one positional message; what else is known travels as keyword-only attributes. Each survives
`pickle` and `type(e)(str(e))`, because Gymnasium's AsyncVectorEnv re-raises a worker's exception that way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class RemoteEnvError(Exception):
    """Base of all errors raised by remote_env; `message` says what happened and what to do next."""

    def __init__(self, message: str = "", /, **details: Any) -> None:
        super().__init__(message)
        self.__dict__.update(details)

    @property
    def message(self) -> str:
        """What happened, what was got, what is allowed and what to do next."""
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self),), dict(self.__dict__))


class ConfigError(RemoteEnvError, ValueError):
    """What the caller asked for cannot be done as asked; nothing was started."""


class InputError(RemoteEnvError, ValueError):
    """An argument of one call is wrong; nothing was sent and the session stays usable."""


class ConnectError(RemoteEnvError):
    """No working link to the host could be made.

    Attributes:
        nothing_listens: the host itself answered, and said that nothing listens at the server's port any more.
    """

    nothing_listens: bool = False


class HostKeyError(ConnectError):
    """The host's key is unknown or differs from the known one; nothing was sent to the host."""


class AuthError(ConnectError):
    """The host or the task server refused our credentials, or could not prove its own."""


class StartError(ConnectError):
    """The far end did not start.

    Attributes:
        log_tail: the last lines that the far end wrote, without colours and repeats ("" when it wrote none).
        phase: what the start was doing: connecting, uploading, starting, checking, importing or building.
        exit_status: of the process that died; None when none did, or a signal killed it.
        signal: the name of the signal that killed it, such as "SIGSEGV"; None when none did.
    """

    log_tail: str = ""
    phase: str = ""
    exit_status: int | None = None
    signal: str | None = None


class ConnectionLost(RemoteEnvError):
    """The link broke; whether the request in flight ran is unknown."""


class SessionLost(RemoteEnvError):
    """The simulator that held this episode is gone; reset to start a new one.

    Attributes:
        log_tail: the last lines that the far end wrote ("" when unknown).
        exit_status: of the simulator, when it exited.
        signal: the name of the signal that killed the simulator, when one did.
    """

    log_tail: str = ""
    exit_status: int | None = None
    signal: str | None = None


class DeadlineExceeded(RemoteEnvError, TimeoutError):
    """No answer came in time; the request may still run.

    Attributes:
        phase: of a start: connecting, uploading, starting, checking, importing or building ("" for other calls).
        last_line: of a start: the last line of the far end's log.
        remote_stack: of a call: the Python stacks of the busy simulator, innermost call first ("" when unknown).
    """

    phase: str = ""
    last_line: str = ""
    remote_stack: str = ""

    # TimeoutError is an OSError, whose __str__ would otherwise win.
    __str__ = Exception.__str__


class ProtocolError(RemoteEnvError):
    """The peer sent bytes that the protocol does not allow; the connection is closed."""


class DamagedFrame(ProtocolError):
    """A frame did not arrive as it was sent, or is none; a session survives it as it does a cut link."""


class VersionMismatch(ProtocolError):
    """The two ends speak different protocol versions; the message names both."""


class MessageTooBig(ProtocolError):
    """A message is larger than the limit; nothing was allocated for it."""


class NotRun(RemoteEnvError):
    """A step that was sent ahead did not run: the one before it ended the episode, or failed."""


class PredictionMismatch(RemoteEnvError):
    """The remote did something else than the twin of a `PredictiveEnv` predicted.

    Attributes:
        step: of the episode, at which it did; 0 for a reset.
        differences: what differs, a `remote_env.prediction.Difference` each.
        transitions: what really came, from that step on.
        steps: how many steps of the episode the remote has run.
        must_reset: whether the episode cannot go on; otherwise the twin is in the remote's state.
    """

    step: int = 0
    differences: Sequence[Any] = ()
    transitions: Sequence[Any] = ()
    steps: int = 0
    must_reset: bool = False


class TaskError(RemoteEnvError):
    """The task raised an exception.

    Attributes:
        remote_traceback: the traceback as the far end printed it.
        remote_type: the name of the exception's class on the far end.
        completed: of `step_many`: the `Transitions` of the steps before the one that raised; None when there are none.
    """

    remote_traceback: str = ""
    remote_type: str = ""
    completed: Any = None


class PolicyError(RemoteEnvError):
    """The policy raised an exception.

    Attributes:
        remote_traceback: the traceback as the far end printed it.
    """

    remote_traceback: str = ""


class Unsupported(RemoteEnvError):
    """This task, backend or version has no such ability."""


class CaptureError(RemoteEnvError):
    """A capture on disk is damaged, incomplete or not a capture."""


class ReplayError(RemoteEnvError):
    """A capture does not fit the local model; the message lists what does not match."""
