"""SSH: log in, ship and start the far end, open channels to it, and stop it."""

from remote_env.ssh.command import CompletedCommand
from remote_env.ssh.connection import SshConnection
from remote_env.ssh.credentials import SecretPrompt
from remote_env.ssh.far_end import ship_far_end, upload_bundle, upload_folder
from remote_env.ssh.launch import LaunchedShell
from remote_env.ssh.server import ServerHandle, find_server, list_servers
from remote_env.ssh.starting import start_server
from remote_env.ssh.target import SshTarget

__all__ = [
    "CompletedCommand",
    "LaunchedShell",
    "SecretPrompt",
    "ServerHandle",
    "SshConnection",
    "SshTarget",
    "find_server",
    "list_servers",
    "ship_far_end",
    "start_server",
    "upload_bundle",
    "upload_folder",
]
