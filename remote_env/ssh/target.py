"""Whom to log in to: what the caller wrote, in any of the forms that people have for it."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from remote_env.errors import ConfigError

_USER = re.compile(r"[^\s@:/-][^\s@:/]*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_FORMS = (
    'allowed are "box", "user@box", "ssh://user@box:2222", "ssh://user@[::1]:2222", and ssh\'s own '
    '"-p 2222 -l user -i key_file -J jump_host box" in any order'
)
_HOP_FORMS = (
    'allowed are "login", "user@login", "user@login:2222", "ssh://user@login:2222", joined by commas, or "none"'
)
_OPTIONS = {"p": "port", "l": "user", "i": "identity_file", "J": "via"}


@dataclass(frozen=True)
class SshTarget:
    """What the caller wrote.

    Attributes:
        host: a name, an address, or an alias of `~/.ssh/config`.
        port: the SSH port, None to take the configured one or 22.
        user: the login name, None to take the configured one or the local user's.
        identity_file: the private key to log in with, None to take the configured ones.
        via: jump hosts as `parse_hops` takes them, None to take the configured ones.
    """

    host: str
    port: int | None = None
    user: str | None = None
    identity_file: str | None = None
    via: str | None = None

    @classmethod
    def parse(cls, text: str) -> SshTarget:
        """The target that `text` names.

        It may be "box", "user@box", "ssh://user@box:2222", "ssh://[::1]:22", or the arguments of an ssh command:
        "-p 2222 user@box", "user@box -p 2222", "ssh -l user -i key_file -J jump_host box".

        Raises:
            ConfigError: `text` has another form.
        """
        if text.startswith("-") or " " in text.strip():
            return _parse_arguments(text)
        return _parse_place(text)

    @property
    def place(self) -> str:
        """`user@host:port` with what is known, as `ProxyJump` takes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = "" if self.user is None else f"{self.user}@"
        return f"{user}{host}" + ("" if self.port is None else f":{self.port}")


def parse_hops(via: str | Sequence[str]) -> tuple[SshTarget, ...]:
    """The jump hosts that `via` names, the first to be logged in to first; none for "none" and an empty sequence.

    Args:
        via: "login", "user@login:2222", "ssh://login:2222", several joined by commas, or a sequence of such.

    Raises:
        ConfigError: it has another form.
    """
    if isinstance(via, str):
        if via.lower() == "none":
            return ()
        via = via.split(",")
    return tuple(_parse_hop(text.strip()) for text in via)


def _parse_hop(text: str) -> SshTarget:
    url = text if text.startswith("ssh://") or (text.count(":") > 1 and "[" not in text) else f"ssh://{text}"
    try:
        return _parse_place(url)
    except ConfigError as error:
        raise ConfigError(f"{text!r} names no jump host; {_HOP_FORMS}") from error


def _parse_place(text: str) -> SshTarget:
    is_url = text.startswith("ssh://")
    rest = text[len("ssh://") :].removesuffix("/") if is_url else text
    user, at, place = rest.rpartition("@")
    if at and not _USER.fullmatch(user):
        raise ConfigError(f"{user!r} in {text!r} is no login name; {_FORMS}")
    host, port = _split_port(place, text) if is_url else (place, None)
    if not _is_host(host):
        hint = f"; for an SSH port write ssh://{rest}" if re.search(r":\d+$", rest) else ""
        raise ConfigError(f"{text!r} names no host{hint}; {_FORMS}")
    return SshTarget(host, port, user or None)


def _split_port(place: str, text: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(\d{1,5}))?", place)
    if match is None:
        raise ConfigError(f"{text!r} has no readable host and port; {_FORMS}")
    host, port = match[1].strip("[]"), match[2]
    return host, None if port is None else _check_port(port, text)


def _check_port(port: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ConfigError(f"port {port} in {text!r} is outside 1..65535")
    return int(port)


def _is_host(host: str) -> bool:
    if ":" not in host:
        return _NAME.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _parse_arguments(text: str) -> SshTarget:
    """The target that the arguments of an ssh command name."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} cannot be split into words ({error}); {_FORMS}") from error
    if len(words) > 1 and words[0] == "ssh":
        words = words[1:]
    options: dict[str, str] = {}
    places = []
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            _take_option(word, words, options, text)
        else:
            places.append(word)
    if len(places) != 1:
        raise ConfigError(f"{text!r} names {len(places) or 'no'} hosts; {_FORMS}")
    return _with_options(_parse_place(places[0]), options, text)


def _take_option(word: str, rest: list[str], options: dict[str, str], text: str) -> None:
    """Move the value of the option `word`, which may be the next of `rest`, to `options`."""
    name = _OPTIONS.get(word[1:2])
    if name is None:
        raise ConfigError(f"{word!r} in {text!r} is not understood; {_FORMS}")
    if name in options:
        raise ConfigError(f"-{word[1]} is there twice in {text!r}; {_FORMS}")
    value = word[2:] or (rest.pop(0) if rest else "")
    if not value or (name == "user" and not _USER.fullmatch(value)):
        raise ConfigError(f"-{word[1]} in {text!r} has no usable value ({value!r}); {_FORMS}")
    options[name] = value


def _with_options(target: SshTarget, options: dict[str, str], text: str) -> SshTarget:
    fields: dict[str, object] = dict(options)
    if "port" in options:
        fields["port"] = _check_port(options["port"], text)
    if "via" in options:
        parse_hops(options["via"])
    for name in ("port", "user"):
        said = getattr(target, name)
        if name in fields and said not in (None, fields[name]):
            raise ConfigError(f"{text!r} names two {name}s, {said} and {fields[name]}; name one")
    return replace(target, **fields)  # type: ignore[arg-type]  # each has its field's type
