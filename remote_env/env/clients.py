"""Who we are to a server, and which of those who hold its sessions have died."""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from remote_env.env.records import is_running, read_stat
from remote_env.session import ControlLink


def describe_client() -> str:
    """How a server may name us to others."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}" if hasattr(os, "getuid") else "somebody"
    return f"{user}@{platform.node()} pid {os.getpid()}"


def locate_client() -> str:
    """Which process of which running system this is; "" where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        _, started = read_stat(os.getpid())
    except (OSError, IndexError):
        return ""
    return f"{boot}/{namespace}/{os.getpid()}/{started}"


def is_dead_client(located: str) -> bool:
    """Whether the client that `locate_client` gave this ran where we do, and has ended."""
    system, _, process = located.rpartition("/")[0].rpartition("/")
    ours = locate_client().rsplit("/", 2)[0]
    is_ours = bool(system) and system == ours and process.isdecimal()
    return is_ours and not is_running(int(process), located.rpartition("/")[2])


def end_deserted(link: ControlLink, holders: Iterable[Any], deadline: float, lost: str = "") -> list[str]:
    """End the sessions that are cut off and that nobody can come back for; their clients' names.

    Args:
        link: to their server.
        holders: of sessions, as a server tells of those that are cut off.
        deadline: monotonic [s].
        lost: a session of our own that we have given up.
    """
    deserted = []
    for holder in holders:
        name = holder.get("session") if isinstance(holder, Mapping) else None
        if isinstance(name, str) and (name == lost or is_dead_client(str(holder.get("client_at", "")))):
            link.leave(deadline, name)
            deserted.append(str(holder.get("client")))
    return deserted
