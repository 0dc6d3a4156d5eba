"""What is told of a link that is cut, of what becomes of its session, and of servers that are full."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import PASSWORD, Person, code_pam
from leak_check import is_alive, wait_until
from quotes import is_quoted, produces
from server_process import BareClient, ServerProcess, serving
from ssh_client import nothing_is_left, over_ssh
from ssh_server import SshServer, can_have_passwords

from remote_env import RemoteEnv
from remote_env.errors import ConfigError, InputError
from remote_env.protocol import frames
from remote_env.server.connections import MAX_PROVED
from remote_env.session import ControlLink, LinkEvent, LinkOptions, Session
from remote_env.testing import FaultProxy
from remote_env.testing.scripted_server import ScriptedServer, Trouble
from remote_env.transport import connect_tcp

__all__ = ["nothing_is_left"]
pytestmark = pytest.mark.fault
TASK = "remote_env.testing.counting:make"
ACTION = np.zeros(2)
Attach = Callable[..., RemoteEnv]
Told = Callable[[str], str]


@pytest.fixture(scope="module")
def server(isolated_home: Path) -> Iterator[ServerProcess]:
    """A server for all tests that it survives."""
    with serving(TASK) as server:
        yield server


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[FaultProxy]:
    """The way to it."""
    with FaultProxy(("127.0.0.1", server.port)) as proxy:
        yield proxy


@pytest.fixture
def attach(server: ServerProcess, proxy: FaultProxy) -> Iterator[Attach]:
    """Makes environments behind the proxy, whose episode has begun; they are closed at the end."""
    with contextlib.ExitStack() as stack:

        def attach(**arguments: Any) -> RemoteEnv:
            address = f"tcp://127.0.0.1:{proxy.address[1]}"
            env = stack.enter_context(RemoteEnv(address, token=server.token, **arguments))
            env.reset()
            return env

        yield attach
        with contextlib.suppress(ConfigError):  # a test has closed it
            proxy.refuse(False)  # so that what is closed can say so


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    """The line of our logger that begins as a quoted message does."""

    def find(message: str) -> str:
        lines = [record.getMessage() for record in caplog.records if record.name == "remote_env"]
        return next((line for line in lines if is_quoted(message, line)), "\n".join(lines))

    return find


def cut_for_good(proxy: FaultProxy) -> None:
    proxy.refuse(True)
    proxy.cut()


# What the log says


@produces("the link to … is cut (…); reconnecting for up to … s")
def test_a_cut_link(attach: Attach, proxy: FaultProxy, told: Told) -> str:
    env = attach()
    proxy.cut()
    env.step(ACTION)
    return told("the link to …")


@produces("resumed the session with … after … s at request …: nothing was lost")
def test_a_link_that_is_there_again(attach: Attach, proxy: FaultProxy, told: Told) -> str:
    env = attach()
    proxy.cut()
    env.step(ACTION)
    return told("resumed …")


@produces("the link to … is cut (no heartbeat for … s: …); reconnecting for up to … s")
def test_a_link_that_falls_silent(attach: Attach, proxy: FaultProxy, told: Told) -> str:
    def mend(_event: LinkEvent) -> None:
        proxy.resume()

    env = attach(heartbeat_s=0.1, heartbeat_timeout_s=0.2, on_link=mend)
    proxy.pause()
    env.step(ACTION)
    return told("the link to …")


@produces("the link to … is cut (…nothing came from it for … s …")
def test_a_host_that_falls_silent(ssh_server: SshServer, told: Told) -> str:
    frozen: list[int] = []
    keepalive: dict[str, Any] = {"ssh_keepalive_s": 1, "ssh_keepalive_count": 1}
    try:
        with over_ssh(ssh_server, env="CartPole-v1", idle_timeout_s=0.2, **keepalive) as env:
            env.reset(seed=0)
            frozen = ssh_server.connection_pids()
            ssh_server.signal_connections(signal.SIGSTOP)
            env.step(0)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGKILL)
    return told("the link to …")


def line_of(server: ServerProcess, message: str) -> str:
    """The line of the server's log that begins as a quoted message does, without its time."""

    def find() -> str:
        lines = (line.partition(" ")[2] for line in server.read_log().splitlines())
        return next((line for line in lines if is_quoted(message, line)), "")

    return wait_until(find, f"its log has: {message}")


