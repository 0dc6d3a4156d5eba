"""Who may reach the server: what is refused beyond loopback, and the words that tell clients how to get in."""

from __future__ import annotations

import ipaddress
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError
from remote_env.policy.server.settings import SHORT, Endpoint, Settings, normalize_flags

_LOCALHOST = ("127.0.0.1", "localhost", "0.0.0.0", "::")  # noqa: S104  all are reached under this name


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`: every address that it stands for is a loopback one.

    Raises:
        ConfigError: it stands for none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"the host {host!r} is unknown here: {error.strerror or error}; give an address") from error
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def check_exposure(settings: Settings, endpoint: Endpoint, dialects: Mapping[str, Any], command: Sequence[str]) -> None:
    """Refuse to listen beyond loopback unless the user insists: nothing there is encrypted, and not all authenticates.

    Args:
        settings: of the server.
        endpoint: one of its own.
        dialects: name -> module, of those that would be spoken there.
        command: the command line, to say which one to run instead: program words, then flags.

    Raises:
        ConfigError: with the exact lines to run.
    """
    if settings.insecure or is_loopback(endpoint.host):
        return
    open_to_all = [name for name, module in dialects.items() if not module.AUTHENTICATES]
    refused = f"refused to listen on {endpoint}, beyond this machine"
    tunnel = (
        "Stay on loopback and let clients come through SSH:  "
        f"remote-env tunnel HOST {endpoint.port} --background\n"
        f"    (or ssh -N -L {endpoint.port}:127.0.0.1:{endpoint.port} HOST)\n"
    )
    insisting = f"    {shlex.join([*command, '--insecure'])}"
    if not open_to_all:
        raise ConfigError(
            f"{refused}: nothing is encrypted there, so whoever is on the way could see and change what is sent.\n"
            f"{tunnel}"
            f"or, where everybody on that network is trusted (clients need the token there, too):\n{insisting}"
        )
    words = " and ".join(open_to_all)
    what = "dialects cannot" if len(open_to_all) > 1 else "dialect cannot"
    raise ConfigError(
        f"{refused}: the {words} {what} authenticate clients, so whoever "
        "reaches the port could use the model and send it pickles.\n"
        f"{tunnel}"
        "or serve what authenticates, though nothing encrypts it (its clients need the token):\n"
        f"    {_safe_line(settings, endpoint, command)}\n"
        f"or, where everybody who reaches the port may use the model:\n{insisting}"
    )


def asks_all_for_the_token(endpoint: Endpoint, dialects: Mapping[str, Any]) -> bool:
    """Whether openpi asks for the token, too: beyond loopback, unless another dialect of the port lets all in."""
    return not is_loopback(endpoint.host) and all(module.AUTHENTICATES for module in dialects.values())


def _safe_line(settings: Settings, endpoint: Endpoint, command: Sequence[str]) -> str:
    """The command with the place in question speaking renv, and the other places as they are."""
    places = [replace(place, dialect="renv") if place == endpoint else place for place in settings.endpoints]
    kept = drop_flags(command, ("--host", "--port", "--listen"))
    return shlex.join([*kept, *(word for place in places for word in ("--listen", str(place))), "--insecure"])


def drop_flags(command: Sequence[str], names: Sequence[str]) -> list[str]:
    """The command without these flags and their values."""
    kept: list[str] = []
    words = iter(command)
    for word in words:
        flag, equals, _ = normalize_flags([word])[0].partition("=")
        if SHORT.get(flag, flag) in names:
            if not equals:
                next(words, None)
        elif SHORT.get(word[:2]) not in names:  # -p5000
            kept.append(word)
    return kept


def describe_clients(
    endpoint: Endpoint, dialects: Sequence[str], token_file: Path | None, *, beyond: bool
) -> list[str]:
    """Lines that say how clients get in; the token itself is never among them.

    Args:
        endpoint: with its real port.
        dialects: that are spoken there.
        token_file: where the token lies; None when none is asked for.
        beyond: whether other machines reach it.
    """
    port, here = endpoint.port, socket.gethostname()
    lines = []
    if "renv" in dialects:
        script = "python examples/policy_client_example.py"
        local = "localhost" if endpoint.host in _LOCALHOST else endpoint.host
        lines.append(f"a client on this machine:  {script} --host {local} --port {port}")
        if beyond and token_file is not None:
            fetch = f"REMOTE_ENV_TOKEN=$(ssh {here} cat {shlex.quote(str(token_file))})"
            lines.append(f"a client elsewhere:  {fetch} {script} --host {here} --port {port}")
    if "openpi" in dialects and beyond and token_file is not None:
        lines.append(
            f"an openpi client elsewhere:  WebsocketClientPolicy({here!r}, {port}, api_key=TOKEN), "
            f"TOKEN being what stands in {token_file}"
        )
    return lines
