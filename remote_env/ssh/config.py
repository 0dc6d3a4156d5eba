"""Reading `~/.ssh/config`: paramiko's reader, with `Include`, and with the values that we need as numbers."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko

from remote_env.errors import ConfigError

_log = logging.getLogger("remote_env.ssh")

DEFAULT_CONFIG = "~/.ssh/config"
MAX_INCLUDES = 16  # one in the other, as in OpenSSH
_INCLUDE = re.compile(r"\s*include(?:\s*=\s*|\s+)(.+)", re.IGNORECASE)
_BLOCK = re.compile(r"\s*(host|match)\b\s*=?\s*(.*)", re.IGNORECASE)
_EVERYBODY = ("*", "all")  # "Host *" and "Match all"
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class SshConfig(paramiko.SSHConfig):  # type: ignore[misc]  # paramiko has no types
    """A configuration; ProxyCommand is left as it is, since its tokens depend on what the caller said."""

    TOKENS_BY_CONFIG_KEY = {  # noqa: RUF012  # as in its base
        key: tokens for key, tokens in paramiko.SSHConfig.TOKENS_BY_CONFIG_KEY.items() if key != "proxycommand"
    }

    def options(self, host: str) -> dict[str, Any]:
        """What it says about `host`: names in lower case, in the order in which they were found.

        Raises:
            ConfigError: it cannot be understood for this host.
        """
        try:
            return dict(self.lookup(host))
        except (paramiko.SSHException, ValueError, KeyError, ImportError) as error:
            raise ConfigError(f"the SSH configuration for {host} cannot be understood: {error}") from error


def read_config(config_file: str | None) -> SshConfig:
    """The configuration in `config_file` (default `~/.ssh/config`, which may be missing).

    Raises:
        ConfigError: it does not exist, or it or what it includes cannot be read.
    """
    path = Path(config_file or DEFAULT_CONFIG).expanduser()
    if not path.exists():
        if config_file is None:
            return SshConfig()
        raise ConfigError(f"the SSH configuration {path} does not exist")
    try:
        return SshConfig.from_text("\n".join(_read_lines(path, 0)))  # type: ignore[no-any-return]
    except (paramiko.SSHException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the SSH configuration {path} cannot be read: {error}") from error


def _read_lines(path: Path, depth: int) -> Iterator[str]:
    """The lines of the file with those of the files that it includes in their places."""
    if depth > MAX_INCLUDES:
        raise ConfigError(f"the SSH configuration includes files more than {MAX_INCLUDES} deep; {path} is the last")
    block = "Host *"
    for line in path.read_text().splitlines():
        include = _INCLUDE.fullmatch(line)
        if include is None:
            block = line if _BLOCK.fullmatch(line) else block
            yield line
            continue
        for place in _included_files(include[1]):
            yield from _include(place, block, depth)


def _include(path: Path, block: str, depth: int) -> Iterator[str]:
    """The lines of an included file, and the line that opens `block`, in which it is included, again."""
    lines = list(_read_lines(path, depth + 1))
    has_blocks = any(_BLOCK.fullmatch(line) for line in lines)
    opened = _BLOCK.fullmatch(block)
    if has_blocks and opened is not None and opened[2].strip() not in _EVERYBODY:
        _log.warning(
            "%s is left out: it has Host or Match lines and is included in the block %r; include it above the "
            'first Host line, or in "Host *"',
            path,
            block.strip(),
        )
        return
    yield from lines
    if has_blocks:
        yield block


def _included_files(patterns: str) -> Iterator[Path]:
    for pattern in shlex.split(patterns):
        place = Path(pattern).expanduser()
        if not place.is_absolute():
            place = Path("~/.ssh").expanduser() / pattern
        yield from sorted(Path(place.anchor).glob(str(place.relative_to(place.anchor))))


def number(options: dict[str, Any], name: str, default: int) -> int:
    """The option `name` as a number.

    Raises:
        ConfigError: it is none.
    """
    value = options.get(name, default)
    if not re.fullmatch(r"\d{1,9}", str(value)):
        raise ConfigError(f"{name} {value!r} in the SSH configuration is no number")
    return int(value)


def seconds(options: dict[str, Any], name: str, default: int) -> int:
    """The option `name` as a time [s]; OpenSSH writes "90", "90s", "1m30s".

    Raises:
        ConfigError: it is none.
    """
    value = str(options.get(name, default)).lower()
    if not re.fullmatch(r"(\d{1,9}[smhdw]?)+", value):
        raise ConfigError(f'{name} {value!r} in the SSH configuration is no time; allowed are "15", "15s", "1m30s"')
    return sum(int(amount) * _SECONDS[unit] for amount, unit in re.findall(r"(\d+)([smhdw]?)", value))
