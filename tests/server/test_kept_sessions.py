"""Sessions without a connection: kept as long as was asked for, taken back by their owner alone, and then gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from leak_check import wait_until
from server_process import BareClient, ServerProcess, serving

from remote_env.protocol import frames

TASK = "tasks_for_tests.slow:Slow"


@pytest.fixture(scope="module")
def shared() -> Iterator[ServerProcess]:
    with serving(TASK) as running:
        yield running


@pytest.fixture
def server(shared: ServerProcess) -> Iterator[ServerProcess]:
    """A server that other tests have used, and use after."""
    yield shared
    with BareClient(shared) as client:
        client.shake_hands()
        assert sessions(client) == 0


def sessions(client: BareClient) -> int:
    return int(client.ask(frames.STATUS)["sessions"])


def holder(client: BareClient) -> dict[str, Any]:
    """Who holds the only session."""
    [only] = client.ask(frames.STATUS)["holders"]
    return only  # type: ignore[no-any-return]


def open_and_vanish(server: ServerProcess, **fields: Any) -> dict[str, Any]:
    """Open a session, and cut its only connection; what a HELLO needs to take it back."""
    with BareClient(server) as client:
        session = client.shake_hands(session="new", client="ada pid 7", **fields)["session"]
        return {"session": session, "key": client.handshake.derive_key(session)}


def test_a_session_is_kept_and_taken_back(server: ServerProcess) -> None:
    with BareClient(server) as monitor, BareClient(server) as again:
        monitor.shake_hands()
        ours = open_and_vanish(server, resume_s=60, client_at="here/1/2/3")
        wait_until(lambda: holder(monitor)["cut_off"], "the cut is noticed")
        assert (holder(monitor)["session"], holder(monitor)["client_at"]) == (ours["session"], "here/1/2/3")
        assert monitor.ask(frames.STATUS)["idle_s"] == 0
        welcome = again.shake_hands(**ours)
        assert (welcome["type"], welcome["session"]) == (frames.WELCOME, ours["session"])
        again.wait_event("ready")
        assert holder(monitor) == {"client": "ada pid 7", "since": holder(monitor)["since"], "cut_off": False}
        assert again.ask(frames.LEAVE) == {}
        assert sessions(monitor) == 0
    assert f"session {ours['session']} of ada pid 7 is cut off, and kept for 60 s" in server.read_log()
    assert f"session {ours['session']} was taken back by ada pid 7" in server.read_log()


def test_one_that_is_taken_back_before_its_cut_was_noticed_leaves_the_old_connection(server: ServerProcess) -> None:
    with BareClient(server) as old, BareClient(server) as new:
        session = old.shake_hands(session="new", resume_s=60)["session"]
        old.wait_event("ready")
        new.shake_hands(session=session, key=old.handshake.derive_key(session))
        with pytest.raises(EOFError):
            old.recv()
        new.wait_event("ready")
        assert holder(new)["cut_off"] is False
        new.ask(frames.LEAVE)


def test_another_s_key_takes_nothing_back(server: ServerProcess) -> None:
    with BareClient(server) as monitor, BareClient(server) as thief:
        monitor.shake_hands()
        ours = open_and_vanish(server, resume_s=60)
        wait_until(lambda: holder(monitor)["cut_off"], "the cut is noticed")
        answer = thief.shake_hands(session=ours["session"], key="0" * 64)
        assert (answer["type"], answer["kind"]) == (frames.REFUSED, "auth")
        assert holder(monitor)["cut_off"] is True
        monitor.ask(frames.LEAVE, session=ours["session"])


def test_who_comes_too_late_hears_why(server: ServerProcess) -> None:
    ours = open_and_vanish(server, resume_s=0.1)
    with BareClient(server) as monitor, BareClient(server) as late, BareClient(server) as data:
        monitor.shake_hands()
        wait_until(lambda: sessions(monitor) == 0, "the time is over")
        why = "this session has ended: its client did not come back within 0.1 s after its link was cut"
        for client, role, more in ((late, "control", {}), (data, "data", {"resume": 0})):
            answer = client.shake_hands(role, **ours, **more)
            assert (answer["type"], answer["kind"], answer["message"]) == (frames.REFUSED, "ended", why)
        assert monitor.ask(frames.STATUS, session=ours["session"])["why"] == why


def test_a_lease_that_runs_out_cuts_off_what_is_to_be_kept(server: ServerProcess) -> None:
    with BareClient(server) as silent, BareClient(server) as monitor:
        monitor.shake_hands()
        session = silent.shake_hands(session="new", lease_s=0.2, resume_s=60)["session"]
        wait_until(lambda: holder(monitor)["cut_off"], "its lease runs out")
        with pytest.raises(EOFError):  # so that it comes back and takes its session
            silent.wait_event("dead")
        with BareClient(server) as back:
            assert back.shake_hands(session=session, key=silent.handshake.derive_key(session))["session"] == session
            back.ask(frames.LEAVE)


def test_who_finds_the_server_full_hears_whose_link_is_cut(server: ServerProcess) -> None:
    with BareClient(server) as monitor, BareClient(server) as next_one:
        monitor.shake_hands()
        ours = open_and_vanish(server, resume_s=60, client_at="x/y/1/2")
        wait_until(lambda: holder(monitor)["cut_off"], "the cut is noticed")
        answer = next_one.shake_hands(session="new")
        assert (answer["type"], answer["kind"]) == (frames.REFUSED, "busy")
        assert "the link of ada pid 7 is cut, and it is expected back for another " in answer["message"]
        assert answer["cut_off"] == [{"session": ours["session"], "client": "ada pid 7", "client_at": "x/y/1/2"}]
        monitor.ask(frames.LEAVE, session=ours["session"])


@pytest.mark.parametrize("resume_s", [0, -1, "60", True, []])
def test_how_long_is_a_positive_number(server: ServerProcess, resume_s: object) -> None:
    with BareClient(server) as client:
        answer = client.shake_hands(session="new", resume_s=resume_s)
    assert (answer["type"], answer["kind"]) == (frames.REFUSED, "protocol")
    assert "resume_s is" in answer["message"]


def test_nobody_is_kept_for_more_than_an_hour_nor_unasked(server: ServerProcess) -> None:
    for asked, given in ((1e6, 3600.0), (None, None)):
        with BareClient(server) as client:
            assert client.shake_hands(session="new", resume_s=asked).get("resume_s") == given
            client.ask(frames.LEAVE)


def test_a_server_that_ends_with_its_last_session_waits_for_one_that_is_cut_off() -> None:
    with serving(TASK, idle_timeout_s=0) as server:
        with BareClient(server) as monitor:
            monitor.shake_hands()
            open_and_vanish(server, resume_s=0.5)
            wait_until(lambda: holder(monitor)["cut_off"], "the cut is noticed")
        assert server.process.wait(10) == 0
        assert not server.folder.exists()
