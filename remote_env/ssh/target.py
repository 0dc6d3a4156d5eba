"""Whom to log in to: what the caller wrote, completed from `~/.ssh/config`."""

from __future__ import annotations

import getpass
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko

from remote_env.errors import ConfigError, Unsupported

DEFAULT_PORT = 22
GLOBAL_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts"
DEFAULT_KNOWN_HOSTS = "~/.ssh/known_hosts"
DEFAULT_IDENTITY_FILES = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
_USER = re.compile(r"[^\s@:/-][^\s@:/]*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_FORMS = 'allowed are "box", "user@box", "ssh://user@box:2222" and "ssh://user@[::1]:2222"'


@dataclass(frozen=True)
class SshTarget:
    """What the caller wrote.

    Attributes:
        host: a name, an address, or an alias of `~/.ssh/config`.
        port: the SSH port, None to take the configured one or 22.
        user: the login name, None to take the configured one or the local user's.
    """

    host: str
    port: int | None = None
    user: str | None = None

    @classmethod
    def parse(cls, text: str) -> SshTarget:
        """The target that `text` names: "box", "user@box", "ssh://user@box:2222" or "ssh://[::1]:22".

        Raises:
            ConfigError: `text` has another form.
        """
        is_url = text.startswith("ssh://")
        rest = text[len("ssh://") :].removesuffix("/") if is_url else text
        user, at, place = rest.rpartition("@")
        if at and not _USER.fullmatch(user):
            raise ConfigError(f"{user!r} in {text!r} is no login name; {_FORMS}")
        host, port = _split_port(place, text) if is_url else (place, None)
        if not _is_host(host):
            hint = f"; for an SSH port write ssh://{rest}" if re.search(r":\d+$", rest) else ""
            raise ConfigError(f"{text!r} names no host{hint}; {_FORMS}")
        return cls(host, port, user or None)


def _split_port(place: str, text: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(\d{1,5}))?", place)
    if match is None:
        raise ConfigError(f"{text!r} has no readable host and port; {_FORMS}")
    host, port = match[1].strip("[]"), match[2]
    if port is not None and not 1 <= int(port) <= 65535:
        raise ConfigError(f"port {port} in {text!r} is outside 1..65535")
    return host, None if port is None else int(port)


def _is_host(host: str) -> bool:
    if ":" not in host:
        return _NAME.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Login:
    """Everything that one login needs to know.

    Attributes:
        host: as the caller named it; for messages.
        address: the name or address to connect to.
        port: the SSH port.
        user: the login name.
        key_name: the name under which known_hosts lists the host, without its port.
        identity_files: private keys to try, in order.
        identities_only: of the SSH agent's keys only those of `identity_files` are tried.
        known_hosts_files: read in order; a newly accepted key goes to the first.
    """

    host: str
    address: str
    port: int
    user: str
    key_name: str
    identity_files: tuple[Path, ...]
    identities_only: bool
    known_hosts_files: tuple[Path, ...]

    @property
    def description(self) -> str:
        """`user@box:22`."""
        return f"{self.user}@{self.host}:{self.port}"

    @property
    def ssh_command(self) -> str:
        """The OpenSSH command line that makes the same login and runs `true`."""
        port = "" if self.port == DEFAULT_PORT else f"-p {self.port} "
        files = self.known_hosts_files
        usual = not files or files[0] == Path(DEFAULT_KNOWN_HOSTS).expanduser()
        place = "" if usual else f"-o UserKnownHostsFile={files[0]} "
        return f"ssh {port}{place}{self.user}@{self.address} true"


def resolve_login(
    target: SshTarget,
    *,
    ssh_port: int | None = None,
    identity_file: str | None = None,
    known_hosts_file: str | None = None,
    config_file: str | None = None,
) -> Login:
    """The login that `target` means under the user's SSH configuration; explicit arguments win.

    Raises:
        ConfigError: the configuration cannot be read, or two ports are asked for.
        Unsupported: the configuration asks for a jump host or a proxy command.
    """
    if ssh_port is not None and target.port not in (None, ssh_port):
        raise ConfigError(f"two SSH ports: {target.port} in the address and ssh_port={ssh_port}; name one")
    options = _read_config(target.host, config_file)
    _refuse_proxies(target.host, options)
    address = options.get("hostname", target.host)
    files = [identity_file] if identity_file else options.get("identityfile", DEFAULT_IDENTITY_FILES)
    return Login(
        host=target.host,
        address=address,
        port=ssh_port or target.port or int(options.get("port", DEFAULT_PORT)),
        user=target.user or options.get("user") or getpass.getuser(),
        key_name=options.get("hostkeyalias", address),
        identity_files=tuple(Path(name).expanduser() for name in files),
        identities_only=options.get("identitiesonly", "no").lower() in ("yes", "true"),
        known_hosts_files=_known_hosts_files(known_hosts_file, options),
    )


def _read_config(host: str, config_file: str | None) -> dict[str, Any]:
    path = Path(config_file or "~/.ssh/config").expanduser()
    if not path.exists():
        if config_file is None:
            return {}
        raise ConfigError(f"the SSH configuration {path} does not exist")
    try:
        return dict(paramiko.SSHConfig.from_path(str(path)).lookup(host))
    except (paramiko.SSHException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the SSH configuration {path} cannot be read: {error}") from error


def _refuse_proxies(host: str, options: dict[str, Any]) -> None:
    for name, shown in (("proxyjump", "ProxyJump"), ("proxycommand", "ProxyCommand")):
        value = options.get(name)
        if value and value.lower() != "none":
            raise Unsupported(
                f"{host} is reached through {shown} {value!r} in your SSH configuration, which is not "
                "supported; use a direct address, or open the way yourself (ssh -L 2222:box:22 jump) and "
                "connect to ssh://user@127.0.0.1:2222"
            )


def _known_hosts_files(explicit: str | None, options: dict[str, Any]) -> tuple[Path, ...]:
    user_files = explicit or options.get("userknownhostsfile", DEFAULT_KNOWN_HOSTS)
    names = [explicit] if explicit else user_files.split()
    names.append(GLOBAL_KNOWN_HOSTS)
    return tuple(Path(name).expanduser() for name in names if name.lower() != "none")
