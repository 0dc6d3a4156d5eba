"""The steps of a login between the open way and the proof of who we are, and what is said when one fails."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator

import paramiko

from remote_env.errors import ConnectError, ConnectionLost, DeadlineExceeded
from remote_env.ssh.host_keys import check_host_key, listed_name, order_key_algorithms, read_known_keys
from remote_env.ssh.link import Link
from remote_env.ssh.login import Login

LOGIN_ATTEMPTS = 12  # sshd's MaxStartups drops some of many simultaneous logins
FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 2.0
SLOW_ANSWER_S = 1.0  # from so long on a message says how long `ask_secret` took
_ADMINISTRATIVELY_PROHIBITED, _CONNECT_FAILED = 1, 2  # RFC 4254, section 5.1
REFUSED = "onnection refused"  # what strerror has for a port where nothing listens
_DROP_NOTES = (b"Exceeded MaxStartups", b"Not allowed at this time")
_DROP_SIGNS = ("kex_exchange_identification", "Exceeded MaxStartups")  # what an ssh says that was dropped


class Dropped(Exception):
    """The host closed the connection before it greeted us; it is worth trying again."""


def wait_to_retry(login: Login, attempt: int, deadline: float, dropped: Dropped) -> None:
    """Wait before the next attempt; ConnectError when that was the last, or its time is past `deadline`."""
    delay = min(FIRST_RETRY_S * 1.7**attempt, LONGEST_RETRY_S) * random.uniform(0.5, 1.5)
    if attempt + 1 == LOGIN_ATTEMPTS or time.monotonic() + delay >= deadline:
        raise ConnectError(
            f"{login.address}:{login.port} closed the connection before greeting, "
            f"{attempt + 1} times: too many logins at once (sshd's MaxStartups), a firewall, or no SSH server"
        ) from dropped
    time.sleep(delay)


def exchange_keys(
    login: Login, transport: paramiko.Transport, link: Link, deadline: float, *, accept_new: bool
) -> None:
    """Agree upon keys with the host, and verify that it is the host.

    Raises:
        HostKeyError: it is not, or nothing is known of it.
        Dropped: it closed the connection before it said anything.
        paramiko.SSHException, EOFError, OSError: something else went wrong.
    """
    known = read_known_keys(login.known_hosts_files, listed_name(login))
    options = transport.get_security_options()
    options.key_types = order_key_algorithms(known, options.key_types)
    remaining = max(deadline - time.monotonic(), 0.1)
    transport.banner_timeout = transport.handshake_timeout = remaining + 1.0  # the link's deadline is first
    try:
        transport.start_client()
    except (paramiko.SSHException, EOFError, OSError) as error:
        if not transport.remote_version and link.ended_by_peer and _may_be_dropped(link):
            raise Dropped(str(error)) from error
        raise
    check_host_key(login, transport.get_remote_server_key(), known, accept_new=accept_new)


def _may_be_dropped(link: Link) -> bool:
    """Whether it looks like MaxStartups, also at a host that a proxy command goes through."""
    trouble = link.trouble
    is_silent = not link.greeting and not trouble
    return is_silent or link.greeting.startswith(_DROP_NOTES) or any(sign in trouble for sign in _DROP_SIGNS)


def explain_failure(login: Login, error: Exception, link: Link, asking_s: float) -> ConnectError:
    """The error for a login that broke with `error` over `link`; `ask_secret` took `asking_s` [s] of its time."""
    place = f"{login.address}:{login.port}"
    if link.greeting and not link.greeting.startswith(b"SSH-"):
        return ConnectError(f"{place} is no SSH server: it said {link.greeting[:60]!r}; check the port")
    if link.expired:
        return ConnectError(_say_late(login, link, asking_s))
    return ConnectError(f"the login to {login.description} failed: {link.trouble or error or 'the host hung up'}")


def _say_late(login: Login, link: Link, asking_s: float) -> str:
    if not link.greeting and login.proxy_command:
        return f"nothing came through the ProxyCommand {login.proxy_command!r} in time" + _more(link.trouble)
    if not link.greeting:
        place = f"{login.address}:{login.port}"
        return f"{place} accepted the connection and said nothing in time; is it the SSH port, and sshd alive?"
    asked = f": ask_secret took {asking_s:.0f} s of it; give the login more" if asking_s > SLOW_ANSWER_S else ""
    return f"the login to {login.description} was not done in time{asked}"


def _more(text: str) -> str:
    return f": {text}" if text else ""


def channel_refused(host: str, doing: str, error: paramiko.ChannelException) -> ConnectError:
    """The error for a channel that `host` did not open; `nothing_listens` when that is proven."""
    if error.code == _ADMINISTRATIVELY_PROHIBITED:
        return ConnectError(
            f"sshd on {host} forbids {doing}; its configuration needs AllowTcpForwarding yes "
            "(and no PermitOpen that leaves it out)"
        )
    message = f"{host} refused {doing}: {error.text or 'connect failed'}; does anything listen there?"
    if error.code == _CONNECT_FAILED and (not error.text or REFUSED in error.text):
        return ConnectError(message, nothing_listens=True)
    return ConnectError(message)


@contextlib.contextmanager
def name_hop(host: str) -> Iterator[None]:
    """Name the jump host `host` in what goes wrong in the block, which is always a ConnectError.

    That nothing listens at the SSH port of the next host says nothing of what listens on that host.
    """
    try:
        yield
    except ConnectError as error:
        details = {name: value for name, value in vars(error).items() if name != "nothing_listens"}
        raise type(error)(f"via {host}: {error.message}", **details) from error
    except (DeadlineExceeded, ConnectionLost) as error:
        raise ConnectError(f"via {host}: {error.message}") from error