@produces("session … of … is cut off, and kept for … s: …")
def test_the_server_s_word_of_a_cut(server: ServerProcess, attach: Attach, proxy: FaultProxy) -> str:
    env = attach()
    proxy.cut()
    env.step(ACTION)
    return line_of(server, "session … is cut off…")


@produces("session … was taken back by …")
def test_the_server_s_word_of_a_return(server: ServerProcess, attach: Attach, proxy: FaultProxy) -> str:
    env = attach()
    proxy.cut()
    env.step(ACTION)
    return line_of(server, "session … was taken back…")


# Sessions that are lost


@produces("SessionLost: the link to the simulator broke (…); reset() starts a new session")
def test_a_link_that_is_not_to_be_made_anew(attach: Attach, proxy: FaultProxy) -> None:
    env = attach(resume="never")
    proxy.cut()
    env.step(ACTION)


@produces("SessionLost: the link was cut and could not be made anew within … s (…); reset() starts a new session")
def test_a_link_that_stays_cut(attach: Attach, proxy: FaultProxy) -> None:
    env = attach(reconnect_timeout_s=0.2)
    cut_for_good(proxy)
    env.step(ACTION)


def lose(server: ServerProcess, **options: Any) -> None:
    """Step in a session of which nothing was heard: what a program is that was stopped (Ctrl-Z, a sleeping laptop)."""
    dial = partial(connect_tcp, "127.0.0.1", server.port)
    link, log_size = LinkOptions(**options), len(server.read_log())
    session = Session(dial, server.token, time.monotonic() + 15.0, client="me", lease_s=0.2, link=link)
    try:
        session.reset(None, None, 10.0)
        over = "its client did not come back" if link.resume else "its lease ran out"
        wait_until(lambda: over in server.read_log()[log_size:], "its time is over")
        session.step(ACTION, 10.0)
    finally:
        session.close()


@produces("SessionLost: this session has ended: its client did not come back within … s after its link was cut")
def test_a_client_that_was_away_for_too_long(server: ServerProcess) -> None:
    lose(server, keep_s=0.2)


@produces("SessionLost: the simulator is gone: its lease ran out: nothing was heard of its client for … s; …")
def test_a_client_of_which_nothing_was_heard(server: ServerProcess) -> None:
    lose(server, resume=False)


def end_session(server: ServerProcess, env: RemoteEnv) -> None:
    """End an environment's session by another's link, past the proxy."""
    assert env._life.session is not None
    dial, until = partial(connect_tcp, "127.0.0.1", server.port), time.monotonic() + 10.0
    with contextlib.closing(ControlLink(dial, server.token, until, session=None, client="")) as link:
        link.leave(until, env._life.session.control.welcome["session"])
        link.status()  # answered after it


@produces("StartError: the session could not begin: …")
def test_a_link_that_is_cut_for_good_as_the_session_begins(server: ServerProcess, proxy: FaultProxy) -> None:
    host, port = proxy.address
    options = LinkOptions(reconnect_timeout_s=0.1, keep_s=0.2, on_link=lambda _event: cut_for_good(proxy))
    dial, log_size = partial(connect_tcp, str(host), int(port)), len(server.read_log())
    begin = partial(Session, dial, server.token, time.monotonic() + 15.0, link=options)
    first = begin()
    size = proxy.carried("down")
    first.close()
    proxy.cut_after(size - 200, "down")  # in the middle of READY
    try:
        begin()
    finally:
        over = "its client did not come back"
        wait_until(lambda: over in server.read_log()[log_size:], "the server waits for it no longer")


@produces("SessionLost: this session has ended: its client left")
def test_a_session_that_another_ended(server: ServerProcess, attach: Attach, proxy: FaultProxy) -> None:
    env = attach()
    cut_for_good(proxy)
    end_session(server, env)
    proxy.refuse(False)
    env.step(ACTION)


@produces("SessionLost: the session was closed; if a call still waited for its result, another thread did so")
def test_an_environment_that_another_thread_closes(attach: Attach, proxy: FaultProxy) -> None:
    env = attach()
    session = env._life.session
    assert session is not None
    proxy.pause()
    closer = threading.Thread(target=lambda: (wait_until(lambda: session._in_call, "it waits"), env.close()))
    closer.start()
    try:
        env.step(ACTION)
    finally:
        proxy.resume()
        closer.join()


