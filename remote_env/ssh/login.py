"""Everything that one login needs to know: what the caller wrote, completed from `~/.ssh/config`."""

from __future__ import annotations

import getpass
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError
from remote_env.ssh.config import SshConfig, number, read_config, seconds
from remote_env.ssh.target import SshTarget, parse_hops

DEFAULT_PORT = 22
GLOBAL_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts"
DEFAULT_KNOWN_HOSTS = "~/.ssh/known_hosts"
DEFAULT_IDENTITY_FILES = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
DEFAULT_ALIVE_INTERVAL_S, DEFAULT_ALIVE_COUNT = 15, 3
MAX_HOPS = 8
MIN_ALIVE, MAX_ALIVE_INTERVAL_S, MAX_ALIVE_COUNT = 1, 3600, 1000


@dataclass(frozen=True)
class Login:
    """Everything that one login needs to know.

    Attributes:
        host: as the caller named it; for messages.
        address: the name or address to connect to, as the last jump host knows it.
        port: the SSH port.
        user: the login name.
        key_name: the name under which known_hosts lists the host, without its port.
        identity_files: private keys to try, in order.
        identities_only: of the SSH agent's keys only those of `identity_files` are tried.
        known_hosts_files: read in order; a newly accepted key goes to the first.
        is_key_alias: `key_name` is a HostKeyAlias: it is listed without a port, whatever the port.
        via: the login to the jump host that leads there, None for a direct way.
        proxy_command: a shell command whose standard input and output are the way there.
        alive_interval_s: how long the host may be silent before it is asked whether it lives [s]; 0 is never.
        alive_count: how many such intervals of silence end the connection; 0 is never.
        config_file: the SSH configuration, when it is not the usual one.
    """

    host: str
    address: str
    port: int
    user: str
    key_name: str
    identity_files: tuple[Path, ...]
    identities_only: bool
    known_hosts_files: tuple[Path, ...]
    is_key_alias: bool = False
    via: Login | None = None
    proxy_command: str | None = None
    alive_interval_s: float = DEFAULT_ALIVE_INTERVAL_S
    alive_count: int = DEFAULT_ALIVE_COUNT
    config_file: Path | None = None

    @property
    def description(self) -> str:
        """`user@box:22`."""
        return f"{self.user}@{self.host}:{self.port}"

    @property
    def ssh_command(self) -> str:
        """The OpenSSH command line that makes the same login and runs `true`; for people."""
        words = ["ssh"]
        if self.via is not None:
            words += ["-J", ",".join(self.via.places())]
        elif self.proxy_command:
            words += ["-o", shlex.quote(f"ProxyCommand={_escape(self.proxy_command)}")]
        if self.port != DEFAULT_PORT:
            words += ["-p", str(self.port)]
        files = self.known_hosts_files
        if files and files[0] != Path(DEFAULT_KNOWN_HOSTS).expanduser():
            words += ["-o", f"UserKnownHostsFile={files[0]}"]
        if self.is_key_alias:
            words += ["-o", f"HostKeyAlias={self.key_name}"]
        return " ".join([*words, f"{self.user}@{self.address}", "true"])

    def places(self) -> list[str]:
        """`user@address:port` of each login on the way and of this one, the first hop first."""
        before = [] if self.via is None else self.via.places()
        return [*before, SshTarget(self.address, self.port, self.user).place]

    def ssh_arguments(self) -> list[str]:
        """OpenSSH arguments (without "ssh") that make the same login: nothing is asked, the same keys are checked.

        The last one is the destination. Jump hosts are logged in to by an ssh of their own, with their own keys and
        known_hosts files.
        """
        words = ["-F", str(self.config_file)] if self.config_file else []
        for option in (*self._key_options(), *self._way_options(), *self._manner_options()):
            words += ["-o", option]
        for path in self.identity_files:
            if path.exists():  # for a file that is not there ssh prints a warning
                words += ["-i", str(path)]
        return [*words, "-p", str(self.port), f"{self.user}@{self.address}"]

    def _key_options(self) -> list[str]:
        user_files = [_quote(path) for path in self.known_hosts_files if path != Path(GLOBAL_KNOWN_HOSTS)]
        options = [
            f"UserKnownHostsFile={' '.join(user_files) or '/dev/null'}",
            f"GlobalKnownHostsFile={GLOBAL_KNOWN_HOSTS}",
            "StrictHostKeyChecking=yes",
        ]
        return [*options, f"HostKeyAlias={self.key_name}"] if self.is_key_alias else options

    def _way_options(self) -> list[str]:
        """How to get there; ssh would look the way up by address, not by the alias that we were given."""
        if self.via is None:
            return [f"ProxyCommand={_escape(self.proxy_command) if self.proxy_command else 'none'}"]
        host = f"[{self.address}]" if ":" in self.address else self.address
        *options, destination = self.via.ssh_arguments()
        command = shlex.join(["ssh", *options, "-W", f"{host}:{self.port}", destination])
        return [f"ProxyCommand={_escape(command)}"]

    def _manner_options(self) -> list[str]:
        return [
            "BatchMode=yes",
            *(["IdentitiesOnly=yes"] if self.identities_only else []),
            f"ServerAliveInterval={math.ceil(self.alive_interval_s)}",
            f"ServerAliveCountMax={self.alive_count}",
            "ControlMaster=no",
            "ControlPath=none",
        ]


