"""Private keys: those of files, and those that the SSH agent holds."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import paramiko
from paramiko.agent import AgentSSH, get_agent_connection

LIST_TIMEOUT_S = 5.0  # an agent that cannot list its keys in so long is not working
SIGN_TIMEOUT_S = 20.0  # an agent may ask its user to confirm
_ARMOUR = "-----"  # around a private key
_OPENSSH_MAGIC = b"openssh-key-v1\0"  # OpenSSH's PROTOCOL.key


@dataclass(frozen=True)
class KeyFile:
    """What a private key file holds.

    Attributes:
        key: the key, None when it cannot be used as it is.
        is_encrypted: a passphrase is missing or wrong.
        problem: why there is no key.
    """

    key: paramiko.PKey | None
    is_encrypted: bool = False
    problem: str = ""


def read_key_file(path: Path, passphrase: str | None = None) -> KeyFile:
    """The key in the file at `path`; never raises."""
    try:
        return KeyFile(paramiko.PKey.from_path(path, None if passphrase is None else passphrase.encode()))
    except FileNotFoundError:
        return KeyFile(None, problem="does not exist")
    except (paramiko.PasswordRequiredException, TypeError):  # cryptography says TypeError
        return KeyFile(None, is_encrypted=True, problem="has a passphrase")
    except (paramiko.SSHException, paramiko.pkey.UnknownKeyType, ValueError, OSError) as error:
        if passphrase is not None:  # their messages differ by format, and say nothing of a passphrase
            return KeyFile(None, is_encrypted=True, problem="the passphrase is wrong")
        return KeyFile(None, problem=f"cannot be read ({error})")


def public_blob(path: Path) -> bytes | None:
    """The public half of the key at `path`, which may have a passphrase or be only a public key; None if unknown."""
    for place in (path.with_name(f"{path.name}.pub"), path):
        with contextlib.suppress(OSError, ValueError):  # no such file, no text, no base64: it names no key
            text = place.read_text()
            blob = _blob_of_private(text) if text.startswith(_ARMOUR) else _blob_of_public(text)
            if blob:
                return blob
    return None


def key_kind(blob: bytes) -> str:
    """The kind of key ("ssh-ed25519") whose public half is `blob`."""
    return str(paramiko.Message(blob).get_text())


def _blob_of_public(text: str) -> bytes | None:
    kind, data, *_ = [*text.split(maxsplit=2), "", ""]
    blob = base64.b64decode(data, validate=True)
    return blob if paramiko.Message(blob).get_binary() == kind.encode() else None


def _blob_of_private(text: str) -> bytes | None:
    """The public half that OpenSSH's own format keeps in the clear; None for other formats."""
    lines = text.splitlines()
    if "OPENSSH" not in lines[0]:
        return None
    data = base64.b64decode("".join(line for line in lines if not line.startswith(_ARMOUR)))
    message = paramiko.Message(data.removeprefix(_OPENSSH_MAGIC))
    for _ in ("cipher", "key derivation", "its options"):
        message.get_binary()
    return message.get_binary() if message.get_int() == 1 else None


class Agent(AgentSSH):  # type: ignore[misc]  # paramiko has no types
    """The SSH agent of `SSH_AUTH_SOCK`, whose answers are waited for a limited time.

    Args:
        timeout_s: how long it may take to list its keys [s].

    Raises:
        paramiko.SSHException, OSError: it does not answer, or not as an agent does.
    """

    def __init__(self, timeout_s: float) -> None:
        super().__init__()
        connection = _dial_agent(timeout_s)
        if connection is None:
            return
        try:
            self._connect(connection)
        except BaseException:
            connection.close()
            raise
        if hasattr(connection, "settimeout"):
            connection.settimeout(SIGN_TIMEOUT_S)

    def close(self) -> None:
        """End the connection to the agent."""
        self._close()


def _dial_agent(timeout_s: float) -> socket.socket | None:
    """A connection to the agent, None when there is none."""
    if os.name == "nt":
        return get_agent_connection()  # type: ignore[no-any-return]
    place = os.environ.get("SSH_AUTH_SOCK")
    if not place:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(place)
    except (FileNotFoundError, ConnectionRefusedError):  # the agent has ended
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return connection
