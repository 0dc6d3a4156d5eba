"""A dial after the login has died makes a new one by itself, through every kind of tunnel, and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from dialling import Echo, Waiting, logins, place_on, server_at, soon, talk
from dropped_link import cable_to_a_host
from leak_check import children, descriptors, isolated_home, no_leaks, wait_until
from ssh_server import SshServer

from remote_env.env.ssh_place import SshPlace
from remote_env.errors import ConnectError, ConnectionLost, DeadlineExceeded
from remote_env.ssh.tunnel import KINDS
from remote_env.testing import FaultProxy
from remote_env.transport import Transport

__all__ = ["isolated_home", "no_leaks"]
pytestmark = pytest.mark.fault
OVER_OUR_LOGIN = ("channel", "sshtunnel")


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def server() -> Iterator[SshServer]:
    """An sshd of its own, whose logins a test may kill."""
    with SshServer() as server:
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def held() -> tuple[int, int, int]:
    """How many descriptors, threads and child processes we have."""
    return len(descriptors()), threading.active_count(), len(children())


def end(*streams: Transport) -> None:
    for stream in streams:
        stream.close()


# Logins that end


def test_after_killed_logins_a_dial_makes_new_ones_and_nothing_adds_up(
    server: SshServer, echo: Echo, kind: str
) -> None:
    with place_on(server, kind) as place:
        far = server_at(place, echo.port)
        stream = far.dial(soon())
        for _ in range(2):
            talk(stream)
            waiting = Waiting(stream)
            server.signal_connections(signal.SIGKILL)
            assert "ConnectionLost: " in waiting.end()
            assert "broke: the host ended it" in waiting.end() or "ended; it said: " in waiting.end()
            stream.close()
            stream = far.dial(soon())
            talk(stream)
        assert far.redial is not None
        again = far.redial(soon())
        talk(again)
        before = held()
        for _ in range(2):
            server.signal_connections(signal.SIGKILL)
            Waiting(again).end()
            end(stream, again)
            stream, again = far.dial(soon()), far.redial(soon())
            talk(stream)
            talk(again)
        wait_until(lambda: held() == before, f"no more is held than {before}")
        end(stream, again)


def test_redial_never_logs_in(server: SshServer, echo: Echo, kind: str) -> None:
    with place_on(server, kind) as place:
        far = server_at(place, echo.port)
        assert far.redial is not None
        stream = far.dial(soon())
        talk(stream)
        seen = logins(server)
        server.signal_connections(signal.SIGKILL)
        Waiting(stream).end()
        with pytest.raises(ConnectionLost, match=r"the SSH login to .* has ended"):
            far.redial(soon())
        assert logins(server) == seen
        stream.close()


@pytest.mark.parametrize("kind", OVER_OUR_LOGIN)
def test_threads_that_dial_at_once_share_one_new_login(server: SshServer, echo: Echo, kind: str) -> None:
    with place_on(server, kind) as place, ThreadPoolExecutor(4) as pool:
        far = server_at(place, echo.port)
        first = far.dial(soon())
        seen = logins(server)
        server.signal_connections(signal.SIGKILL)
        streams = list(pool.map(lambda _: far.dial(soon()), range(4)))
        for stream in streams:
            talk(stream)
        assert logins(server) == seen + 1
        end(first, *streams)


def test_an_sshd_that_is_restarted_is_found_again(server: SshServer, echo: Echo, kind: str) -> None:
    with place_on(server, kind) as place:
        far = server_at(place, echo.port)
        stream = far.dial(soon())
        talk(stream)
        server.stop()
        Waiting(stream).end()
        stream.close()
        for _ in range(2):
            with pytest.raises(ConnectError) as caught:
                far.dial(soon(5.0))
            assert not caught.value.nothing_listens, "sshd is gone, which says nothing of the server"
        server.start_again()
        stream = far.dial(soon())
        talk(stream)
        stream.close()


def test_an_sshd_that_stands_still_is_left_for_a_new_login(server: SshServer, echo: Echo, kind: str) -> None:
    with place_on(server, kind) as place:
        far = server_at(place, echo.port)
        stream = far.dial(soon())
        talk(stream)
        stopped = server.connection_pids()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        waiting = Waiting(stream)
        be_silent()
        again = far.dial(soon(4.5))
        talk(again, seconds=2.0)
        assert "ConnectionLost: " in waiting.end()  # its login was given up
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        talk(again)
        end(stream, again)


# Jump hosts


@pytest.mark.parametrize("killed", ["jump", "behind"])
def test_a_killed_jump_host_is_logged_in_to_again_and_a_living_one_is_kept(echo: Echo, kind: str, killed: str) -> None:
    with (
        SshServer() as jump,
        SshServer(jump=jump) as behind,
        place_on(behind, kind, "testbox", identity_file=None) as place,
    ):
        far = server_at(place, echo.port)
        stream = far.dial(soon())
        talk(stream)
        seen = logins(jump), logins(behind)
        (jump if killed == "jump" else behind).signal_connections(signal.SIGKILL)
        Waiting(stream).end()
        stream.close()
        stream = far.dial(soon())
        talk(stream)
        stream.close()
        assert logins(behind) == seen[1] + 1
        if kind != "openssh":  # whose ssh ends with its jump host's
            assert logins(jump) == seen[0] + (killed == "jump")


# Cables


def test_a_connection_that_is_cut_or_silent_is_left_for_a_new_one(echo: Echo, kind: str) -> None:
    with SshServer() as server, FaultProxy((server.address, server.port)) as proxy:
        host = behind(server, proxy)
        with place_on(server, kind, host) as place:
            far = server_at(place, echo.port)
            stream = far.dial(soon())
            talk(stream)
            proxy.cut(reset=True)
            assert "ConnectionLost: " in Waiting(stream).end()
            stream.close()
            stream = far.dial(soon())
            talk(stream)
            proxy.pause()
            be_silent()
            began = time.monotonic()
            with pytest.raises((ConnectError, ConnectionLost, DeadlineExceeded)):
                far.dial(soon(1.5))
            assert time.monotonic() - began < 5.0
            stream.close()
            proxy.resume()
            stream = far.dial(soon())
            talk(stream)
            stream.close()


def behind(server: SshServer, proxy: FaultProxy) -> str:
    """The address of `server` through `proxy`, whose key is made known."""
    line = server.known_hosts_line().replace(f":{server.port} ", f":{proxy.address[1]} ")
    server.known_hosts.write_text(server.known_hosts.read_text() + line)
    return f"ssh://{server.user}@127.0.0.1:{proxy.address[1]}"


def test_a_cable_that_was_pulled_for_a_while_is_dialled_over_again() -> None:
    with (
        cable_to_a_host() as cable,
        SshServer(address=cable.address, prefix=cable.enter) as server,
        SshServer(prefix=cable.enter) as other,  # which is what is dialled there: it speaks first
        contextlib.ExitStack() as stack,
    ):
        fars = [server_at(stack.enter_context(place_on(server, kind)), other.port) for kind in KINDS]
        streams = [far.dial(soon()) for far in fars]
        for stream in streams:
            greet(stream)
        cable.pull()
        be_silent()
        for far in fars:
            began = time.monotonic()
            with pytest.raises((ConnectError, ConnectionLost, DeadlineExceeded)):
                far.dial(soon(0.7))
            assert time.monotonic() - began < 5.0
        cable.plug_in()
        for far in fars:
            streams.append(far.dial(soon()))
            greet(streams[-1])
        end(*streams)


def be_silent() -> None:
    """Let the time go by for which a host that was just heard is not asked whether it lives."""
    until = time.monotonic() + 0.15
    wait_until(lambda: time.monotonic() > until, "it has been silent for a moment")


def greet(stream: Transport) -> None:
    """Read what an sshd says first."""
    data = bytearray(4)
    stream.recv_exactly_into(memoryview(data), soon())
    assert data == b"SSH-"


# Ends that we make


def test_a_closed_stream_wakes_whoever_waits_in_it(server: SshServer, echo: Echo, kind: str) -> None:
    with place_on(server, kind) as place:
        stream = server_at(place, echo.port).dial(soon())
        talk(stream)
        waiting = Waiting(stream)
        stream.close()
        assert waiting.end().startswith("ConnectionLost: the connection")
        assert "was closed here" in waiting.end()


def test_a_closed_place_never_logs_in_again(server: SshServer, echo: Echo, kind: str) -> None:
    with place_on(server, kind) as place:
        far = server_at(place, echo.port)
        stream = far.dial(soon())
        talk(stream)
        seen, waiting = logins(server), Waiting(stream)
        place.close()
        assert "ConnectionLost: " in waiting.end()
        for dial in (far.dial, far.redial):
            assert dial is not None
            with pytest.raises(ConnectionLost, match="was closed; nothing logs in again"):
                dial(soon())
        assert logins(server) == seen
        stream.close()


def test_a_place_that_is_closed_while_it_logs_in_is_logged_out(server: SshServer, echo: Echo, kind: str) -> None:
    raised: list[BaseException] = []

    def dial() -> None:
        try:
            far.dial(soon(30.0)).close()
        except (ConnectError, ConnectionLost) as error:
            raised.append(error)

    with FaultProxy((server.address, server.port)) as proxy, place_on(server, kind, behind(server, proxy)) as place:
        far = server_at(place, echo.port)
        stream = far.dial(soon())
        proxy.cut()
        Waiting(stream).end()
        proxy.pause()
        connections, thread = proxy.connections, threading.Thread(target=dial)
        thread.start()
        wait_until(lambda: proxy.connections > connections, "it has begun to log in")
        place.close()
        proxy.resume()
        thread.join(20.0)
        assert raised
        assert not thread.is_alive()
        stream.close()
        wait_until(lambda: not server.connection_pids(), "every login has ended")


def test_a_forked_child_does_not_log_in(server: SshServer, echo: Echo, kind: str) -> None:
    with place_on(server, kind) as place:
        far = server_at(place, echo.port)
        stream = far.dial(soon())
        talk(stream)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if _is_refused(far.dial) and _is_refused(far.redial) else 1)
        assert os.waitpid(pid, 0)[1] == 0
        talk(stream)
        stream.close()


def _is_refused(dial: Any) -> bool:
    try:
        dial(soon(5.0))
    except ConnectionLost as error:
        return "belongs to another process" in str(error)
    return False


# What is known of the far port


def fails(place: SshPlace) -> ConnectError | ConnectionLost:
    """What is raised where nothing can be reached: by the dial or the first receive."""
    try:
        with contextlib.closing(server_at(place, 1).dial(soon())) as stream:
            stream.recv_exactly_into(memoryview(bytearray(1)), soon())
    except (ConnectError, ConnectionLost) as error:
        return error
    pytest.fail("something answers at port 1")


def test_that_nothing_listens_any_more_is_a_detail_of_the_error(server: SshServer, kind: str) -> None:
    with place_on(server, kind) as place:
        error = fails(place)
    assert "does anything listen there" in str(error)
    assert getattr(error, "nothing_listens", False)


def test_forbidden_forwarding_proves_nothing_about_the_port() -> None:
    with SshServer(extra_config="AllowTcpForwarding no") as server, place_on(server, "channel") as place:
        error = fails(place)
    assert "AllowTcpForwarding yes" in str(error)
    assert not getattr(error, "nothing_listens", False)
