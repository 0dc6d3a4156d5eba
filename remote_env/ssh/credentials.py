"""Proving who we are: the agent's keys and key files, tried in order."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path

import paramiko

from remote_env.errors import AuthError
from remote_env.ssh.target import Login

AGENT_TIMEOUT_S = 20.0  # an agent may ask its user to confirm
_ARMOUR = "-----"  # around a private key
_OPENSSH_MAGIC = b"openssh-key-v1\0"  # OpenSSH's PROTOCOL.key


def authenticate(transport: paramiko.Transport, login: Login) -> None:
    """Log in with the first key that the host accepts.

    Raises:
        AuthError: no key was accepted; the message lists what was tried.
        paramiko.SSHException, EOFError: the link broke.
    """
    tried: list[str] = []
    with contextlib.ExitStack() as stack:
        for label, key in _candidates(login, tried, stack):
            if _accepts(transport, login, key, label, tried):
                return
            if not transport.is_active():
                raise _refused(login, [*tried, "then the host hung up (too many keys?)"])
    if not _accepts_anyone(transport, login, tried):
        raise _refused(login, tried)


def _accepts(transport: paramiko.Transport, login: Login, key: paramiko.PKey, label: str, tried: list[str]) -> bool:
    try:
        more = transport.auth_publickey(login.user, key)
    except paramiko.BadAuthenticationType as error:
        allowed = ", ".join(error.allowed_types) or "nothing"
        raise _refused(login, [*tried, f"the host takes no public keys, only: {allowed}"]) from error
    except paramiko.AuthenticationException:
        tried.append(f"{label}: refused")
        return False
    if more:
        raise _refused(login, [f"{label}: accepted, but the host also wants {', '.join(more)}"])
    return True


def _accepts_anyone(transport: paramiko.Transport, login: Login, tried: list[str]) -> bool:
    """Whether the host needs no credentials (its network has identified us, as Tailscale's does)."""
    try:
        transport.auth_none(login.user)
    except paramiko.BadAuthenticationType as error:
        tried.append(f"the host takes: {', '.join(error.allowed_types)}")
    except paramiko.AuthenticationException:
        return False
    return bool(transport.is_authenticated())


def _candidates(login: Login, tried: list[str], stack: contextlib.ExitStack) -> Iterator[tuple[str, paramiko.PKey]]:
    """Keys with their labels: files, then those of the agent that no file gave."""
    done = set()
    for path in login.identity_files:
        key = _load_key(path, tried)
        if key is not None:
            done.add(key.asbytes())
            yield str(path), key
    named = {_public_blob(path) for path in login.identity_files} if login.identities_only else None
    for key in _agent_keys(tried, stack):
        if key.asbytes() not in done and (named is None or key.asbytes() in named):
            yield f"agent key {key.comment or key.get_name()}", key
    if named is not None:
        tried.append("SSH agent: only keys of these files (IdentitiesOnly yes)")


def _public_blob(path: Path) -> bytes | None:
    """The public half of the key at `path`, which may have a passphrase or be only a public key; None if unknown."""
    for place in (path.with_name(f"{path.name}.pub"), path):
        with contextlib.suppress(OSError, ValueError):  # no such file, no text, no base64: it names no key
            text = place.read_text()
            blob = _blob_of_private(text) if text.startswith(_ARMOUR) else _blob_of_public(text)
            if blob:
                return blob
    return None


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


def _load_key(path: Path, tried: list[str]) -> paramiko.PKey | None:
    try:
        return paramiko.PKey.from_path(path)
    except FileNotFoundError:
        tried.append(f"{path}: does not exist")
    except (paramiko.PasswordRequiredException, TypeError):  # cryptography says TypeError
        tried.append(f"{path}: has a passphrase (run: ssh-add {path})")
    except (paramiko.SSHException, paramiko.pkey.UnknownKeyType, ValueError, OSError) as error:
        tried.append(f"{path}: cannot be read ({error})")
    return None


def _agent_keys(tried: list[str], stack: contextlib.ExitStack) -> list[paramiko.AgentKey]:
    try:
        agent = paramiko.Agent()
        stack.callback(agent.close)
    except (paramiko.SSHException, OSError) as error:
        tried.append(f"SSH agent: {error}")
        return []
    connection = agent._conn
    if hasattr(connection, "settimeout"):  # paramiko would wait for ever for a hung agent
        connection.settimeout(AGENT_TIMEOUT_S)
    keys = list(agent.get_keys())
    if not keys:
        tried.append("SSH agent: not running or empty")
    return keys


def _refused(login: Login, tried: list[str]) -> AuthError:
    return AuthError(
        f"{login.description} refused the login. Tried: {'; '.join(tried)}. "
        f"Pass identity_file=…, load the key with ssh-add, or check that this works: {login.ssh_command}"
    )
