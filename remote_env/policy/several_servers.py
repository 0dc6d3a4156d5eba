"""One of several servers of the same policy: clients spread over them, and all of them must serve the same."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from remote_env.errors import ConfigError, ConnectError
from remote_env.policy.dialects import load_dialect
from remote_env.policy.policy import Policy, PolicyMetadata

if TYPE_CHECKING:
    from remote_env.policy.address import PolicyAddress

_turns = itertools.count(os.getpid())  # not every process begins with the same server
_alike: set[tuple[str, ...]] = set()  # of which it is known that they serve the same
_comparing = threading.Lock()


def connect_one(servers: Sequence[PolicyAddress], options: Mapping[str, Any], log: Callable[[str], None]) -> Policy:
    """A policy at the server whose turn it is, or at one after it that answers.

    Args:
        servers: in any order.
        options: for the dialect's `connect`.
        log: takes a line for each that does not answer.

    Raises:
        ConnectError: none of them answers; the message names each.
        ConfigError: they serve different policies.
    """
    turn = next(_turns) % len(servers)
    order = [*servers[turn:], *servers[:turn]]
    failures = []
    for place, server in enumerate(order):
        try:
            policy = _connect(server, options)
        except ConnectError as error:
            if len(servers) == 1:
                raise
            failures.append(f"{server}: {error}")
            log(f"warning: no policy at {server}: {error}")
            continue
        try:
            _check_alike(policy.metadata, server, order[place + 1 :], options)
        except BaseException:
            policy.close()
            raise
        return policy
    raise ConnectError(f"none of the {len(servers)} policy servers answers:\n  " + "\n  ".join(failures))


def _connect(server: PolicyAddress, options: Mapping[str, Any]) -> Policy:
    policy: Policy = load_dialect(server.dialect).connect(server.host, server.port, **options)
    return policy


def _check_alike(
    metadata: PolicyMetadata, server: PolicyAddress, others: Sequence[PolicyAddress], options: Mapping[str, Any]
) -> None:
    """Once per process: the servers that answer serve the same policy."""
    key = tuple(sorted(map(str, (server, *others))))
    with _comparing:
        if key in _alike:
            return
        for other in others:
            try:
                with _connect(other, options) as policy:
                    _compare(metadata, server, policy.metadata, other)
            except ConnectError:
                continue  # who does not answer gets no client either
        _alike.add(key)


def _compare(one: PolicyMetadata, server: PolicyAddress, two: PolicyMetadata, other: PolicyAddress) -> None:
    if (one := replace(one, name="")) != (two := replace(two, name="")):
        plain, else_plain = one.to_plain(), two.to_plain()
        differ = [name for name in plain if plain[name] != else_plain[name]]
        raise ConfigError(
            f"the policy servers {server} and {other} serve different policies: they differ in {', '.join(differ)}; "
            "start both with the same checkpoint"
        )
