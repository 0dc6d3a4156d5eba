"""A client's session with a task server; the client's only room that knows both messages and transports."""

from remote_env.session.batch import BatchSession, BatchStates
from remote_env.session.control import ControlLink, Dial, LogPart
from remote_env.session.explain import describe
from remote_env.session.follow import follow_log
from remote_env.session.joining import LinkEvent, LinkOptions
from remote_env.session.monitor import Monitor, remote_logger
from remote_env.session.session import Session
from remote_env.session.task_session import TaskSession

__all__ = [
    "BatchSession",
    "BatchStates",
    "ControlLink",
    "Dial",
    "LinkEvent",
    "LinkOptions",
    "LogPart",
    "Monitor",
    "Session",
    "TaskSession",
    "describe",
    "follow_log",
    "remote_logger",
]