def _escape(command: str) -> str:
    """`command` for ssh's ProxyCommand, which replaces tokens that start with %."""
    return command.replace("%", "%%")


def _quote(path: Path) -> str:
    return f'"{path}"' if " " in str(path) else str(path)


def resolve_login(
    target: SshTarget,
    *,
    ssh_port: int | None = None,
    identity_file: str | None = None,
    known_hosts_file: str | None = None,
    config_file: str | None = None,
    via: str | Sequence[str] | None = None,
) -> Login:
    """The login that `target` means under the user's SSH configuration; explicit arguments win.

    A jump host is logged in to as its own configuration says; `identity_file` is offered to one that has no
    IdentityFile of its own.

    Raises:
        ConfigError: the configuration cannot be read, two ports, keys or ways are asked for, or the jump hosts lead
            in a circle.
    """
    port = _one("SSH ports", "ssh_port", target.port, ssh_port)
    key = _one("identity files", "identity_file", target.identity_file, identity_file)
    way = _one("ways", "via", target.via, via)
    hops = None if way is None else parse_hops(way)
    resolver = _Resolver(read_config(config_file), config_file, known_hosts_file, key)
    return resolver.resolve(SshTarget(target.host, port, target.user), hops, key, ())


def keep_alive_by(login: Login, interval_s: float | None, count: int | None) -> Login:
    """The same login, and those to its jump hosts, with this interval [s] and count; None: as they are.

    Raises:
        ConfigError: one of them is not allowed.
    """
    changes: dict[str, Any] = {}
    if interval_s is not None:
        changes["alive_interval_s"] = _allowed("ssh_keepalive_s", interval_s, MAX_ALIVE_INTERVAL_S, " s; 0 never asks")
    if count is not None:
        changes["alive_count"] = _allowed("ssh_keepalive_count", count, MAX_ALIVE_COUNT, "; 0 never gives up", int)
    if not changes:
        return login
    return replace(login, **changes, via=login.via and keep_alive_by(login.via, interval_s, count))


def _allowed(name: str, value: Any, most: int, unit: str, kind: type = float) -> Any:
    is_number = isinstance(value, int | kind) and not isinstance(value, bool)
    if not is_number or not (value == 0 or MIN_ALIVE <= value <= most):
        what = "whole numbers " if kind is int else ""
        raise ConfigError(f"{name}={value!r} is not allowed; allowed are {what}0 and {MIN_ALIVE} to {most}{unit}")
    return value


