"""What a RemoteEnv tells of its way to the simulator: which it is, how long it takes, how much goes through."""

from __future__ import annotations

import contextlib
from typing import Any

from remote_env.env.arguments import Arguments
from remote_env.env.life import Life
from remote_env.errors import RemoteEnvError
from remote_env.session.link_estimate import measure_round_trip


def describe_transport(life: Life[Any], arguments: Arguments) -> dict[str, Any]:
    """See `Client.transport_info`; the session is open."""
    session, server = life.session, life.server
    assert session is not None  # noqa: S101  the caller has opened it
    estimate = session.link_estimate
    with contextlib.suppress(RemoteEnvError):  # cut just now: what was measured before stands
        measure_round_trip(session.control, estimate)
    return {
        "way": name_way(arguments),
        "where": server.where if server is not None else "",
        "round_trip_s": estimate.round_trip_s,
        "bytes_per_s": estimate.bytes_per_s,
        "window": session.window,
        "codecs": session.explain_codecs(),
    }


def name_way(arguments: Arguments) -> str:
    """What carries the bytes: "local", "tcp", "launch", or the tunnel over SSH."""
    host = arguments.host
    if host is None or host == "local":
        return "local"
    if host.startswith("tcp://"):
        return "tcp"
    return "launch" if arguments.launch is not None else arguments.tunnel