@produces("SessionLost: the simulator is gone: it was killed by SIG…; reset() starts a new one. …")
def test_a_simulator_that_died_while_the_link_was_cut() -> None:
    with (
        serving(TASK) as server,
        FaultProxy(("127.0.0.1", server.port)) as proxy,
        RemoteEnv(f"tcp://127.0.0.1:{proxy.address[1]}", token=server.token) as env,
    ):
        env.reset()
        pid = int(env.status()["pid"])
        cut_for_good(proxy)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "it ends")
        proxy.refuse(False)
        env.step(ACTION)


@produces("SessionLost: the server is gone: …; reset() starts a new session")
def test_a_port_at_which_nobody_listens_any_more(server: ServerProcess, attach: Attach, proxy: FaultProxy) -> None:
    env = attach()
    proxy.close()
    try:
        env.step(ACTION)
    finally:
        end_session(server, env)  # which lives, unlike the port


@produces("SessionLost: the server cannot be had back: …; reset() starts a new session")
def test_another_server_at_the_port() -> None:
    token = "f" * 64
    with ScriptedServer(token, {2: Trouble("lose reply", control_too=True)}) as scripted:
        host, port = scripted.address
        with RemoteEnv(f"tcp://{host}:{port}", token=token) as env:
            env.reset()
            scripted.knows_token = False
            env.step(env.action_space.sample())


@pytest.mark.skipif(not can_have_passwords(), reason="giving sshd a password needs root and mount namespaces")
@produces("SessionLost: the server cannot be had back: the login to … has ended, and a new one needs an answer …")
def test_a_new_login_that_takes_a_code(tmp_path: Path) -> None:
    answers = ["me@here", "111", "me@here", "222"]
    pam = code_pam(tmp_path, [answers[1], answers[3]])
    only = "AuthenticationMethods publickey,keyboard-interactive"
    with (
        SshServer(password=PASSWORD, pam=pam, extra_config=only) as server,
        over_ssh(server, env="CartPole-v1", ask_secret=Person(keyboard_interactive=[*answers])) as env,
    ):
        env.reset(seed=0)
        server.signal_connections(signal.SIGKILL)
        env.step(0)  # what ends the server then is a login that may ask again


# What a program makes of it


@produces("on_link= raised as it was told of a link that is …")
def test_a_callback_that_goes_wrong(attach: Attach, proxy: FaultProxy, told: Told) -> str:
    def on_link(event: LinkEvent) -> None:
        raise ValueError(event.kind)

    env = attach(on_link=on_link)
    proxy.cut()
    env.step(ACTION)
    return told("on_link= …")


@produces("InputError: on_link= is told in the middle of a call: it can call … alone")
def test_a_callback_that_goes_on_with_the_task(attach: Attach, proxy: FaultProxy) -> None:
    caught: list[Exception] = []

    def on_link(_event: LinkEvent) -> None:
        try:
            env.step(ACTION)
        except InputError as error:
            caught.append(error)

    env = attach(on_link=on_link)
    proxy.cut()
    env.step(ACTION)
    raise caught[0]


# Servers that are full


@produces(
    "ConnectError: all … session(s) of this server are taken …; the link of … is cut, and it is expected back for "
    "another … s; …"
)
def test_a_server_that_waits_for_somebody_s_return(server: ServerProcess) -> None:
    with BareClient(server) as holder:
        welcome = holder.shake_hands(session="new", client="ann@desk pid 77", resume_s=30.0)
    try:
        with BareClient(server) as looking:
            looking.shake_hands(session=None)
            wait_until(lambda: looking.ask(frames.STATUS)["holders"][0]["cut_off"], "its link is cut")
        RemoteEnv(port=server.port).start()
    finally:
        with BareClient(server) as friend:
            friend.shake_hands(session=None)
            friend.ask(frames.LEAVE, session=welcome["session"])


@produces("ConnectError: this server has 256 connections and takes no more; end some: remote-env ps, remote-env stop")
def test_a_server_with_too_many_connections(server: ServerProcess) -> None:
    with contextlib.ExitStack() as connections:
        for _ in range(MAX_PROVED):
            connections.enter_context(BareClient(server)).shake_hands(session=None)
        RemoteEnv(port=server.port).start()
