"""A client's session with a task server; the client's only room that knows both messages and transports."""

from remote_env.session.control import ControlLink, Dial
from remote_env.session.session import Session

__all__ = ["ControlLink", "Dial", "Session"]
