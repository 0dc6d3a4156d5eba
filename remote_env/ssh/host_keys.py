"""Host keys: what known_hosts says about a host, and the decision to trust the key that it showed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

from remote_env.errors import HostKeyError
from remote_env.ssh.login import DEFAULT_PORT, GLOBAL_KNOWN_HOSTS, Login

_RSA_ALGORITHMS = ("rsa-sha2-512", "rsa-sha2-256")  # RFC 8332: what an ssh-rsa key signs with


@dataclass
class KnownKeys:
    """What known_hosts says about one name.

    Attributes:
        keys: trusted keys as (type, blob).
        revoked: blobs never to trust.
    """

    keys: list[tuple[str, bytes]] = field(default_factory=list)
    revoked: list[bytes] = field(default_factory=list)

    def has(self, blob: bytes) -> bool:
        """Whether `blob` is among the trusted keys."""
        return any(blob == known for _, known in self.keys)


def fingerprint(blob: bytes) -> str:
    """The key's SHA256 fingerprint as `ssh-keygen -l` prints it."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode()
    return "SHA256:" + digest.rstrip("=")


def listed_name(login: Login) -> str:
    """The name under which known_hosts lists the host: "box", "[box]:2222" off port 22, or the HostKeyAlias alone."""
    plain = login.is_key_alias or login.port == DEFAULT_PORT
    return login.key_name if plain else f"[{login.key_name}]:{login.port}"


def read_known_keys(files: Sequence[Path], name: str) -> KnownKeys:
    """What `files` (known_hosts format; hashed names, patterns and @revoked included) say about `name`.

    Raises:
        HostKeyError: a file exists and cannot be read.
    """
    known = KnownKeys()
    for path in files:
        for marker, kind, blob in _matching_entries(path, name):
            if marker == "@revoked":
                known.revoked.append(blob)
            elif not marker:  # @cert-authority: host certificates are not supported
                known.keys.append((kind, blob))
    return known


def _matching_entries(path: Path, name: str) -> Iterator[tuple[str, str, bytes]]:
    for line in _read_lines(path):
        fields = line.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#") or not _names_match(fields[0], name):
            continue
        try:
            yield marker, fields[1], base64.b64decode(fields[2], validate=True)
        except binascii.Error:
            continue  # as OpenSSH does: a damaged line makes nothing known


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostKeyError(f"{path} cannot be read ({error}), so no host key can be verified") from error


def _names_match(patterns: str, name: str) -> bool:
    matched = False
    for pattern in patterns.split(","):
        if pattern.startswith("|1|"):
            matched |= _hash_matches(pattern, name)
        elif pattern.startswith("!"):
            if _pattern_matches(pattern[1:], name):
                return False
        else:
            matched |= _pattern_matches(pattern, name)
    return matched


def _hash_matches(pattern: str, name: str) -> bool:
    """Whether `|1|salt|digest` is `name`; a damaged one is nobody's, as in OpenSSH."""
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in pattern.removeprefix("|1|").split("|"))
    except ValueError:
        return False
    return hmac.compare_digest(hmac.digest(salt, name.lower().encode(), "sha1"), digest)


def _pattern_matches(pattern: str, name: str) -> bool:
    expression = re.escape(pattern.lower()).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, name.lower()) is not None


def order_key_algorithms(known: KnownKeys, offered: Sequence[str]) -> tuple[str, ...]:
    """The algorithms of `offered`, known keys' first: the host then shows a key that we can compare."""
    types = {kind for kind, _ in known.keys}
    first = [name for name in offered if name in types or ("ssh-rsa" in types and name in _RSA_ALGORITHMS)]
    return (*first, *(name for name in offered if name not in first))


def check_host_key(login: Login, key: paramiko.PKey, known: KnownKeys, *, accept_new: bool) -> None:
    """Return when `key` is the host's known key, or is new and may be accepted; it is then written down.

    Raises:
        HostKeyError: the key is unknown, has changed or is revoked; nothing was sent to the host.
    """
    blob, name = key.asbytes(), listed_name(login)
    on_any_port = known if name == login.key_name else read_known_keys(login.known_hosts_files, login.key_name)
    if blob in (*known.revoked, *on_any_port.revoked):
        raise HostKeyError(f"{login.host} showed the key {fingerprint(blob)}, which known_hosts marks as revoked")
    if known.has(blob):
        return
    if known.keys:
        raise _changed(login, key, known)
    if on_any_port.has(blob):
        return  # as OpenSSH does: the host's own key, on a port of its own
    if not accept_new:
        raise _unknown(login, key)
    if login.known_hosts_files[0] != Path(GLOBAL_KNOWN_HOSTS):  # UserKnownHostsFile none: remember nothing
        _append_key(login.known_hosts_files[0], f"{name} {key.get_name()} {key.get_base64()}\n")


def _unknown(login: Login, key: paramiko.PKey) -> HostKeyError:
    return HostKeyError(
        f"the host key of {login.host} ({listed_name(login)}) is not known; it showed {key.get_name()} "
        f"{fingerprint(key.asbytes())}. If that is the host's fingerprint, accept it by running: "
        f"{login.ssh_command}   or pass accept_new_host_key=True"
    )


def _changed(login: Login, key: paramiko.PKey, known: KnownKeys) -> HostKeyError:
    expected = ", ".join(f"{kind} {fingerprint(blob)}" for kind, blob in known.keys)
    name = listed_name(login)
    return HostKeyError(
        f"the host key of {login.host} ({name}) HAS CHANGED: known_hosts has {expected}; it showed "
        f"{key.get_name()} {fingerprint(key.asbytes())}. Somebody may be answering in its place. If the host "
        f"was installed anew, remove the old key: ssh-keygen -f {login.known_hosts_files[0]} -R '{name}'"
    )


def _append_key(path: Path, line: str) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = "\n" + line
            file.write(line.encode())
    except OSError as error:
        raise HostKeyError(f"the new host key cannot be written to {path}: {error}") from error
