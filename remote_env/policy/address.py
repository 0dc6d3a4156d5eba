"""Whether a text names a policy server or a checkpoint, and the policy that it stands for."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError
from remote_env.policy.dialects import DEFAULT_PORTS, DIALECTS
from remote_env.policy.loading import load_policy
from remote_env.policy.policy import Policy
from remote_env.policy.several_servers import connect_one

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)")
_ADDRESS = re.compile(r"(\[[^\]]*\]|[^/\\]+):(\d+)")  # no path separators in a host
_BRACKETS = re.compile(r"\[([^\]]*)\]|([^/\\:\[\]]+)")


@dataclass(frozen=True)
class PolicyAddress:
    """Where a policy is served.

    Attributes:
        dialect: which protocol is spoken there.
        host: a name or an IP address, without brackets.
        port: of its listener.
        others: further servers of the same policy, over which clients spread.
    """

    dialect: str
    host: str
    port: int
    others: tuple[PolicyAddress, ...] = ()

    @property
    def all(self) -> tuple[PolicyAddress, ...]:
        """This server and the others, in the order they were written."""
        return (PolicyAddress(self.dialect, self.host, self.port), *self.others)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        prefix = "" if self.dialect == "renv" else f"{self.dialect}://"
        return ",".join([f"{prefix}{host}:{self.port}", *map(str, self.others)])


def parse_policy(text: str) -> PolicyAddress | str:
    """The address that `text` is, or `text` itself when it names a checkpoint.

    A path that exists is always a checkpoint, also one that looks like an address. Addresses are "host:port",
    "[::1]:5000", "dialect://host:port" (the port may be left out: the dialect's own is taken), and several of
    them with commas between. Anything else names a checkpoint.

    Raises:
        ConfigError: `text` is an address with a fault: an unknown dialect, a port out of range, an IPv6 address
            without brackets.
    """
    if not text.strip():
        raise ConfigError("no policy was named; name a checkpoint's folder or a server's host:port")
    if Path(text).expanduser().exists():
        return text
    found = [_parse_one(part.strip()) for part in text.split(",")]
    addresses = [address for address in found if address is not None]
    if not addresses:
        return text
    if len(addresses) < len(found):
        raise ConfigError(f"{text!r}: between commas each part is host:port or dialect://host:port")
    first, *others = addresses
    return PolicyAddress(first.dialect, first.host, first.port, tuple(others))


def open_policy(
    text: str | Path,
    *,
    dataset_id: str = "",
    device: str = "cpu",
    chunk_size: int | None = None,
    token: str | None = None,
    timeout_s: float = 60.0,
    reconnect_timeout_s: float = 30.0,
    task: str = "",
    log: Callable[[str], None] = print,
    **dialect_options: Any,
) -> Policy:
    """The policy that `text` stands for, loaded here or reached at its server: the same to use.

    Args:
        text: as `parse_policy`. Of several servers each call takes the next one, or one after that which answers.
        dataset_id: as `load_policy`; a server has its own.
        device: as `load_policy`; a server has its own.
        chunk_size: the most actions that one inference gives.
        token: of the server; None looks where a server on this machine leaves it.
        timeout_s: until an inference fails [s].
        reconnect_timeout_s: for how long a lost connection is tried again [s].
        task: the instruction, for dialects that send it when they connect.
        log: takes lines for a user's eye.
        dialect_options: further ones of the dialect's `connect`, such as `image_coding` of renv.

    Raises:
        ConfigError: there is no such policy, or it cannot be had as asked.
        ConnectError: no server answered; the message names each.
    """
    address = parse_policy(str(text))
    if isinstance(address, str):
        return load_policy(address, dataset_id=dataset_id, device=device, chunk_size=chunk_size)
    for name, value, usual in (("dataset_id", dataset_id, ""), ("device", device, "cpu")):
        if value not in (usual, ""):
            log(f"warning: {name}={value!r} is ignored: the policy at {address} runs where its server put it")
    options: dict[str, Any] = {"timeout_s": timeout_s, "reconnect_timeout_s": reconnect_timeout_s, "token": token}
    return connect_one(address.all, {**options, **dialect_options, "chunk_size": chunk_size, "task": task}, log)


def _parse_one(text: str) -> PolicyAddress | None:
    if scheme := _SCHEME.fullmatch(text):
        return _with_dialect(scheme[1], scheme[2], text)
    if (found := _ADDRESS.fullmatch(text)) is None:
        return None
    return PolicyAddress("renv", _host(found[1], text), _port(found[2], text))


def _with_dialect(dialect: str, rest: str, text: str) -> PolicyAddress:
    if dialect not in DIALECTS:
        raise ConfigError(f"{text!r}: unknown dialect {dialect!r}; there are {', '.join(DIALECTS)}")
    rest = rest.rstrip("/")
    if found := _ADDRESS.fullmatch(rest):
        return PolicyAddress(dialect, _host(found[1], text), _port(found[2], text))
    if found := _BRACKETS.fullmatch(rest):
        return PolicyAddress(dialect, _host(rest, text), DEFAULT_PORTS[dialect])
    raise ConfigError(f"{text!r} is no address; write {dialect}://host:{DEFAULT_PORTS[dialect]}")


def _host(host: str, text: str) -> str:
    bare = host[1:-1] if host.startswith("[") else host
    if host.startswith("[") and not _is_ipv6(bare):
        raise ConfigError(f"{text!r}: {bare!r} is no IPv6 address; brackets are for those, as in [::1]:5000")
    if ":" in host and not host.startswith("["):
        raise ConfigError(f"{text!r}: an IPv6 address needs brackets, as in [{bare}]:5000")
    return bare


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _port(digits: str, text: str) -> int:
    if not 0 < int(digits) < 65536:
        raise ConfigError(f"{text!r}: a port is 1 to 65535; got {digits}")
    return int(digits)