def _one(what: str, argument: str, said: Any, asked: Any) -> Any:
    """Whichever of the two was given."""
    if said is not None and asked is not None and said != asked:
        raise ConfigError(f"two {what}: {said} in the address and {argument}={asked}; name one")
    return asked if said is None else said


@dataclass(frozen=True)
class _Resolver:
    """Completes targets from one configuration."""

    config: SshConfig
    config_file: str | None
    known_hosts_file: str | None
    spare_identity_file: str | None

    def resolve(
        self,
        target: SshTarget,
        hops: tuple[SshTarget, ...] | None,
        identity_file: str | None,
        behind: tuple[str, ...],
    ) -> Login:
        """The login to `target` through `hops` (None: as configured); `behind` are the places that it leads to."""
        options = self.config.options(target.host)
        address = options.get("hostname", target.host)
        port = target.port or number(options, "port", DEFAULT_PORT)
        user = target.user or options.get("user") or getpass.getuser()
        behind = (*behind, SshTarget(address, port, user).place)
        _refuse_circle(behind)
        command = None
        if hops is None:
            hops, command = _configured_way(options)
        keys = [identity_file] if identity_file else options.get("identityfile", self._usual_keys())
        return Login(
            host=target.host,
            address=address,
            port=port,
            user=user,
            key_name=options.get("hostkeyalias", address),
            identity_files=tuple(Path(name).expanduser() for name in keys),
            identities_only=options.get("identitiesonly", "no").lower() in ("yes", "true"),
            known_hosts_files=_known_hosts_files(self.known_hosts_file, options),
            is_key_alias="hostkeyalias" in options,
            via=self.resolve(hops[-1], hops[:-1] or None, None, behind) if hops else None,
            proxy_command=None if command is None else _fill_in(command, target.host, address, port, user),
            alive_interval_s=seconds(options, "serveraliveinterval", DEFAULT_ALIVE_INTERVAL_S),
            alive_count=number(options, "serveralivecountmax", DEFAULT_ALIVE_COUNT),
            config_file=Path(self.config_file).expanduser() if self.config_file else None,
        )

    def _usual_keys(self) -> Sequence[str]:
        return [self.spare_identity_file] if self.spare_identity_file else DEFAULT_IDENTITY_FILES


def _configured_way(options: dict[str, Any]) -> tuple[tuple[SshTarget, ...], str | None]:
    """The jump hosts or the proxy command of the configuration: whichever comes first, as in OpenSSH."""
    for name, value in options.items():
        if name == "proxyjump":
            return parse_hops(value), None
        if name == "proxycommand":  # paramiko has None for "none"
            return (), value
    return (), None


def _fill_in(command: str, host: str, address: str, port: int, user: str) -> str:
    """`command` with its tokens replaced."""
    values = {"%": "%", "h": address, "n": host, "p": str(port), "r": user}

    def value_of(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ConfigError(f"%{match[1]} in ProxyCommand {command!r} is not known; allowed are %h %n %p %r %%")
        return values[match[1]]

    return re.sub("%(.?)", value_of, command)


def _refuse_circle(places: tuple[str, ...]) -> None:
    if len(set(places)) == len(places) <= MAX_HOPS:
        return
    raise ConfigError(
        f"the jump hosts lead in a circle (or there are more than {MAX_HOPS}): {' via '.join(places)}; "
        'give the last one "ProxyJump none" in your SSH configuration, above what says otherwise'
    )


def _known_hosts_files(explicit: str | None, options: dict[str, Any]) -> tuple[Path, ...]:
    user_files = explicit or options.get("userknownhostsfile", DEFAULT_KNOWN_HOSTS)
    names = [explicit] if explicit else user_files.split()
    names.append(GLOBAL_KNOWN_HOSTS)
    return tuple(Path(name).expanduser() for name in names if name.lower() != "none")
