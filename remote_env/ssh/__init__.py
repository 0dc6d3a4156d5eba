"""SSH: log in, ship and start the far end, open channels to it, and stop it."""

from remote_env.ssh.connection import CompletedCommand, SshConnection
from remote_env.ssh.target import SshTarget

__all__ = ["CompletedCommand", "SshConnection", "SshTarget"]
